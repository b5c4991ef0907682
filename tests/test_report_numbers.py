"""One number, one text: every format says the same, to the digit."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from factories import make_record, rendered

from kdbench.registry import methods
from kdbench.report import Look, build_tables, load_records, render
from kdbench.report.leaderboard.payload import big
from kdbench.report.sheet import COLUMNS as ALL_COLUMNS
from kdbench.results.labels import load_labels
from kdbench.results.record import Record

RESULTS = Path(__file__).parents[1] / "results"
FEATURES = {"leaf": "intermediate/features", "control": None}
NAME = "tables/cifar100-resnet56-resnet20-crd240"
COLUMNS = {
    "gap recovered %": "gap",
    "train min": "minutes",
    "student fwd/": "sf",
    "teacher fwd/": "tf",
    "extra params": "extra",
}
"""How heads of columns begin -> the page's names of them."""


def tied() -> list[Record]:
    """Means that end in a 5, differences that round to zero from below, gaps and costs on a tie."""
    values = {
        "scratch": (60.00, 60.01),  # mean 60.005
        "kd": (40.62, 40.63),  # 40.625
        "a": (40.63, 40.64),  # 40.635
        "b": (60.00, 60.00),  # - scratch: -0.005
        "c": (59.99, 60.00),  # - scratch: -0.01
        "d": (61.234, 61.24),
    }
    records = []
    for method, scores in values.items():
        for seed, top1 in enumerate(scores):
            cost = {"train_seconds": 60 * 1.005, "student_forwards": 100_500, "extra_params": 74_496}
            info = {"leaf": "controls"} if method == "scratch" else {} if method == "kd" else FEATURES
            records.append(make_record(method, seed, top1, info=info, cost=cost))
    return [
        *records,
        make_record("e", 0, 60.005, info=FEATURES),
        make_record("lost", 0, status="diverged", info=FEATURES),
    ]


def markdown_rows(text: str) -> dict[str, dict[str, str]]:
    lines = [line[2:-2].split(" | ") for line in text.splitlines() if line.startswith("| ") and line.count("|") > 3]
    head, *rows = [line for line in lines if not line[0].startswith("**")]
    return {
        re.sub(r"\\(.)", r"\1", row[0]): {key: cell.strip("*") for key, cell in zip(head, row, strict=True)}
        for row in rows
    }


def varying(row: dict[str, str]) -> list[str]:
    """The heads that depend on a table's task: what is measured, and the differences to both controls."""
    return [head for head in row if re.search(r" last( ↓)?$", head) or head.startswith("Δ ")]


def shown(page: str) -> list[tuple[dict[str, Any], str, dict[str, str]]]:
    """Of each row of the page: its table, its label and its texts."""
    (text,) = re.findall(r'<script type="application/json" id="payload">(.*?)</script>', page, re.DOTALL)
    payload = json.loads(text)
    rows, texts = payload["rows"], payload["shown"]
    found = []
    for index, method in enumerate(rows["method"]):
        label = f"{method} ({rows['setting'][index]})" if rows["setting"][index] else method
        table = payload["tables"][rows["table"][index]]
        found.append((table, label, {key: values[index] for key, values in texts.items()}))
    return found


def test_ties_by_hand() -> None:
    rows = markdown_rows(rendered(tied(), ["md"], look=Look(ALL_COLUMNS))[f"{NAME}.md"])
    assert rows["kd"]["top-1 last"].split()[0] == "40.62"
    assert rows["a"]["top-1 last"].split()[0] == "40.64"
    assert rows["scratch"]["top-1 last"].split()[0] == "60.00"
    assert rows["b"]["Δ scratch"].split()[0] == "+0.00"
    assert rows["c"]["Δ scratch"].split()[0] == "-0.01"
    assert rows["b"]["train min"] == "1.00"  # 1.005 minutes
    assert rows["b"]["student fwd/img"] == "1.00"  # 1.005
    assert rows["lost"]["top-1 last"] == "-"


@pytest.mark.parametrize("store", ["tied", "committed"])
def test_the_page_shows_what_the_tables_show(store: str) -> None:
    records = tied() if store == "tied" else load_records(RESULTS)
    known, labels = methods(), load_labels(RESULTS)
    tables = build_tables(records, known, labels)
    texts = render(records, methods=known, labels=labels, look=Look(ALL_COLUMNS))
    compared = 0
    for table, label, page in shown(texts["leaderboard.html"]):
        (name,) = [each.name for each in tables if each.header == table["facts"]]
        row = markdown_rows(texts[f"tables/{name}.md"])[label]
        columns = dict(zip(varying(row), ("reached", "ds", "dk"), strict=True))
        columns |= {head: key for start, key in COLUMNS.items() for head in row if head.startswith(start)}
        assert len(columns) == 3 + len(COLUMNS)
        assert {key: page[key] for key in columns.values()} == {key: row[column] for column, key in columns.items()}
        compared += 1
    assert compared == sum(len(table.rows) for table in tables) > 7


