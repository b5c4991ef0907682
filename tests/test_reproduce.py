"""`kdbench reproduce`: a cell again, beside its record, and whether it is the same."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Kdbench
from factories import make_measured, make_record
from test_cli import one_sentence
from test_grid import numbers

import kdbench
from kdbench.measures import Measure
from kdbench.results.record import Record, digest, dump, pack_correct, parse
from kdbench.results.reproduced import differing, judge, route_of
from kdbench.results.stats import prediction_interval
from kdbench.results.store import Store

OTHER: dict[str, Any] = {"environment": {"device": "another"}}


def edited(path: Path, **changes: Any) -> Record:
    """A record's file as if its cell had been trained elsewhere, sealed anew."""
    data = json.loads(path.read_text())
    del data["sha256"]
    for key, value in changes.items():
        data[key] = {**data[key], **value} if isinstance(value, dict) else value
    record = parse(json.dumps({**data, "sha256": digest(data)}))
    path.write_text(dump(record))
    return record


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and ".locks" not in path.parts}


# ---- the command ----------------------------------------------------------------------------------------------------


def test_a_cell_is_the_same_bits_again(kd: Kdbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the teacher beside the record, though the user's cache has none; the store is left as it is."""
    assert kd.run("method=[scratch,kd]", "engine.route=plain").code == 0
    record, before = kd.record("kd"), files(kd.results)
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "empty"))
    for _ in range(2):  # trained each time
        result = kd("reproduce", record.cell.id[:6])
        assert result.code == 0, result
        assert "as recorded, from results/teachers/digits-resnet20-lite" in result.out
        assert "training kd" in result.out
        assert "training teacher" not in result.out
        assert "500 of 500 test images (100.00 %) have the same score." in result.out
        assert "reproduced: measures, curves and examples are the same bits." in result.out
    assert files(kd.results) == before
    again = Store("runs/reproduce").get(record.cell.id)
    assert again
    assert numbers(again) == numbers(record)
    assert again.environment.path == "plain"
    assert kdbench.load_student(record.cell.id, "runs/reproduce").card.accuracy == again.metrics.last


def test_what_is_other_is_told_and_judged(kd: Kdbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kd.run("method=kd", "seed=[0,1]").code == 0
    record = kd.record("kd")
    path = next((kd.results / "records").glob(f"*-{record.cell.id}.json"))
    # a teacher that is gone, and a record that says it came from another processor
    shutil.rmtree(kd.results / "teachers")
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "empty"))
    edited(path, environment={"device": "another processor"}, teacher={"sha256": "0" * 64})
    result = kd("reproduce", path.name, "--out", "elsewhere")
    assert "the record's resnet20 000000000000 is not to be found, so one is trained by its recipe" in result.out
    assert "training teacher" in result.out
    assert re.search(r"other +processor +another processor, now ", result.out)
    assert re.search(r"same +torch ", result.out)
    assert result.code == 0  # the same bits all the same
    assert record.metrics
    turned = pack_correct(~np.asarray(record.examples)).model_dump()  # as if other numbers had been recorded
    edited(path, metrics={"last": 100 - record.metrics.last, "oracle": None}, correct=turned)
    result = kd("reproduce", path.name, "--out", "elsewhere")
    assert "0 of 500 test images (0.00 %) have the same score." in result.out
    assert "Other than the record's: processor, teacher; so equal bits were not to be expected" in result.out


def test_where_equal_bits_were_to_be_expected_no_others_will_do(kd: Kdbench) -> None:
    assert kd.run("method=scratch").code == 0
    (path,) = (kd.results / "records").glob("*.json")
    record = kd.record("scratch")
    edited(path, curves={"loss/ce": [1.0, 1.0]})
    result = kd("reproduce", record.cell.id)
    assert result.code == 1
    assert "so equal bits were to be expected (processors of one name may differ" in result.out
    assert result.out.endswith("not reproduced.\n")


def test_what_cannot_be_reproduced_is_one_sentence(kd: Kdbench) -> None:
    assert kd.run("method=scratch").code == 0
    record = kd.record("scratch")
    (path,) = (kd.results / "records").glob("*.json")
    one_sentence(
        kd("reproduce", record.cell.id, "--out", "results"), "--out results is the store that holds the record"
    )
    one_sentence(kd("reproduce", "fff"), "no cell in results/records has an id that begins with fff")
    edited(path, dataset={"sha256": "0" * 64})
    one_sentence(kd("reproduce", record.cell.id), "the record is of other data (000000000000, here 5c8a13e23831)")
    committed = Path(__file__).parents[1] / "results"
    one_sentence(kd("reproduce", "39eb", "--results", str(committed)), "kdbench data prepare cifar100")
    gone = make_record("gone", config={"method": {"name": "gone", "_target_": "gone.Gone"}})
    one_sentence(kd("reproduce", str(Store(kd.root).write(gone))), "method 'gone': cannot import gone.Gone")


