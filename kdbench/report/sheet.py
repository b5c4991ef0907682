"""Sheets: what a generated file shows, before it becomes Markdown, LaTeX or CSV; and numbers as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdbench.report.settings import Comparison
from kdbench.results.stats import Estimate
from kdbench.text import fixed


@dataclass(frozen=True)
class Work:
    """Where a method comes from: the name that people know it by, and the key of its paper in a bibliography."""

    title: str
    paper: str | None


@dataclass(frozen=True)
class Cell:
    """Plain text, escaped by each format on its own.

    Attributes:
        bold: a significant difference.
        number: of a text that is one number, its value, what stands behind ±, and what is added in words.
        work: of a method's name.
    """

    text: str
    bold: bool = False
    number: tuple[str, str, str] | None = None
    work: Work | None = None


@dataclass(frozen=True)
class Column:
    """A column of words or of numbers.

    Attributes:
        key: what `chosen` knows it by.
        lines: its head where there is little room, one string a line.
        note: what a reader of it must know; legend: the same for a caption, as a clause.
    """

    key: str
    head: str
    lines: tuple[str, ...] = ()
    words: bool = False
    note: str = ""
    legend: str = ""


@dataclass(frozen=True)
class Block:
    """Rows under one heading (empty: none)."""

    heading: str
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Grid:
    """A table; `notes` stand below it, `caption` says in a sentence what it shows.

    Without blocks only its heading and notes are shown. `key` tells it from the others of its sheet.
    """

    heading: str
    columns: Sequence[Column]
    blocks: Sequence[Block]
    notes: Sequence[str]
    caption: str = ""
    key: str = ""

    @property
    def remarks(self) -> list[str]:
        """All notes, those of the columns that are shown included."""
        return [*self.notes, *(column.note for column in self.columns if column.note)]

    @property
    def numeric(self) -> bool:
        """Whether it has numbers, which a reader must be able to trust."""
        return bool(self.blocks) and not all(column.words for column in self.columns)


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


COLUMNS = (
    "method",
    "n",
    "score",
    "balanced",
    "delta_scratch",
    "delta_kd",
    "others",
    "gap",
    "student_forwards",
    "teacher_forwards",
    "extra_params",
    "minutes",
    "diverged",
)
"""What the columns of measured rows are chosen by; `others` stands for all further measures."""

ALL = tuple(column for column in COLUMNS if column != "minutes")
"""The columns where there is room. Minutes tell of the machine as much as of the method, so they are asked for."""

OTHER = "other "
"""What the key of a further measure's column begins with."""


def method_column() -> Column:
    return Column("method", "Method", words=True)


def chosen(sheet: Sheet, names: Sequence[str]) -> Sheet:
    """The sheet with some of `COLUMNS`, in the order of `names`, the method first; columns of other kinds stay."""
    return replace(sheet, grids=[_narrowed(grid, names) for grid in sheet.grids])


def _narrowed(grid: Grid, names: Sequence[str]) -> Grid:
    def place(column: Column) -> int | None:
        key = "others" if column.key.startswith(OTHER) else column.key
        if key == "method" or key not in COLUMNS:
            return -1
        return names.index(key) if key in names else None

    places = [(found, index) for index, column in enumerate(grid.columns) if (found := place(column)) is not None]
    order = [index for _, index in sorted(places)]
    return replace(
        grid,
        columns=[grid.columns[index] for index in order],
        blocks=[replace(block, rows=[[row[index] for index in order] for row in block.rows]) for block in grid.blocks],
    )


def mean(value: Estimate | None, digits: int = 2, *, signed: bool = False, bold: bool = False, note: str = "") -> Cell:
    """Mean ± half the width of the interval; `note` stands behind."""
    if value is None:
        return Cell("-")
    middle, half = fixed(value.mean, digits, signed=signed), "" if value.half is None else fixed(value.half, digits)
    text = f"{middle} ± {half}" if half else f"{middle} (one seed)"
    return Cell(f"{text} {note}".rstrip(), bold, (middle, half, note))


def difference(value: Comparison | None, n: int, digits: int = 2) -> Cell:
    """A difference; where fewer than the row's `n` seeds could be paired, it says how many."""
    partial = f"(n={value.n})" if value and 1 < value.n < n else ""
    return mean(value, digits, signed=True, bold=value is not None and value.significant, note=partial)


def count(value: int) -> Cell:
    return Cell(f"{value:,}", number=(f"{value:,}", "", ""))


def plain(value: float | None, digits: int = 2, *, scale: int = 1) -> Cell:
    """A number without an interval."""
    text = number(value, digits, scale=scale)
    return Cell(text, number=None if value is None else (text, "", ""))


def number(value: float | None, digits: int = 2, *, scale: int = 1) -> str:
    return "-" if value is None else fixed(value, digits, scale=scale)


def p_value(p: float | None) -> str:
    """``p = 0.021``; very small ones as a bound."""
    if p is None:
        return "no p-value as the differences do not spread"
    return "p < 0.001" if p < 0.001 else f"p = {fixed(p, 3)}"
