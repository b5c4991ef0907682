"""Experiments and tours: each composes to cells, and what a tour promises holds before anything trains."""

from __future__ import annotations

import builtins
import re
from collections import Counter
from functools import cache
from typing import Any

import pytest
import yaml
from conftest import Kdbench
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict
from test_cli import one_sentence

from kdbench.cli.tours import data_of
from kdbench.data.embedded import EMBEDDED
from kdbench.engine.cell import Cell, cells_of
from kdbench.engine.job import Job
from kdbench.paths import conf_dir
from kdbench.registry import methods

EXPERIMENTS = sorted(
    path.relative_to(conf_dir() / "experiment").with_suffix("").as_posix()
    for path in (conf_dir() / "experiment").rglob("*.yaml")
)
SMOKE = [name for name in EXPERIMENTS if name.startswith("smoke/")]
DATA_SETS = {path.stem for path in (conf_dir() / "dataset").glob("*.yaml")}
TOURS = {
    path.stem: yaml.safe_load(path.read_text())["hydra"]["sweeper"]["params"]["experiment"].split(",")
    for path in (conf_dir() / "tour").glob("*.yaml")
}


@cache
def job(experiment: str) -> Job:
    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        return Job.of(compose("run", [f"experiment={experiment}"]))


@cache
def cells(experiment: str) -> list[Cell]:
    return cells_of(job(experiment))


def names(experiment: str) -> set[str]:
    """Of the data sets that it needs."""
    found = set()
    for data in data_of(job(experiment)):
        found |= {data["name"], (data.get("scenario") or {}).get("dataset")} - {None}
    return found


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_composes_to_cells_of_known_data(experiment: str) -> None:
    of, found = job(experiment), cells(experiment)
    assert names(experiment) <= DATA_SETS
    assert len({cell.id for cell in found}) == len(found) == len(of.method) * len(set(of.seed)) > 0
    assert [cell.seed for cell in found] == sorted(cell.seed for cell in found)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_control_stands_in_each(experiment: str) -> None:
    roles = {cell.method.control for cell in cells(experiment)}
    # without labels no control can train: those of experiment=data_free are meant
    assert "scratch" in roles or experiment == "data_free_transfer"
    # a teacher that is no teacher of all classes, no task of class scores, or no teacher at all; or no labels
    without = ("unified_data_sources", "incremental", "domains", "depth", "data_free_transfer")
    assert "kd" in roles or experiment.endswith(without)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_the_teacher_lives_in_its_own_world(experiment: str) -> None:
    """A forgotten ``teacher.dataset.scenario`` would train it on coarse images, or on the labels that are wrong."""
    for cell in cells(experiment):
        posed = cell.config["dataset"].get("scenario")
        kind = posed["_target_"].rpartition(".")[2] if posed else ""
        for recipe, _ in (
            cell.teachers if kind in ("Paired", "SemiSupervised", "NoisyLabels", "Transfer", "SomeClasses") else ()
        ):
            assert recipe["dataset"].get("scenario") != posed


@pytest.mark.parametrize("experiment", SMOKE)
def test_smoke_needs_no_file_and_no_committed_store(experiment: str) -> None:
    configs = [cell.config["dataset"] for cell in cells(experiment)]
    environments = {config["name"] for config in configs if "_target_" in config}
    assert names(experiment) <= {*EMBEDDED, *environments}
    assert job(experiment).paths.results.startswith("runs/")


def test_the_tours_go_over_all_of_them() -> None:
    assert set(TOURS) == {"survey", "survey_full", "lite"}
    assert Counter(TOURS["survey"]) == Counter(SMOKE)
    assert Counter(TOURS["lite"]) == Counter(name for name in EXPERIMENTS if name.startswith("lite/"))
    assert all(Counter(tour) == Counter(set(tour)) for tour in TOURS.values())
    assert set(TOURS["survey_full"]) <= set(EXPERIMENTS) - set(SMOKE)


