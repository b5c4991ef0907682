"""What the other rows are compared with: the shipped default, or what is named; and marked in every format."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest
from factories import make_record, rendered
from rich.console import Console

from kdbench.cli import main
from kdbench.errors import UserError
from kdbench.registry import Entry, methods
from kdbench.report import build_tables, compare, render_terminal
from kdbench.report.leaderboard import render as page
from kdbench.results.record import Record
from kdbench.results.store import Store

SHIPPED = {"name": "kd", "_target_": "methods.logits.kd.KD", "temperature": 4.0, "weights": {"ce": 0.1, "kd": 0.9}}
"""As conf/method/kd.yaml has it."""
NAME = "tables/cifar100-resnet56-resnet20-crd240"


@pytest.fixture(scope="module")
def known() -> list[Entry]:
    return methods()


def kd(seed: int, top1: float, temperature: float = 4, **overrides: Any) -> Record:
    config = {"method": {**SHIPPED, "temperature": temperature}}
    return make_record("kd", seed, top1, config=config, info={"cls": "methods.logits.kd.KD"}, **overrides)


def other(seeds: int = 2) -> list[Record]:
    return [
        make_record("at", seed, 71.0, info={"leaf": "intermediate/features", "control": None}) for seed in range(seeds)
    ]


def swept() -> list[Record]:
    """The shipped setting in two seeds; another, that sorts first and is better, in three."""
    return [*(kd(s, 70.0) for s in range(2)), *(kd(s, 75.0, 1) for s in range(3)), *other()]


def header(records: list[Record], known: list[Entry], **named: Any) -> str:
    (table,) = build_tables(records, known, **named)
    return " ".join(table.header)


def test_the_shipped_default_is_compared_with_however_many_seeds_others_have(known: list[Entry]) -> None:
    (table,) = build_tables(swept(), known)
    reference = table.control("kd")
    assert reference is not None
    assert (reference.label, reference.default) == ("kd (temperature=4)", True)
    (at,) = [row for row in table.rows if row.method == "at"]
    assert at.delta_kd is not None
    assert at.delta_kd.mean == pytest.approx(1.0)
    assert "Δ KD is against kd (temperature=4), the shipped default." in header(swept(), known)


def test_a_named_setting_is_compared_with(known: list[Entry]) -> None:
    (table,) = build_tables(swept(), known, named=["kd:temperature=1"])
    (at,) = [row for row in table.rows if row.method == "at"]
    assert at.delta_kd is not None
    assert at.delta_kd.mean == pytest.approx(-4.0)
    for text in ("kd:temperature=1", "kd:method.temperature=1.0,weights.kd=0.9"):
        assert "Δ KD is against kd (temperature=1), as was asked for." in header(swept(), known, named=[text])


def test_without_a_default_the_most_seeds_decide_and_that_is_said(known: list[Entry]) -> None:
    records = [*(kd(s, 70.0, 2) for s in range(3)), *(kd(s, 75.0, 1) for s in range(2)), *other()]
    assert (
        "Δ KD is against kd (temperature=2), of 2 settings the one of most seeds, as none is the shipped default."
        in header(records, known)
    )


def test_the_only_kd_with_other_settings_is_said_to_be_that(known: list[Entry]) -> None:
    records = [*(kd(s, 70.0, 2) for s in range(3)), *other()]
    assert "Δ KD is against kd, which has other settings than the shipped default." in header(records, known)
    assert "Δ KD is against kd." in header([kd(0, 70.0), *other()], known)


def test_a_value_tuned_for_the_pair_is_its_default(known: list[Entry]) -> None:
    (dkd,) = [entry for entry in known if entry.name == "dkd"]
    assert dkd.defaults("resnet32x4", "resnet8x4")["beta"] == 8
    (fitnet,) = [entry for entry in known if entry.name == "fitnet"]
    assert fitnet.defaults("no", "pair")["weights.kd.start"] == 4


def test_a_third_partys_control_is_no_default(known: list[Entry]) -> None:
    config = {"method": {**SHIPPED, "_target_": "mine.KD"}}
    records = [make_record("kd", s, 75.0, config=config, info={"cls": "mine.KD"}) for s in range(3)]
    (table,) = build_tables([*records, *(kd(s, 70.0) for s in range(2)), *other()], known)
    reference = table.control("kd")
    assert reference is not None
    assert reference.cls == "methods.logits.kd.KD"


@pytest.mark.parametrize("text", ["kd:temperature=3", "dkd", "at"])
def test_what_is_no_control_cannot_be_named(known: list[Entry], text: str) -> None:
    with pytest.raises(UserError, match=rf"No control is '{text}'.*: choose from .*kd \(temperature=4\)"):
        build_tables(swept(), known, named=[text])


def test_the_reference_is_marked_in_every_format(known: list[Entry]) -> None:
    records = [*swept(), make_record("scratch", 0, 60.0, info={"leaf": "controls"}, teacher=None)]
    texts = rendered(records, methods=known)
    (line,) = [line for line in texts[f"{NAME}.md"].splitlines() if line.startswith("| kd (temperature=4) |")]
    assert line.split(" | ")[4] == "reference"
    assert texts[f"{NAME}.md"].count("| reference |") == 2  # scratch and KD
    lines = texts[f"{NAME}.tex"].splitlines()
    (line,) = [line for line in lines if line.startswith(r"KD (temperature=\allowbreak\hspace{0pt}4)~")]
    assert r" & \multicolumn{2}{c}{reference} & " in line
    rows = {(r["method"], r["setting"]): r for r in csv.DictReader(io.StringIO(texts[f"{NAME}.csv"]))}
    assert rows["kd", "temperature=4"]["reference"] == "kd"
    assert rows["scratch", ""]["reference"] == "scratch"
    assert rows["kd", "temperature=1"]["reference"] == rows["at", ""]["reference"] == ""
    tables = build_tables(records, known)
    console = Console(file=io.StringIO(), width=120)
    console.print(render_terminal(tables))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    (line,) = [line for line in lines if line.startswith("kd (temperature=4)")]
    assert "reference" in line
    assert page(tables, known).count('"reference"') == 2


def test_across_pairs_take_the_reference_and_the_default(known: list[Entry]) -> None:
    records = swept()
    pair = {"cell": {"student": "resnet8", "pair": "resnet56-resnet8"}}
    for record in swept():
        config = {**record.config, "pair": {"student": "resnet8"}}
        assert record.metrics
        info = {"cls": record.method.cls, "leaf": record.method.leaf, "control": record.method.control}
        records.append(
            make_record(record.cell.method, record.cell.seed, record.metrics.last, config=config, info=info, **pair)
        )
    text = rendered(records, ["csv"], methods=known)["tables/across-pairs/cifar100-crd240.csv"]
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(text))}
    assert rows["kd"]["runs"] == "4"  # two seeds of the default on each pair
    assert rows["at"]["p_better_than_kd"] == "1"


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for record in swept():
        Store(tmp_path).write(record)
    assert main(["report", "--results", str(tmp_path)]) == 0
    (path,) = (tmp_path / "tables").glob("*crd240-*.md")
    text = path.read_text(encoding="utf-8")
    assert "Δ KD is against kd (temperature=4), the shipped default." in text
    assert main(["report", "--results", str(tmp_path), "--reference", "kd:temperature=1"]) == 0
    text = path.read_text(encoding="utf-8")
    assert "Δ KD is against kd (temperature=1), as was asked for." in text
    assert main(["report", "--results", str(tmp_path), "--check"]) == 1
    capsys.readouterr()
    assert main(["report", "--results", str(tmp_path), "--reference", "kd:temperature=9"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_a_comparison_counts_the_gap_from_the_same_scratch(known: list[Entry]) -> None:
    records = [make_record("scratch", s, 60.0, info={"leaf": "controls"}, teacher=None) for s in range(2)]
    text = compare([*swept(), *records], "at", "kd:temperature=4", known)
    assert f"{100 * (71 - 60) / (72.34 - 60):.1f} % of the gap recovered" in text


# ---- roles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("info", "role", "block"),
    [
        ({"cls": "methods.x.X", "paper": "hinton2015distilling"}, "survey", "4.1.1 Softened labels and regularization"),
        ({"cls": "methods.x.X", "paper": "nobody2030nothing"}, "extension", "Extensions"),
        ({"cls": "mine.X", "paper": "hinton2015distilling"}, "third-party", None),
        ({"cls": "mine.X", "paper": None}, "third-party", None),
        ({"cls": "mine.X", "extension": True}, "third-party", None),
    ],
)
def test_only_what_ships_counts_as_the_surveys(info: dict[str, Any], role: str, block: str | None) -> None:
    (table,) = build_tables([make_record("new", info={"control": None, **info})])
    assert table.rows[0].role == role
    assert table.rows[0].block == (block or "Third-party: 4.1.1 Softened labels and regularization")
    assert f'"role":["{role}"]' in page([table], [])
    assert f",{role}," in rendered([make_record("new", info={"control": None, **info})], ["csv"])[f"{NAME}.csv"]