def test_a_cell_that_diverged_diverges_again(kd: Kdbench) -> None:
    assert kd.run("method=scratch", "protocol.optimizer.lr=1e8").code == 1
    result = kd("reproduce", kd.record("scratch").cell.id)
    assert result.code == 0, result
    assert "reproduced: it diverges again (the loss term 'ce'" in result.out


# ---- the verdict ----------------------------------------------------------------------------------------------------


def test_a_further_seed_lies_in_the_prediction_interval() -> None:
    """By hand: mean 2, s = 1, t(0.975; 2) = 4.302653, √(1 + 1/3)."""
    half = 4.302653 * (4 / 3) ** 0.5
    assert prediction_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - half, 2 + half), rel=1e-6)
    assert prediction_interval([1.0]) is None


@pytest.mark.parametrize(
    ("now", "seeds", "other", "reproduced"),
    [
        (70.0, [70.0], {}, True),
        (70.0, [70.0], OTHER, True),
        (71.0, [70.0, 71.0, 72.0], {}, False),  # equal bits were to be expected
        (71.0, [70.0, 71.0, 72.0], OTHER, True),
        (75.9, [70.0, 71.0, 72.0], OTHER, True),  # 71 + 4.968
        (76.0, [70.0, 71.0, 72.0], OTHER, False),
        (70.1, [70.0], OTHER, False),  # one seed: ten examples, all of them better
        (70.05, [70.0], OTHER, True),  # five: p = 2 / 32
    ],
)
def test_a_verdict(now: float, seeds: list[float], other: dict[str, Any], reproduced: bool) -> None:
    found = judge(make_record(), make_record(top1=now, **other), seeds)
    assert found.reproduced is reproduced
    assert found.equal is (now == 70.0)
    assert found.other == (("processor",) if other else ())
    assert found.alike == (10_000 - round(100 * (now - 70)), 10_000)


def test_measures_that_came_later_do_not_tell_an_old_record_from_its_like() -> None:
    old, new = make_record(), make_record(metrics={"others": {"nll": 1.0}}, curves={"test/nll": [1.0]})
    assert judge(old, new, [70.0]).equal
    assert not judge(new, old, [70.0]).equal
    assert not judge(new, make_record(metrics={"others": {"nll": 1.1}}, curves={"test/nll": [1.0]}), [70.0]).equal
    assert not judge(new, make_record(metrics={"others": {"nll": 1.0}}, curves={"test/nll": [1.1]}), [70.0]).equal


def test_scores_and_measures_of_the_whole_are_judged_too() -> None:
    error = Measure("RMSE", higher=False, unit="m")
    a, b = (make_measured("kd", 0, value, error, [value] * 8, **OTHER) for value in (1.0, 2.0))
    here = make_measured("kd", 0, 1.0, error, [1.0] * 8)
    assert judge(here, a, [1.0]).equal
    assert not judge(here, b, [1.0]).reproduced  # p = 2 / 256
    assert judge(here, b, [1.0, 2.0]).reproduced
    whole = [make_measured("kd", 0, value, error, **OTHER) for value in (1.0, 1.5)]
    assert (judge(*whole, [1.0]).p, judge(*whole, [1.0]).reproduced) == (None, False)


def test_what_changes_no_bit_is_the_same_route() -> None:
    fast = "channels-last, fused; teacher folded bf16"
    assert route_of(f"{fast}, views cached; lockstep of 14") == route_of(f"{fast}; alone") == fast
    assert route_of("plain; lockstep of 2") == route_of("plain") == "plain"
    compiled = "channels-last, fused, compiled; teacher folded bf16"
    assert route_of(f"{compiled}, views cached; alone") != route_of(f"{compiled} compiled; alone")
    assert differing(make_record(), make_record(environment={"path": "plain; lockstep of 3"})) == []
    assert differing(make_record(), make_record(environment={"torch": "2.7", "path": fast})) == ["torch", "route"]
    assert differing(make_record(), make_record(teacher={"sha256": "b" * 64})) == ["teacher"]
