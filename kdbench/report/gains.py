"""Where a method, as it ships, gains most over plain distillation."""

from __future__ import annotations

from collections.abc import Iterable

from kdbench.report.measured import measured_cells
from kdbench.report.model import Row, Table


def best_gains(tables: Iterable[Table]) -> dict[str, tuple[Table, Row]]:
    """For each method the row with the largest gain over the control that stands for plain distillation.

    Of its shipped settings alone: otherwise a method that is tuned more would look better. Of that control itself it is
    its row as the reference.
    """
    best: dict[str, tuple[Table, Row]] = {}
    for table in tables:
        for row in table.rows:
            if row.control == "kd" and row.reference:
                best.setdefault(row.method, (table, row))
            elif row.default and row.delta_kd is not None:
                known = best.get(row.method)
                if known is None or table.measure.merit(row.delta_kd.mean) > _gain(*known):
                    best[row.method] = table, row
    return best


def said(table: Table, row: Row) -> str:
    """Such a gain in words."""
    if row.delta_kd is None or row.reference:
        return f"what others are compared with, as in {table.title}"
    delta = row.delta_kd
    seeds = f"{delta.n} seeds" if delta.n > 1 else "one seed"
    sure = "significant" if delta.significant else "not significant"
    measure = f" of {table.measure.quantity}" if table.measure.name != "top1" else ""
    return f"{measured_cells(table, row)['delta_kd'].text}{measure} ({seeds}, {sure}) in {table.title}"


def _gain(table: Table, row: Row) -> float:
    return float("inf") if row.delta_kd is None else table.measure.merit(row.delta_kd.mean)
