"""Groups of published numbers: each arm is a cell, whoever composes it, and the command line goes over them."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Kdbench
from factories import make_record
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from test_cli import one_sentence

from kdbench.cli.reproductions import expanded, forget_arms
from kdbench.engine.arms import cell_config, records_of_arms
from kdbench.engine.cell import Cell, cells_of
from kdbench.engine.job import Job
from kdbench.errors import UserError
from kdbench.paths import conf_dir
from kdbench.report.claims import render_claims
from kdbench.report.reproductions import HEADER, groups_of
from kdbench.reproductions import Reproduction, files, find, load_reproductions, read
from kdbench.results.claims import load_claims
from kdbench.results.record import Record, cell_id

DATA_SETS = {path.stem for path in (conf_dir() / "dataset").glob("*.yaml")}


@pytest.fixture(autouse=True)
def _arms_are_forgotten() -> Iterator[None]:
    """As by each command: hundreds of arms would slow down all tests to come."""
    yield
    forget_arms()


def cell(group: Reproduction, arm: str) -> Cell:
    (found,) = cells_of(Job.of(OmegaConf.create(group.config(arm))))
    return found


@pytest.mark.parametrize("name", files())
def test_each_arm_is_a_cell_of_its_own(name: str) -> None:
    group = find(name)
    cells = [cell(group, arm) for arm in group.arms]
    assert len({each.id for each in cells}) == len(cells)
    assert {each.config["dataset"]["name"] for each in cells if "_target_" not in each.config["dataset"]} <= DATA_SETS


@pytest.mark.parametrize("name", files())
def test_hydra_composes_the_same(name: str) -> None:
    group = find(name)
    arm = list(group.arms)[-1]
    (chosen,) = expanded([f"reproduction={name}/{arm}"])
    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        cells = cells_of(Job.of(compose("run", [chosen])))
    assert [each.seed for each in cells] == list(range(group.seeds))
    assert cells[0] == cell(group, arm)


GROUP: dict[str, Any] = {
    "title": "Digits",
    "source": "someone/kd@1234567 README",
    "claimed": "KD is better.",
    "selection": "the last epoch of one run",
    "filled_in": {"batch": "64; nothing is said"},
    "seeds": 2,
    "common": {
        "pair": "resnet20-resnet8x0.25",
        "dataset": "digits",
        "dataset.per_class": 4,
        "protocol": {"name": "tiny", "epochs": 2, "optimizer": {"_target_": "torch.optim.Adam", "lr": 0.01}},
        "teacher.epochs": 1,
        "method.kd.temperature": 2.0,
    },
    "arms": {"scratch": {"method": "scratch"}, "kd": {"protocol.epochs": 3, "method": ["kd"]}},
}


def made(folder: Path, **changes: Any) -> Path:
    path = folder / "reproduction" / "mine.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(GROUP | changes), encoding="utf-8")
    return path


def test_settings_of_an_arm_come_before_the_common_ones_and_a_mapping_writes_a_group_out(tmp_path: Path) -> None:
    group = read(made(tmp_path))
    config = cell(group, "kd").config
    assert config["protocol"]["optimizer"] == {"_target_": "torch.optim.Adam", "lr": 0.01}  # no momentum of crd240's
    assert (config["protocol"]["epochs"], cell(group, "scratch").config["protocol"]["epochs"]) == (3, 2)
    assert config["method"]["temperature"] == 2.0
    assert config["teacher"]["protocol"]["epochs"] == 1
    assert set(group.config("scratch")["method"]) == {"scratch"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seeds": 0}, "seeds=0: input should be greater than or equal to 1"),
        ({"colour": "red"}, "colour='red': extra inputs are not permitted"),
        ({"arms": {}}, "arms={}"),
        ({"arms": {"KD": {}}}, "arms.KD"),
        ({"arms": {"kd": {}}}, "arm 'kd' has no method"),
        ({"arms": {"kd": {"method": ["kd", "dkd"]}}}, "arm 'kd' has 2 methods"),
        ({"arms": {"kd": {"method": "kd", "seed": 3}}}, "arm 'kd' sets seed"),
        ({"arms": {"kd": {"method": "kd", "scenario": {"tasks": 2}}}}, "write it as dataset.scenario"),
    ],
)
def test_a_bad_group_is_told_in_one_sentence(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    path = made(tmp_path, **changes)
    with pytest.raises(UserError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: ")
    assert said in str(error.value)


def test_a_choice_that_there_is_not_is_told(tmp_path: Path) -> None:
    group = read(made(tmp_path, arms={"kd": {"method": "kdd"}}))
    with pytest.raises(UserError, match="mine/kd: there is no method 'kdd': did you mean kd"):
        group.config("kd")
    made(tmp_path).write_text("- a list")
    with pytest.raises(UserError, match="no mapping"):
        read(tmp_path / "reproduction" / "mine.yaml")
    (tmp_path / "reproduction" / "mine.yaml").write_text("title: [")
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "reproduction" / "mine.yaml")


# ---- what the report says of it --------------------------------------------------------------------------------------


def as_cell(record: Record, config: dict[str, Any]) -> Record:
    """A made record, of the cell of that config."""
    names = {
        "id": cell_id(config),
        "method": config["method"]["name"],
        "student": config["student"],
        "dataset": config["dataset"]["name"],
    }
    data = record.model_dump()
    return Record.model_validate(data | {"config": config, "cell": data["cell"] | names})


def run(arm: str, *values: float) -> list[Record]:
    """Records of an arm of keras_example, as if it had been trained."""
    config = dict(cell_config(find("keras_example"), arm))
    return [as_cell(make_record("kd", seed, value), config | {"seed": seed}) for seed, value in enumerate(values)]


KERAS = [*run("scratch", 97.7, 97.8, 97.9), *run("kd", 97.0, 97.1, 97.2), *run("label_smoothing", 97.9, 97.8, 97.9)]


def test_records_join_the_arm_whose_cell_they_are() -> None:
    other = as_cell(make_record("kd", 7), KERAS[3].config | {"seed": 7, "teacher": None})
    arms = records_of_arms(["keras_example"], [*KERAS, other])
    assert {name: len(records) for name, records in arms.items()} == {
        "keras_example/scratch": 3, "keras_example/kd": 3, "keras_example/label_smoothing": 3
    }  # fmt: skip
    assert records_of_arms([], KERAS) == {}
    with pytest.raises(UserError, match="there is no reproduction 'nope'"):
        records_of_arms(["nope"], KERAS)


def test_a_group_tells_what_was_claimed_run_and_found() -> None:
    group = next(each for each in groups_of(load_claims(), KERAS)[1] if each.reproduction.name == "keras_example")
    rows = {row[0]: dict(zip(HEADER, row, strict=True)) for row in group.rows}
    assert list(rows) == ["teacher", "scratch", "kd", "label_smoothing"]
    kd = rows["kd"]
    assert (kd["Claimed"], kd["Ours, last epoch"], kd["n"]) == ("96.92", "97.10 ± 0.25", "3")
    assert kd["Gain (claimed / ours)"] == "-0.86 / -0.70 ± 0.00 over scratch"
    assert kd["Verdict"] == "reproduced"
    assert rows["teacher"]["Verdict"] == "untested"
    assert (rows["label_smoothing"]["Claimed"], rows["label_smoothing"]["Ours, last epoch"]) == ("–", "97.87 ± 0.14")
    claimed, trained, filled, came_out, said = group.sentences
    assert "keras-team/keras-io@0412848" in claimed
    assert trained == "3 of its 4 arms (label_smoothing of them not the source's) were trained, with 3 seeds each."
    assert filled == "The source says all that it takes."
    assert "kd 97.10 ± 0.25 where 96.92 is printed" in came_out
    assert said == "Of 2 numbers: 2 reproduced."
    open_ = group.reproduction.model_copy(update={"filled_in": {"batch size": "32, Keras's own", "seed": "ours"}})
    incomplete = replace(group, reproduction=open_)
    assert incomplete.sentences[2] == "The source leaves open: batch size and seed; what was filled in stands below."
    assert incomplete.rows[2][HEADER.index("Verdict")] == "reproduced, protocol incomplete"


def test_the_page_of_claims_begins_with_what_was_trained_again() -> None:
    texts = render_claims(*groups_of(load_claims(), KERAS))
    assert texts == render_claims(*groups_of(load_claims()[::-1], KERAS[::-1]))
    markdown = texts["claims.md"]
    assert "Trained again: 2 published numbers in 1 group: 2 reproduced." in markdown
    assert markdown.index("## Knowledge distillation, as") < markdown.index("<summary>Coverage</summary>")
    rows = list(csv.DictReader(io.StringIO(texts["claims.csv"])))
    assert [row["reproduction"] for row in rows] == ["keras_example/scratch", "keras_example/kd"]
    assert float(rows[1]["claimed_gain"]) == pytest.approx(-0.86)


# ---- on the command line ---------------------------------------------------------------------------------------------


def test_what_is_asked_for_becomes_a_sweep_over_arms() -> None:
    name, group = next(iter(load_reproductions().items()))
    words = [f"{name}/{arm}" for arm in group.arms]
    assert expanded([f"reproduction={name}", "seed=0"]) == [f"reproduction={','.join(words)}", "seed=0", "--multirun"]
    assert expanded([f"reproduction={words[0]}"]) == [f"reproduction={words[0]}"]
    assert expanded(["-m", f"reproduction={words[0]},{words[1]}"]) == ["-m", f"reproduction={words[0]},{words[1]}"]
    assert expanded(["reproduction=null", "seed=0"]) == ["reproduction=null", "seed=0"]


def test_unknown_names_and_what_does_not_go_together(kd: Kdbench) -> None:
    name = "keras_example"
    one_sentence(kd("run", "reproduction=nope"), "there is no reproduction 'nope'")
    one_sentence(kd("run", f"reproduction={name}/nope"), f"reproduction {name} has no arm 'nope': choose from ")
    one_sentence(kd("run", f"reproduction={name}", "tour=survey"), "leave out tour=survey, or the reproduction")
    shown = [kd("run", word, "--cfg", "job").out for word in (f"reproduction={name}", f"reproduction={name}/teacher")]
    assert shown[0] == shown[1] != ""  # the first arm


def test_a_group_of_ones_own_is_trained_arm_by_arm(kd: Kdbench) -> None:
    made(kd.root / "conf", arms={"scratch": {"method": "scratch"}, "softer": {"method": "ls"}})
    assert "2 trained, 0 already done, 0 failed" in kd("run", "--config-dir", "conf", "reproduction=mine", "seed=1").out
    assert [(each.cell.method, each.cell.seed) for each in kd.records()] == [("ls", 1), ("scratch", 1)]