@pytest.mark.parametrize("tour", ["survey", "survey_full"])
def test_every_leaf_that_has_a_method_is_on_the_way(tour: str) -> None:
    seen = {cell.method.leaf for experiment in TOURS[tour] for cell in cells(experiment)}
    assert {entry.leaf for entry in methods()} <= seen


# ---- on the command line ------------------------------------------------------------------------------------------


def test_what_a_tour_does_not_go_with(kd: Kdbench) -> None:
    one_sentence(kd("run", "tour=nope"), "there is no tour 'nope'", "lite, survey, survey_full")
    both = kd("run", "tour=survey,survey_full", "-m")
    one_sentence(both, "tour=survey,survey_full is more than one", "one tour at a")
    one_sentence(kd("run", "tour=survey", "experiment=quickstart"), "leave out experiment=quickstart, or the tour")
    one_sentence(kd("run", "experiment=smoke/dept"), "no experiment 'smoke/dept'", "smoke/depth")


def test_missing_data_are_told_before_anything_trains(kd: Kdbench) -> None:
    result = kd("run", "tour=survey_full", f"dataset.root={kd.root}")
    one_sentence(result, "tour=survey_full needs data that are not prepared: cifar100, ", "`kdbench data prepare NAME`")
    needed = set().union(*map(names, TOURS["survey_full"])) - {*EMBEDDED, "CartPole-v1", "Pendulum-v1"}
    assert set(re.findall(r"[\w-]+", re.findall(r"prepared: ([^;]*);", result.err)[0])) == needed
    assert not kd.results.exists()
    assert "training" not in result.out


def short(monkeypatch: pytest.MonkeyPatch, *experiments: str) -> None:
    """Have tour=survey go over these alone."""
    from kdbench.cli import sweeps, tours

    def prepare(config: Any) -> list[str]:
        with open_dict(config.hydra):
            OmegaConf.update(config, "hydra.sweeper.params.experiment", ",".join(experiments))
        return tours.prepare_tour(config)

    monkeypatch.setattr(sweeps, "prepare_tour", prepare)


def test_what_some_experiment_of_a_tour_does_not_know_is_told_before_the_first_is_begun(
    kd: Kdbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    short(monkeypatch, "smoke/theory", "smoke/reinforcement")
    result = kd("run", "tour=survey", "dataset.per_class=2")
    one_sentence(result, "there is no setting 'dataset.per_class'")
    assert "training" not in result.out


def test_a_family_that_fails_or_lacks_a_library_does_not_stop_the_others(
    kd: Kdbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_gymnasium = builtins.__import__

    def importing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "gymnasium":
            raise ImportError(name)
        return without_gymnasium(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", importing)
    short(monkeypatch, "smoke/reinforcement", "smoke/strictness")
    result = kd("run", "tour=survey", "seed=0", "protocol.epochs=1", "teacher.epochs=1")
    assert result.code == 0, result
    assert "left out: smoke/reinforcement: environments need gymnasium" in result.out
    assert re.search(r"^rkd +1 ", result.out, re.M)
    short(monkeypatch, "smoke/segmentation", "smoke/strictness")
    result = kd("run", "tour=survey", "seed=0", "protocol.epochs=1", "teacher.epochs=1", "method=[rkd]")
    assert result.code == 1
    assert "RKD does not support the task 'segmentation'" in result.out
    assert "0 failed or diverged" in result.out


@pytest.mark.slow
def test_the_tour(kd: Kdbench) -> None:
    """All of it, as a user runs it."""
    result = kd("run", "tour=survey")
    assert result.code == 0, result
    assert re.search(r"^\d+ trained, \d+ already done, 0 failed or diverged\.$", result.out, re.M)
    for method in {cell.name for experiment in SMOKE for cell in cells(experiment)}:
        assert re.search(rf"^{method} .*\d", result.out, re.M), method
    assert any((kd.root / "runs" / "tour" / "tables").glob("*/09-*.md"))
