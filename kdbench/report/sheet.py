"""Sheets: what a generated file shows, before it becomes Markdown, LaTeX or CSV; and numbers as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdbench.report.model import Row
from kdbench.report.settings import Comparison
from kdbench.results.stats import Estimate

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
COLUMNS = ("Method", *MEASURED)


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


def row_cells(row: Row) -> list[Cell]:
    """A row as `COLUMNS` show it; rounded, "-" for what there is not."""
    n = len(row.seeds)
    return [
        Cell(row.label),
        Cell(str(n)),
        Cell(estimate(row.top1)),
        difference(row.delta_scratch, n),
        difference(row.delta_kd, n),
        Cell("-" if row.gap is None else f"{unsigned_zero(100 * row.gap, 1):.1f}"),
        Cell(number(row.train_minutes)),
        Cell(number(row.student_forwards)),
        Cell(number(row.teacher_forwards)),
        Cell("-" if row.extra_params is None else f"{row.extra_params:,}"),
        Cell(str(row.diverged)),
    ]


def row_values(row: Row) -> dict[str, Any]:
    """A row for CSV, unrounded; None where there is no value."""
    values: dict[str, Any] = {
        "block": row.block,
        "leaf": row.leaf,
        "method": row.method,
        "setting": row.setting,
        "n": len(row.seeds),
        "seeds": " ".join(map(str, row.seeds)),
        "diverged": row.diverged,
    }
    values |= _interval("top1", row.top1)
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
    start = f"Best beside the controls: {best.label}, {mean:.2f} %"
    if kd is None:
        return f"{start}; there is no KD run to compare it with."
    delta = best.delta_kd
    if delta is None:
        return f"{start}; it shares no seed with {kd.label}, so it cannot be compared with KD."
    if delta.half is None:
        return f"{start}; on one seed not distinguishable from KD (Δ {delta.mean:+.2f}, no interval and no test)."
    tested = f"{p_value(delta.holm)} after Holm" if delta.holm is not None else p_value(None)
    size = f"Δ {estimate(delta, '+')}, {tested}, n = {delta.n}"
    if not delta.significant:
        return f"{start}; not distinguishable from KD ({size})."
    return f"{start}; {'better' if delta.mean > 0 else 'worse'} than KD ({size})."


def estimate(value: Estimate | None, sign: str = "") -> str:
    """Mean ± half the width of the interval."""
    if value is None:
        return "-"
    spread = "(one seed)" if value.half is None else f"± {value.half:.2f}"
    return f"{unsigned_zero(value.mean, 2):{sign}.2f} {spread}"


def difference(value: Comparison | None, n: int) -> Cell:
    """A difference; where fewer than the row's `n` seeds could be paired, it says how many."""
    partial = f" (n={value.n})" if value and 1 < value.n < n else ""
    return Cell(estimate(value, "+") + partial, bold=value is not None and value.significant)


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def p_value(p: float | None) -> str:
    """``p = 0.021``; very small ones as a bound."""
    if p is None:
        return "no p-value as the differences do not spread"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def unsigned_zero(value: float, digits: int) -> float:
    """Rounded, and without a sign where that gives zero."""
    return round(value, digits) + 0.0


def _interval(name: str, value: Estimate | None) -> dict[str, float | None]:
    if value is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}
