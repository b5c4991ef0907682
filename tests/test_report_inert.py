"""What comes from data is shown, and does nothing: no import, no markup, no formula, nothing on the terminal."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import Kdbench
from factories import make_record
from rich.console import Console

from kdbench.cli.console import plain
from kdbench.errors import UserError
from kdbench.report import build_tables, compare, render, render_terminal
from kdbench.results.claims import load_claims
from kdbench.results.record import Record, digest, dump, parse
from kdbench.results.store import Store
from kdbench.teaching.teachers import Card

MARKER = "imported.txt"
TRAP = f"import pathlib\npathlib.Path(__file__).with_name('{MARKER}').write_text('')\nclass X:\n    survey = {{}}\n"


def trapped(method: str, seed: int, **overrides: Any) -> Record:
    """A record that names the module `trap` wherever a record names something."""
    target = {"_target_": "trap.X"}
    config = {
        "method": {**target, "name": method, "net": target},
        "dataset": {"name": "digits", **target},
        "protocol": {"optimizer": target, **target},
        "teacher": {"method": target, "dataset": target},
        "student": "trap.X",
        "logger": target,
    }
    cell = {"student": "trap.X", "pair": "trap.X-trap.X", "teacher": "trap.X", "dataset": "digits"}
    info = {"cls": "trap.X", "control": method if method in ("scratch", "kd") else None}
    return make_record(method, seed, cell=cell, config=config, info={**info, **overrides})


@pytest.fixture
def trap(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> Kdbench:
    """A store of such records; the module lies beside it and could be imported."""
    (kd.root / "trap.py").write_text(TRAP)
    monkeypatch.syspath_prepend(str(kd.root))
    for seed in range(2):
        for method in ("scratch", "kd", "mine"):
            Store(kd.results).write(trapped(method, seed))
    return kd


def test_the_trap_works(trap: Kdbench) -> None:
    import trap as module  # type: ignore[import-not-found]

    assert (trap.root / MARKER).exists()
    del sys.modules[module.__name__]


def test_nothing_that_a_record_names_is_imported(trap: Kdbench) -> None:
    assert trap("report").code == 0
    assert trap("report", "--check").code == 0
    assert trap("compare", "kd", "scratch").code == 0
    assert trap.run("method=scratch").code == 0  # into the same store
    assert trap.run("method=scratch").code == 0
    assert len(trap.records()) == 7
    assert not (trap.root / MARKER).exists()
    assert "trap" not in sys.modules


def test_nothing_that_a_teachers_card_names_is_imported(trap: Kdbench) -> None:
    folder = trap.results / "teachers"
    folder.mkdir()
    assert trap.run("method=kd").code == 0
    (card,) = folder.glob("*.json")
    change_recipe(card, method={"_target_": "trap.X"}, optimizer={"_target_": "trap.X", "lr": 1.0})
    assert trap("teacher", "list").code == 0
    trap.run("method=kd", "seed=1")
    assert not (trap.root / MARKER).exists()


@pytest.mark.parametrize("args", [["report"], ["report", "--check"], ["compare", "kd", "scratch"], ["teacher", "list"]])
def test_what_only_reads_does_not_look_into_the_current_folder(kd: Kdbench, args: list[str]) -> None:
    Store(kd.results).write(make_record("kd", 0))
    kd(*args)
    assert str(kd.root) not in sys.path


def change_recipe(path: Path, method: Mapping[str, Any] | None = None, **protocol: Any) -> None:
    """A card as a stranger may write it: another recipe, and the seal that belongs to it."""
    card = Card.parse(path.read_bytes())
    recipe = {
        **card.recipe,
        "method": method or card.recipe["method"],
        "protocol": {**card.recipe["protocol"], **protocol},
    }
    path.write_bytes(card.model_copy(update={"recipe": recipe}).dump())


# ---- survey entries -------------------------------------------------------------------------------------------------


def test_a_run_keeps_what_its_class_says_for_the_surveys_columns(kd: Kdbench) -> None:
    (kd.root / "mine.py").write_text(
        "from methods.controls.scratch import Scratch\n"
        "class Mine(Scratch):\n"
        "    control = None\n"
        "    leaf = 'intermediate/features'\n"
        "    title = '[/x] [v2] mine'\n"
        "    survey = {'distance': 'cosine'}\n"
    )
    group = kd.root / "conf" / "method"
    group.mkdir(parents=True)
    (group / "mine.yaml").write_text("# @package method.mine\n_target_: mine.Mine\nweights: {ce: 1.0}\n")
    assert kd.run("--config-dir", str(kd.root / "conf"), "method=mine").code == 0
    assert kd.record("mine").method.survey == {"distance": "cosine"}
    del sys.modules["mine"]
    assert kd("report").code == 0
    (path,) = (kd.results / "tables").rglob("04-one-teacher.csv")
    (row,) = csv.DictReader(path.open(encoding="utf-8"))
    assert (row["survey_distance"], row["role"]) == ("cosine", "third-party")
    assert row["block"] == "Third-party: 4.2 Knowledge from the intermediate layers"
    assert "mine" not in sys.modules
    listed = kd("methods", "--config-dir", str(kd.root / "conf"))
    assert "[/x] [v2] mine (third-party)" in listed.out
    assert kd("report", "--config-dir", str(kd.root / "conf"), "--check").code == 1  # the page now lists its title
    assert kd("report", "--config-dir", "nowhere").err.count("\n") == 1


# ---- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["method", "pair", "student", "teacher", "dataset", "protocol"])
@pytest.mark.parametrize("name", ["a\x1b[31mb", "a\nb", "a\x00", "a\x07", "\ta", "a\x9bb"])
def test_a_record_with_control_characters_in_a_name_is_refused(part: str, name: str) -> None:
    data = json.loads(dump(make_record()))
    data["cell"][part] = name
    with pytest.raises(ValueError, match=rf"is not a valid record \(cell.{part}: .*control characters"):
        parse(sealed(data))


@pytest.mark.parametrize("part", ["cls", "leaf", "paper"])
def test_so_is_one_whose_method_says_them_of_itself(part: str) -> None:
    data = json.loads(dump(make_record()))
    data["method"][part] = "a\x1b]0;title\x07"
    with pytest.raises(ValueError, match=rf"method.{part}: .*control characters"):
        parse(sealed(data))


def sealed(data: dict[str, Any]) -> str:
    body = {key: value for key, value in data.items() if key != "sha256"}
    return json.dumps(body | {"sha256": digest(body)})


def test_a_name_that_no_record_could_hold_is_told_before_training(kd: Kdbench) -> None:
    told = kd.run("method=scratch", 'protocol.name="a\x1b[31mb"')
    assert told.code == 1
    assert len(told.messages) == 1
    assert "control characters" in told.messages[0]
    assert not kd.work.exists()


FORMULAS = ["=HYPERLINK(1)", "+1+cmd|' /C calc'!A0", "-1+1", "@SUM(A1)"]


@pytest.mark.parametrize("name", FORMULAS)
def test_no_cell_of_a_csv_is_a_formula(name: str) -> None:
    info = {"leaf": name, "cls": name, "control": None, "survey": {"distance": name}}
    records = [make_record(name, seed, 69.0 + seed, info=info, cell={"pair": name}) for seed in range(2)]
    records += [make_record("kd", seed, 70.0) for seed in range(2)]
    records += [make_record("at", 0, config={"method": {name: name}}, info=info | {"leaf": "intermediate/features"})]
    records += [make_record("at", 1, info=info | {"leaf": "intermediate/features"})]
    for path, text in render(records, ["csv"]).items():
        for row in csv.reader(io.StringIO(text)):
            for cell in row:
                if cell[:1] in "=+-@":
                    assert cell == "" or isinstance(float(cell), float), path
    texts = "".join(render(records, ["csv"]).values())
    assert f"'{name}" in texts
    assert ",-0.5," in texts  # a number is a number: the mean difference to KD


ESCAPE = "\x1b]0;title\x07\x00\u202e"


def test_nothing_in_a_config_acts_on_the_terminal_or_in_a_file() -> None:
    """A setting's value may be any text, a reason any message."""
    records = [make_record("kd", 0), make_record("kd", 1, config={"method": {f"a{ESCAPE}": f"b{ESCAPE}"}})]
    records.append(make_record("at", 0, config={"protocol": {"note": ESCAPE}}, environment={"device": ESCAPE}))
    console = Console(file=io.StringIO(), width=300, force_terminal=False)
    console.print(render_terminal(build_tables(records)))
    texts = {"terminal": console.file.getvalue(), **render(records)}  # type: ignore[attr-defined]
    for name, text in texts.items():
        found = {c for c in text if (ord(c) < 32 and c != "\n") or c in "\x7f\u202e"}
        assert found == set(), name
    assert r"b\x1b]0;title\x07\x00\u202e" in texts["terminal"]


