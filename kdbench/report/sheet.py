"""Sheets: what a generated file shows, before it becomes Markdown, LaTeX or CSV; and numbers as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdbench.report.model import PAUSED, Row, Table
from kdbench.report.settings import Comparison
from kdbench.results.stats import Estimate
from kdbench.text import fixed

MEASURED = (
    "n",
    "top-1 last",
    "Δ scratch",
    "Δ KD",
    "gap recovered %",
    "train min",
    "student fwd/img",
    "teacher fwd/img",
    "extra params",
    "diverged",
)
BALANCED = "balanced"
"""Heading of the column that tables have beside top-1 where the classes of the test set differ in size."""
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


def measured(table: Table) -> tuple[str, ...]:
    """The headings of what `measured_cells` give."""
    split = MEASURED.index("top-1 last") + 1
    return (*MEASURED[:split], BALANCED, *MEASURED[split:]) if table.unequal else MEASURED


def measured_cells(table: Table, row: Row) -> list[Cell]:
    """A row as `measured` shows it; rounded, "-" for what there is not."""
    n, reference = len(row.seeds), row.reference
    cells = {
        "n": Cell(str(n)),
        "top-1 last": Cell(estimate(row.top1)),
        BALANCED: Cell(estimate(row.recall.mean if row.recall else None)),
        "Δ scratch": Cell(REFERENCE) if reference and row.control == "scratch" else difference(row.delta_scratch, n),
        "Δ KD": Cell(REFERENCE) if reference and row.control == "kd" else difference(row.delta_kd, n),
        "gap recovered %": Cell(number(row.gap, 1, scale=100)),
        "train min": Cell(number(row.train_minutes)),
        "student fwd/img": Cell(number(row.student_forwards)),
        "teacher fwd/img": Cell(number(row.teacher_forwards)),
        "extra params": Cell("-" if row.extra_params is None else f"{row.extra_params:,}"),
        "diverged": Cell(str(row.diverged)),
    }
    return [cells[name] for name in measured(table)]


def row_cells(table: Table, row: Row) -> list[Cell]:
    """The method, and what is measured."""
    return [Cell(row.label), *measured_cells(table, row)]


def row_values(row: Row) -> dict[str, Any]:
    """A row for CSV, unrounded; None where there is no value."""
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
    }
    values |= _interval("top1", row.top1)
    values |= _interval("macro_recall", row.recall.mean if row.recall else None)
    values |= {
        "lowest_class_recall": row.recall.low if row.recall else None,
        "highest_class_recall": row.recall.high if row.recall else None,
    }
    for name, delta in (("delta_scratch", row.delta_scratch), ("delta_kd", row.delta_kd)):
        values |= _interval(name, delta)
        values |= {
            f"{name}_n": delta.n if delta else 0,
            f"{name}_p": delta and delta.p,
            f"{name}_p_holm": delta and delta.holm,
            f"{name}_p_examples": delta and round(delta.p_examples, 6),  # further digits are those of the transform
        }
    return values | {
        "gap_recovered": row.gap,
        "train_minutes": row.train_minutes,
        "student_forwards_per_image": row.student_forwards,
        "teacher_forwards_per_image": row.teacher_forwards,
        "extra_params": row.extra_params,
    }


def verdict(rows: Sequence[Row], kd: Row | None) -> str:
    """The best of the rows that are no controls, and whether it can be told from KD; empty where there is none."""
    ranked = [(row.top1.mean, row) for row in rows if row.top1 and not row.control]
    if not ranked:
        return ""
    mean, best = max(ranked, key=lambda pair: pair[0])
    start = f"Best beside the controls: {best.label}, {fixed(mean, 2)} %"
    if kd is None:
        return f"{start}; there is no KD run to compare it with."
    delta = best.delta_kd
    if delta is None:
        return f"{start}; it shares no seed with {kd.label}, so it cannot be compared with KD."
    if delta.half is None:
        size = fixed(delta.mean, 2, signed=True)
        return f"{start}; on one seed not distinguishable from KD (Δ {size}, no interval and no test)."
    tested = f"{p_value(delta.holm)} after Holm" if delta.holm is not None else p_value(None)
    size = f"Δ {estimate(delta, signed=True)}, {tested}, n = {delta.n}"
    if not delta.significant:
        return f"{start}; not distinguishable from KD ({size})."
    return f"{start}; {'better' if delta.mean > 0 else 'worse'} than KD ({size})."


def paused(rows: Sequence[Row]) -> str:
    """Whose minutes are not shown, and why; empty where there is nothing to say."""
    found = [row.label for row in rows if row.scores and row.train_minutes is None]
    if not found:
        return ""
    return f"No minutes where seeds differ by more than {PAUSED:g}x, which is the machine's doing: {', '.join(found)}."


def estimate(value: Estimate | None, *, signed: bool = False) -> str:
    """Mean ± half the width of the interval."""
    if value is None:
        return "-"
    spread = "(one seed)" if value.half is None else f"± {fixed(value.half, 2)}"
    return f"{fixed(value.mean, 2, signed=signed)} {spread}"


def difference(value: Comparison | None, n: int) -> Cell:
    """A difference; where fewer than the row's `n` seeds could be paired, it says how many."""
    partial = f" (n={value.n})" if value and 1 < value.n < n else ""
    return Cell(estimate(value, signed=True) + partial, bold=value is not None and value.significant)


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
