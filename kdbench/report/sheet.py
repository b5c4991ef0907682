"""Sheets: what a generated file shows, before it becomes Markdown, LaTeX or CSV; and numbers as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdbench.measures import TOP1
from kdbench.report.model import PAUSED, Row, Table
from kdbench.report.settings import Comparison
from kdbench.results.stats import Estimate
from kdbench.text import fixed

REFERENCE = "reference"
"""Stands for the difference of a control to itself."""


@dataclass(frozen=True)
class Cell:
    """Plain text, escaped by each format on its own; `bold` marks a significant difference."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Block:
    """Rows under one heading (empty: none)."""

    heading: str
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Grid:
    """A table: the first `text_columns` hold words, the others numbers; `notes` stand below it.

    Without blocks only its heading and notes are shown.
    """

    heading: str
    columns: Sequence[str]
    text_columns: int
    blocks: Sequence[Block]
    notes: Sequence[str]


@dataclass(frozen=True)
class Sheet:
    """A file, in any format.

    Attributes:
        path: without suffix, relative to the folder of the tables, with forward slashes.
        facts: lines above the tables.
        trust: the line below them.
        values: the same rows for CSV, with values instead of text; all of the same keys.
    """

    path: str
    title: str
    facts: Sequence[str]
    grids: Sequence[Grid]
    trust: str
    values: Sequence[Mapping[str, Any]]


def measured(table: Table) -> dict[str, str]:
    """What `measured_cells` give: key -> the head of its column."""
    measure = table.measure
    head = measure.label if measure == TOP1 else measure.quantity.removesuffix(" ↓")
    each = "img" if measure.examples == "images" else "sample"
    return {
        "n": "n",
        "reached": f"{head} last" if measure.higher else f"{head} last ↓",
        # beside top-1, where the classes of the test set differ in size
        **({"balanced": "balanced"} if table.unequal else {}),
        "scratch": table.versus["scratch"],
        "kd": table.versus["kd"],
        **{f"other {name}": name for name in table.others},
        "gap": "gap recovered %",
        "minutes": "train min",
        "student": f"student fwd/{each}",
        "teacher": f"teacher fwd/{each}",
        "extra": "extra params",
        "diverged": "diverged",
    }


def measured_cells(table: Table, row: Row) -> dict[str, Cell]:
    """A row as `measured` shows it; rounded, "-" for what there is not."""

    def against(control: str, delta: Comparison | None) -> Cell:
        if row.reference and row.control == control:
            return Cell(REFERENCE)
        return difference(delta, len(row.seeds), table.digits)

    cells = {
        "n": Cell(str(len(row.seeds))),
        "reached": Cell(estimate(row.reached, table.digits)),
        "balanced": Cell(estimate(row.recall.mean if row.recall else None)),
        "scratch": against("scratch", row.delta_scratch),
        "kd": against("kd", row.delta_kd),
        **{f"other {name}": Cell(estimate(row.others.get(name), digits)) for name, digits in table.others.items()},
        "gap": Cell(number(row.gap, 1, scale=100)),
        "minutes": Cell(number(row.train_minutes)),
        "student": Cell(number(row.student_forwards)),
        "teacher": Cell(number(row.teacher_forwards)),
        "extra": Cell("-" if row.extra_params is None else f"{row.extra_params:,}"),
        "diverged": Cell(str(row.diverged)),
    }
    return {key: cells[key] for key in measured(table)}


def row_cells(table: Table, row: Row) -> list[Cell]:
    """The method, and what is measured."""
    return [Cell(row.label), *measured_cells(table, row).values()]


