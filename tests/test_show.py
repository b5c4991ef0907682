"""From a number to its record, to its command, and back."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
import shlex
from collections import defaultdict
from pathlib import Path

import pytest
from conftest import Kdbench
from factories import make_card, make_record
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from test_cli import one_sentence

from kdbench.cli.overrides import readable
from kdbench.commands import overrides_of
from kdbench.engine.cell import Cell, cells_of
from kdbench.engine.job import Job
from kdbench.paths import conf_dir
from kdbench.report import generate
from kdbench.results.record import Record, canonical_json
from kdbench.results.store import Store

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def committed() -> dict[str, Record]:
    return {record.cell.id: record for record in Store(ROOT / "results").load()}


# ---- from a table to its cells --------------------------------------------------------------------------------------


def test_every_row_of_every_csv_names_the_records_behind_it(committed: dict[str, Record]) -> None:
    texts = generate(ROOT / "results", formats=["csv"])
    named = set()
    for path, text in texts.items():
        if path.endswith(("claims.csv", "latency.csv")):  # what others say, and what was timed apart from records
            continue
        for row in csv.DictReader(io.StringIO(text)):
            records = [committed[cell] for cell in row["cells"].split()]
            named |= {record.cell.id for record in records}
            assert {record.cell.method for record in records} == {row["method"]}
            finished = [record for record in records if record.metrics]
            if "across-pairs" in path:
                assert len(finished) == int(row["runs"])
            elif "across-labels" in path:
                assert len(finished) == int(row["n"])
            else:
                assert [record.cell.seed for record in finished] == [int(seed) for seed in row["seeds"].split()]
                assert len(records) - len(finished) == int(row["diverged"])
    assert named == committed.keys()


# ---- from a record to its command -----------------------------------------------------------------------------------


def composed(*overrides: str) -> list[Cell]:
    """As `kdbench run` composes them."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        return cells_of(Job.of(compose("run", readable(overrides))))