def test_bidirectional_overrides_are_written_out() -> None:
    name = "at\u202edkd\u2066"
    text = "".join(render([make_record(name, 0, info={"control": None})], ["md", "csv", "tex"]).values())
    assert not set("\u202e\u2066") & set(text)


def test_what_is_printed_does_not_act_on_the_terminal(kd: Kdbench) -> None:
    Store(kd.results).write(make_record("kd", 0))
    Store(kd.results).write(make_record("kd", 1, config={"method": {"note": "\x1b[31m"}}))
    shown = kd("compare", "kd", "kd")
    assert "\x1b" not in shown.out
    told = kd("compare", "kd\x1b[31m", "kd")
    assert told.code == 1
    assert "\x1b" not in told.err
    assert r"kd\x1b[31m" in told.err


def test_markup_in_a_teachers_card_is_text(kd: Kdbench) -> None:
    assert kd.run("method=kd").code == 0
    (card,) = (kd.results / "teachers").glob("*.json")
    change_recipe(card, name="[/x] [v2]\x1b[31m")
    listed = kd("teacher", "list")
    assert listed.code == 0
    assert r"[/x] [v2]\x1b[31m" in listed.out
    assert plain("[/x]").plain == "[/x]"


def test_claims_of_a_spreadsheet_begin_with_a_mark(tmp_path: Path) -> None:
    claims = Path(__file__).parents[1] / "results" / "claims" / "winycg-MCL.csv"
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "excel.csv").write_bytes(b"\xef\xbb\xbf" + claims.read_bytes())
    marked = load_claims(tmp_path)
    (tmp_path / "claims" / "excel.csv").write_bytes(claims.read_bytes())
    assert marked == load_claims(tmp_path) != []


def test_no_control_is_an_unknown_reference() -> None:
    with pytest.raises(UserError):
        build_tables([make_record("at", 0, info={"control": None})], named=["at"])
    assert compare([make_record("kd", 0), make_record("scratch", 0, info={"leaf": "controls"})], "kd", "scratch")
