"""From a number to its record, to its command, and back."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest

from kdbench.report import generate
from kdbench.results.record import Record
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
        for row in csv.DictReader(io.StringIO(text)):
            if path.endswith("claims.csv"):
                continue
            records = [committed[cell] for cell in row["cells"].split()]
            named |= {record.cell.id for record in records}
            assert {record.cell.method for record in records} == {row["method"]}
            finished = [record for record in records if record.metrics]
            if "across-pairs" in path:
                assert len(finished) == int(row["runs"])
            else:
                assert [record.cell.seed for record in finished] == [int(seed) for seed in row["seeds"].split()]
                assert len(records) - len(finished) == int(row["diverged"])
    assert named == committed.keys()