def row_values(table: Table, row: Row) -> dict[str, Any]:
    """A row for CSV, unrounded; None where there is no value."""
    measure = table.measure
    values: dict[str, Any] = {
        "block": row.block,
        "role": row.role,
        "reference": row.control if row.reference else None,
        "leaf": row.leaf,
        "method": row.method,
        "setting": row.setting,
        "n": len(row.seeds),
        "seeds": " ".join(map(str, row.seeds)),
        "diverged": row.diverged,
        "cells": " ".join(row.cells),
    }
    if measure != TOP1:
        values |= {"measure": measure.name, "higher_is_better": measure.higher, "unit": measure.unit}
    values |= _interval(measure.name, row.reached)
    values |= _interval("macro_recall", row.recall.mean if row.recall else None)
    values |= {
        "lowest_class_recall": row.recall.low if row.recall else None,
        "highest_class_recall": row.recall.high if row.recall else None,
    }
    for name, delta in (("delta_scratch", row.delta_scratch), ("delta_kd", row.delta_kd)):
        examples = delta.p_examples if delta else None
        values |= _interval(name, delta)
        values |= {
            f"{name}_n": delta.n if delta else 0,
            f"{name}_p": delta and delta.p,
            f"{name}_p_holm": delta and delta.holm,
            f"{name}_p_examples": None if examples is None else round(examples, 6),  # the rest is the transform's noise
        }
    for name in table.others:
        values |= _interval(f"other_{name}", row.others.get(name))
    return values | {
        "gap_recovered": row.gap,
        "train_minutes": row.train_minutes,
        "student_forwards_per_image": row.student_forwards,
        "teacher_forwards_per_image": row.teacher_forwards,
        "extra_params": row.extra_params,
    }


def verdict(table: Table, rows: Sequence[Row]) -> str:
    """The best of those `rows` that are no controls, and whether it can be told from KD; empty where there is none."""
    measure, digits, kd = table.measure, table.digits, table.control("kd")
    ranked = [(measure.merit(row.reached.mean), row) for row in rows if row.reached and not row.control]
    if not ranked:
        return ""
    _, best = max(ranked, key=lambda pair: pair[0])
    assert best.reached is not None
    start = f"Best beside the controls: {best.label}, {measure.text(best.reached.mean, digits)}"
    name = table.versus["kd"].removeprefix("Δ ")
    if kd is None:
        return f"{start}; there is no KD run to compare it with."
    delta = best.delta_kd
    if delta is None:
        return f"{start}; it shares no seed with {kd.label}, so it cannot be compared with {name}."
    if delta.half is None:
        size = fixed(delta.mean, digits, signed=True)
        return f"{start}; on one seed not distinguishable from {name} (Δ {size}, no interval and no test)."
    tested = f"{p_value(delta.holm)} after Holm" if delta.holm is not None else p_value(None)
    size = f"Δ {estimate(delta, digits, signed=True)}, {tested}, n = {delta.n}"
    if not delta.significant:
        return f"{start}; not distinguishable from {name} ({size})."
    return f"{start}; {'better' if delta.better else 'worse'} than {name} ({size})."


def paused(rows: Sequence[Row]) -> str:
    """Whose minutes are not shown, and why; empty where there is nothing to say."""
    found = [row.label for row in rows if row.scores and row.train_minutes is None]
    if not found:
        return ""
    return f"No minutes where seeds differ by more than {PAUSED:g}x, which is the machine's doing: {', '.join(found)}."


def estimate(value: Estimate | None, digits: int = 2, *, signed: bool = False) -> str:
    """Mean ± half the width of the interval."""
    if value is None:
        return "-"
    spread = "(one seed)" if value.half is None else f"± {fixed(value.half, digits)}"
    return f"{fixed(value.mean, digits, signed=signed)} {spread}"


def difference(value: Comparison | None, n: int, digits: int = 2) -> Cell:
    """A difference; where fewer than the row's `n` seeds could be paired, it says how many."""
    partial = f" (n={value.n})" if value and 1 < value.n < n else ""
    return Cell(estimate(value, digits, signed=True) + partial, bold=value is not None and value.significant)


def number(value: float | None, digits: int = 2, *, scale: int = 1) -> str:
    return "-" if value is None else fixed(value, digits, scale=scale)


def p_value(p: float | None) -> str:
    """``p = 0.021``; very small ones as a bound."""
    if p is None:
        return "no p-value as the differences do not spread"
    return "p < 0.001" if p < 0.001 else f"p = {fixed(p, 3)}"


def _interval(name: str, value: Estimate | None) -> dict[str, float | None]:
    if value is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}
