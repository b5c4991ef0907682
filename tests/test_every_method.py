"""Every method of the registry and every scenario: the same numbers in whatever company, and wherever it is killed."""

from __future__ import annotations

import os
import random
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Kdbench
from places import ENTRIES, PLACES, SCENARIOS, equal, methods_in, records_in, run, settings_of, tiny_data

from kdbench import load_student
from kdbench.data.module import ArrayData, eval_batch
from kdbench.data.sources import source_of
from kdbench.engine.cohort import CHECKPOINT
from kdbench.engine.students import Deployed
from kdbench.results.record import Record
from kdbench.tasks import task_for

ROUTES = {
    "fast": (),
    "plain": ("engine.route=plain",),
    "bf16": ("protocol.precision=bf16-mixed", "dataset.flip=true"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data, and what several tests compare with."""
    root = tmp_path_factory.mktemp("every")
    tiny_data(root)
    return root


@pytest.fixture
def bench(kd: Kdbench, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Kdbench:
    monkeypatch.setenv("KDBENCH_DATA", str(folder))
    return kd


def together(bench: Kdbench, folder: Path, place: str, route: str) -> Path:
    """The store of all methods of a place, trained in one lockstep, and only once."""
    store = folder / f"{place}-{route}"
    result = run(bench, place, *ROUTES[route], "cohort.max_students=1000", f"paths.results={store}")
    assert result.code == 0, result
    assert sorted(records_in(bench, store)) == sorted(methods_in(place))
    return store


def test_every_method_and_every_scenario_has_its_place() -> None:
    found = [name for place in PLACES for name in methods_in(place) if name not in PLACES[place].guests]
    assert sorted(found) == sorted(ENTRIES)
    assert PLACES.keys() >= SCENARIOS
    assert all(f"scenario={name}" in PLACES[name].settings.split() for name in SCENARIOS)


CROWDED = "semi_supervised"
"""Where most of the methods stand: seconds for a route become minutes."""


def takes_minutes(place: str, route: str, students: int) -> bool:
    """Whether a comparison takes minutes."""
    return route == "bf16" or (place == CROWDED and (route != "fast" or students == 1))


@pytest.mark.parametrize(
    ("place", "route", "students"),
    [
        pytest.param(place, route, students, marks=[pytest.mark.slow] if takes_minutes(place, route, students) else [])
        for place in PLACES
        for route in ROUTES
        for students in ([1, 6] if place == CROWDED else [1])
    ],
)
def test_alone_as_in_company(bench: Kdbench, folder: Path, place: str, route: str, students: int) -> None:
    """Or in other company, and in another order, where being alone takes too long."""
    if route == "bf16" and PLACES[place].task.endswith("policy"):
        pytest.skip("what is observed is not flipped")
    store = together(bench, folder, place, route)
    others = random.Random(place).sample(methods_in(place), len(methods_in(place)))
    result = run(bench, place, *ROUTES[route], f"cohort.max_students={students}", chosen=others)
    assert result.code == 0, result
    equal(bench, store, "results")
    paths = {record.environment.path for record in records_in(bench, store).values()}
    assert all(f"lockstep of {len(methods_in(place))}" in path for path in paths)
    sizes = [re.search(r"lockstep of (\d+)", record.environment.path) for record in bench.records()]
    most = min(students, len(others))
    assert most // 2 < max(int(size[1]) if size else 1 for size in sizes) <= most


# ---- killed -----------------------------------------------------------------------------------------------------


def killed_after_checkpoints(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """From now on a run is interrupted as soon as `count` checkpoints have moved to their places."""
    replace, moved = os.replace, 0

    def kill(source: os.PathLike[str], target: os.PathLike[str]) -> None:
        nonlocal moved
        replace(source, target)
        moved += Path(target).name == CHECKPOINT
        if moved == count:
            raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", kill)


@pytest.mark.parametrize(
    "place", [pytest.param(place, marks=[pytest.mark.slow] if place == CROWDED else []) for place in PLACES]
)
def test_killed_in_every_epoch(bench: Kdbench, folder: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kill comes when the checkpoints of all have moved, the last one behind the last epoch, before any record."""
    store = together(bench, folder, place, "fast")
    command = ("cohort.max_students=1000", "checkpoint_seconds=0", "keep=student")
    epochs = next(iter(records_in(bench, store).values())).config["protocol"]["epochs"]
    for _ in range(epochs):
        with monkeypatch.context() as patch:
            killed_after_checkpoints(patch, len(methods_in(place)))
            assert run(bench, place, *command).code == 130
        assert not bench.records()
        assert len(list(bench.work.glob(f"cells/*/{CHECKPOINT}"))) == len(methods_in(place))
    result = run(bench, place, *command)
    assert result.code == 0, result
    equal(bench, store, "results")
    for record in bench.records():
        is_the_student_of(load_student(record.cell.id), record)


@torch.no_grad()
def is_the_student_of(student: Deployed, record: Record) -> None:
    """By the meter of its task it has the record's scores, and from pixels the same logits."""
    data = source_of(record.config["dataset"]).build()
    meter = task_for(data.spec).meter(data.spec)
    meter.experience = max(len(data.spec.experiences) - 1, 0)
    meter.begin()
    epochs, rows = record.config["protocol"]["epochs"], eval_batch(data)
    for batch in ArrayData(data, 1, 0, epochs=epochs, eval_batch_size=rows).test_dataloader():
        meter.update(student.net, batch)
        if student.card.mean:
            pixels = data.test.images[batch.index].permute(0, 3, 1, 2) / 255
            assert torch.allclose(student(pixels), student.net(batch.x), rtol=1e-3, atol=1e-3)
    assert np.isclose(meter.examples(), record.examples, rtol=1e-3).mean() > 0.98, record.cell


def test_a_robust_cell_is_attacked_in_every_way_of_evaluating(
    bench: Kdbench, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning evaluates under ``no_grad`` within training and, after it, would under ``inference_mode``."""
    chosen = ["scratch", "ard"]
    longer = ("protocol.epochs=4", "cohort.max_students=1000", "checkpoint_seconds=0")
    store = folder / "robust-longer"
    assert run(bench, "robust", *longer, f"paths.results={store}", chosen=chosen).code == 0
    with monkeypatch.context() as patch:
        killed_after_checkpoints(patch, 4 * len(chosen))
        assert run(bench, "robust", *longer, "protocol.eval_every=2", chosen=chosen).code == 130
    assert not bench.records()
    assert run(bench, "robust", *longer, "protocol.eval_every=2", chosen=chosen).code == 0
    for name, record in records_in(bench, "results").items():
        whole = records_in(bench, store)[name]
        assert record.metrics
        assert record.metrics.primary == "robust"
        assert (record.metrics.last, record.correct) == (whole.metrics and whole.metrics.last, whole.correct)
        every, rare = whole.curves["test/robust"], record.curves["test/robust"]
        assert None not in every
        assert rare == [None, every[1], None, every[3]]


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_killed_in_the_middle_of_whatever_it_does(bench: Kdbench, folder: Path, place: str) -> None:
    """SIGKILL, at any moment behind a fresh checkpoint."""
    store = together(bench, folder, place, "fast")
    command = ("run", *settings_of(place, methods_in(place)), "cohort.max_students=1000", "checkpoint_seconds=0")
    rng, kills = random.Random(place), 0
    for _ in range(20):
        marks = bench.checkpoints()
        process = bench.spawn(*command)
        while process.poll() is None:
            now = bench.checkpoints()
            if kills < 4 and any(marks.get(path) != moment for path, moment in now.items()):
                time.sleep(0.2 * rng.random())
                process.kill()
                kills += 1
                break
            time.sleep(0.001)
        _, err = process.communicate()
        if process.returncode == 0:
            break
    assert process.returncode == 0, err
    assert kills
    equal(bench, store, "results")