@pytest.mark.parametrize("store", ["tied", "committed"])
def test_rounding_the_csv_gives_what_the_tables_show(store: str) -> None:
    from decimal import Decimal

    records = tied() if store == "tied" else load_records(RESULTS)
    texts = render(records, ["md", "csv"], look=Look(ALL_COLUMNS))
    compared = 0
    for name, text in texts.items():
        if name.count("/") != 1 or not name.endswith(".csv"):
            continue
        rows = markdown_rows(texts[name.replace(".csv", ".md")])
        for row in csv.DictReader(io.StringIO(text)):
            label = f"{row['method']} ({row['setting']})" if row["setting"] else row["method"]
            measure = row.get("measure", "top1").split()[0]
            reached, scratch, _ = varying(rows[label])
            for key, column in ((measure, reached), ("delta_scratch", scratch), ("train_minutes", "train min")):
                if row[key]:
                    told = Decimal(rows[label][column].split()[0])
                    assert told == Decimal(row[key]).quantize(told)  # half to even
                    assert -told.as_tuple().exponent >= 2
                    compared += 1
    assert compared > 15


def test_latex_has_the_same_digits() -> None:
    texts = rendered(tied(), ["md", "tex"], look=Look(ALL_COLUMNS, "text"))
    compared = 0
    for label, row in markdown_rows(texts[f"{NAME}.md"]).items():
        lines = texts[f"{NAME}.tex"].splitlines()
        (line,) = [line for line in lines if line.startswith((f"{label} &", f"{label}~"))]
        line = re.sub(r"\\cite\{\w+\}|\\phantom\{\d\}|\\multicolumn\{2\}", "", line)
        shown = re.findall(r"[+-]?\d+(?:\.\d+)?", line)
        said = [text.replace("(one seed)", "").replace(",", "") for text in list(row.values())[1:]]
        assert shown == re.findall(r"[+-]?\d+(?:\.\d+)?", " ".join(said))
        compared += len(shown)
    assert compared > 50


def test_counts_of_the_page() -> None:
    assert [big(value) for value in (0, 999, 1000, 74_496, 278_324, 41_000_000, 1_234_500_000)] == [
        "0", "999", "1.00 k", "74.5 k", "278 k", "41.0 M", "1.23 G",
    ]  # fmt: skip


# ---- minutes --------------------------------------------------------------------------------------------------------


def timed(*minutes: float) -> list[Record]:
    return [make_record("kd", seed, cost={"train_seconds": 60 * m}) for seed, m in enumerate(minutes)]


def test_minutes_are_a_median() -> None:
    (table,) = build_tables(timed(1.0, 1.1, 1.9))
    assert table.rows[0].train_minutes == pytest.approx(1.1)
    (table,) = build_tables(timed(1.0, 2.0))
    assert table.rows[0].train_minutes == pytest.approx(1.5)


def test_a_pause_is_not_shown_as_a_cost() -> None:
    records = timed(1.0, 1.1, 16.9)
    texts = rendered(records)
    assert "train min" not in markdown_rows(texts[f"{NAME}.md"])["kd"]
    assert "No minutes" not in texts[f"{NAME}.md"]
    texts = rendered(records, look=Look(["n", "minutes"]))
    assert markdown_rows(texts[f"{NAME}.md"])["kd"] == {"Method": "kd", "n": "3", "train min": "-"}
    assert "- No minutes where seeds differ by more than 2x, which is the machine's doing: kd." in texts[f"{NAME}.md"]
    (row,) = csv.DictReader(io.StringIO(texts[f"{NAME}.csv"]))
    assert row["train_minutes"] == ""
    ((_, _, page),) = shown(texts["leaderboard.html"])
    assert (page["minutes"], page["fwd"]) == ("-", "2.00")
    assert 'cost: "fwd",' in texts["leaderboard.html"]  # what the plot is drawn over at first


def test_one_seed_from_scratch_reads_well() -> None:
    (table,) = build_tables([make_record("scratch", 0, 50.0, info={"leaf": "controls"}, teacher=None)])
    assert table.header[1] == "Student: resnet20, from scratch 50.00 % (one seed)."
