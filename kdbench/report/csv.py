"""Sheets as CSV: the same rows in full, for programs."""

from __future__ import annotations

import csv
import io
from typing import Any

from kdbench.report.sheet import Sheet
from kdbench.text import full, inert

CSV_MARKER = "kdbench_table"
"""First column of every generated CSV; holds the name of the table."""


def comma_separated(sheet: Sheet) -> str:
    """The text of a sheet's file: 10 significant digits, empty where there is no value, the trust line last."""
    if not sheet.values:
        return f"{CSV_MARKER},trust\n"
    file = io.StringIO()
    writer = csv.DictWriter(file, fieldnames=[CSV_MARKER, *sheet.values[0]], lineterminator="\n")
    writer.writerow({name: inert(name) for name in writer.fieldnames})
    for values in sheet.values:
        writer.writerow({CSV_MARKER: sheet.path} | {key: csv_value(value) for key, value in values.items()})
    return file.getvalue()


def csv_value(value: Any) -> Any:
    """A number as text, text so that no spreadsheet takes it for a formula."""
    return full(value) if isinstance(value, float) else inert(value) if isinstance(value, str) else value