@pytest.fixture
def brought(committed: dict[str, Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cards of teachers that were brought, of which records know all that a command needs."""
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path))
    (tmp_path / "teachers").mkdir()
    taught = [each for record in committed.values() for each in record.teachers]
    for sha256, recipe in {info.sha256: recipe for info, recipe in taught if "method" not in recipe}.items():
        (tmp_path / "teachers" / f"{sha256}.json").write_bytes(make_card(recipe, sha256=sha256).dump())


@pytest.mark.usefixtures("brought")
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_commands_of_committed_records_compose_their_cells(committed: dict[str, Record], every: bool) -> None:
    """Those that differ in method and seed alone are composed together, as composing is what takes the time; of the
    others that set the same keys, one with each of its data sets and pairs, or every one."""
    alike: dict[str, list[Record]] = defaultdict(list)
    for record in committed.values():
        alike[canonical_json({**record.config, "seed": None})].append(record)
    grids: dict[tuple[str, ...], list[dict[str, list[str]]]] = defaultdict(list)
    of: dict[tuple[tuple[str, ...], int], dict[str, int]] = defaultdict(dict)
    for records in alike.values():
        *overrides, seed = overrides_of(records[0].config, [info.sha256 for info, _ in records[0].teachers])
        assert seed == f"seed={records[0].cell.seed}"
        name = records[0].cell.method
        method = [override for override in overrides if re.match(r"\+?method[.=]", override)]
        world = tuple(override for override in overrides if override not in method)
        fit = (k for k, grid in enumerate(grids[world]) if grid.get(name, method) == method)
        k = next(fit, len(grids[world]))  # the first in which the method has no other settings
        grids[world] += [{}] if k == len(grids[world]) else []
        grids[world][k][name] = method
        of[world, k] |= {record.cell.id: record.cell.seed for record in records}
    assert sum(map(len, of.values())) == len(committed)
    seen: set[tuple[str, ...]] = set()
    for (world, k), cells in of.items():
        kind = tuple(each if re.match("(dataset|pair)=", each) else each.partition("=")[0] for each in world)
        if not every and kind in seen:
            continue
        seen.add(kind)
        chosen, settings = [], []
        for name, (choice, *more) in grids[world][k].items():
            assert choice in (f"method={name}", "method=[]")
            chosen += [name] if choice != "method=[]" else []
            settings += more
        seeds = sorted(set(cells.values()))
        composed_here = composed(f"method=[{','.join(chosen)}]", *settings, *world, f"seed={seeds}")
        assert cells.items() <= {cell.id: cell.seed for cell in composed_here}.items(), world


SMOKE = sorted(path.stem for path in (conf_dir() / "experiment" / "smoke").glob("*.yaml"))
OTHERS = {
    "an own method": ["method=[]", "+method.mine={_target_: methods.logits.kd.KD, temperature: 2.0}"],
    "a ramp": ["method=kd", "method.kd.weights.kd={start: 0.0, end: 1.0}"],
    "another optimiser": ["protocol.optimizer._target_=torch.optim.Adam", "~protocol.optimizer.momentum"],
    "a rate of its own": ["+protocol.lr_for={resnet*: 0.02}"],
    "later fields": ["protocol.clip_norm=1.0", "protocol.accumulate=2", "protocol.drop_last=true"],
    "other networks": ["pair.student=vgg8", "pair.teacher=torchvision/resnet18"],
    "a folder": ["dataset=folder", "dataset.name=parts", "dataset.val=3", "dataset.classes=[a, 'b c', 'true', '7']"],
    "photographs": [
        "dataset=streamed",
        "dataset.name=photos",
        "dataset.views.size=64",
        "dataset.views.jitter=[0.4,0.4,0,0]",
        "dataset.views.randaugment={magnitude: 7}",
        "dataset.mix={mixup: 0.2}",
    ],
    "an assistant": [
        "teacher=assistant",
        "teacher.teacher.name=resnet56",
        "method@teacher.method=at",
        "teacher.seed=3",
    ],
    "assistants": [
        *("teacher=assistant", "teacher.teacher.name=resnet32", "teacher.teacher.method=${method.kd}"),
        "+teacher.teacher.teacher={name: resnet56, method: {_target_: methods.controls.scratch.Scratch}, epochs: 3}",
    ],
    "a protocol of the teacher's": [
        *("method=average_kd", "teacher.epochs=5", "teachers=[{epochs: null, protocol: null, seed: 2}]"),
        "teacher.protocol={batch_size: 32, optimizer: {_target_: torch.optim.Adam, lr: 0.001}, clip_norm: 1.0}",
    ],
    "data as published": [
        *("dataset.subset={n: 40, order: last}", "dataset.size=16", "dataset.affine={rotate: 15, zoom: 0.1}"),
        *("method=kd", "teacher.dataset.affine=null", "teacher.dataset.subset=null"),
    ],
    "teachers": ["method=average_kd", "teacher.epochs=5", "teachers=[{epochs: null, seed: 2},{name: vgg8}]"],
}


@pytest.mark.parametrize("experiment", SMOKE)
def test_the_command_of_a_cell_of_every_experiment_composes_it(experiment: str) -> None:
    *_, cell = composed(f"experiment=smoke/{experiment}")
    assert [each.id for each in composed(*overrides_of(cell.config))] == [cell.id]


@pytest.mark.parametrize("overrides", OTHERS.values(), ids=OTHERS)
def test_the_command_of_other_settings_composes_their_cell(overrides: list[str]) -> None:
    (cell,) = composed(*overrides, "seed=5")
    assert [each.id for each in composed(*overrides_of(cell.config))] == [cell.id]


def test_a_command_says_no_more_than_differs(committed: dict[str, Record]) -> None:
    assert overrides_of(committed["39eb982f94721711"].config) == [
        *("method=fitnet", "pair=resnet20-resnet8", "dataset=cifar100", "dataset.classes=20", "dataset.per_class=200"),
        *("protocol=lite", "teacher.epochs=16", "teacher.dataset.per_class=null", "seed=0"),
    ]


# ---- shown ----------------------------------------------------------------------------------------------------------


def test_a_committed_record_in_words(kd: Kdbench) -> None:
    store = ROOT / "results"
    result = kd("show", "39eb", "--results", str(store))
    assert result.code == 0, result
    (path,) = (store / "records").glob("*-39eb982f94721711.json")
    raw = path.read_bytes()
    seal = json.loads(raw)["sha256"]
    for words in (
        "fitnet, resnet20-resnet8, cifar100, lite, seed 0: cell 39eb982f94721711",
        "top-1 57.00 % after the last epoch",
        "not here: the data set 'cifar100' is not in",
        f"sha256 60cbefa2d02f; {store}/teachers/cifar100-resnet20-lite-s0-87f7deb4.safetensors",
        f"sha256 {seal[:12]} is of all other fields",
        f"says {hashlib.sha256(raw).hexdigest()[:12]}",
        "Intel(R) Xeon(R) Processor",
        "torch 2.15.0+cu132",
        "weights not kept",
        str(path),
        "kdbench run method=fitnet pair=resnet20-resnet8 dataset=cifar100 dataset.classes=20",
    ):
        assert words in result.out, words


def test_the_command_that_is_shown_finds_the_cell_done(kd: Kdbench) -> None:
    assert kd.run("method=kd", "method.kd.temperature=2").code == 0
    record = kd.record("kd")
    (path,) = Path("results/records").glob("*.json")
    shown = [kd("show", name).out for name in (record.cell.id, record.cell.id[:5], path.name, str(path))]
    assert len(set(shown)) == 1
    assert "; the same here" in shown[0]
    assert f"; its code is that of the record, {(record.method.source or '')[:12]}" in shown[0]
    (command,) = [line.removeprefix("command").strip() for line in shown[0].splitlines() if line.startswith("command")]
    assert "1 already done" in kd(*shlex.split(command)[1:]).out


def test_which_cell_is_meant_must_be_clear(kd: Kdbench) -> None:
    store = ("--results", str(ROOT / "results"))
    one_sentence(kd("show", "kd", *store), "'kd' is no cell's id, which has 16 digits", "column `cells`")
    one_sentence(kd("show", "9", *store), "9 is the beginning of", "give more of its digits")
    one_sentence(kd("show", "0123456789abcdef", *store), "no cell in", "begins with 0123456789abcdef", "--results DIR")
    one_sentence(kd("show", "kd.json", *store), "there is no record kd.json, nor one of that name in")
    one_sentence(kd("show", "9", "--results", "nowhere"), "no cell in nowhere/records")


def test_a_record_that_was_edited_or_is_of_another_version_is_told(kd: Kdbench) -> None:
    path = Store(kd.root).write(make_record())
    text = path.read_text()
    path.write_text(text.replace('"seed": 0', '"seed": 1', 1))
    one_sentence(kd("show", path.name, "--results", "."), "was edited after it was written")
    path.write_text(text.replace('"schema_version": 1', '"schema_version": 2'))
    one_sentence(kd("show", path.name, "--results", "."), "has schema version 2, this kdbench reads 1")


def test_a_record_of_what_is_not_here_is_shown_all_the_same(kd: Kdbench, committed: dict[str, Record]) -> None:
    """A teacher, a data set; then a diverged cell of a method that cannot be imported."""
    result = kd("show", str(Store(kd.root).write(committed["39eb982f94721711"])))
    assert "sha256 60cbefa2d02f; its weights are not here" in result.out
    config = {"method": {"name": "gone", "_target_": "gone.Gone"}, "student": "resnet20", "teacher": None}
    own = make_record("gone", status="diverged", teacher=None, config=config)
    result = kd("show", str(Store(kd.root).write(own)))
    assert result.code == 0, result
    words = ("diverged  the loss term 'kd'", "not here: method 'gone'", "no command of this kdbench gives this cell")
    for each in words:
        assert each in result.out
