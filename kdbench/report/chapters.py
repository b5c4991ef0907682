"""Sheets of one table of the model: an overview of all rows, and one for each chapter of the survey."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from kdbench.report.model import Row, Table
from kdbench.report.sheet import (
    Block,
    Cell,
    Grid,
    Sheet,
    measured,
    measured_cells,
    paused,
    row_cells,
    row_values,
    verdict,
)
from kdbench.taxonomy import Chapter, Leaf, SurveyTable, load_taxonomy


def overview(table: Table) -> Sheet:
    """All rows, without the survey's columns."""
    blocks = [Block(name, [row_cells(table, row) for row in rows]) for name, rows in blocks_of(table.rows)]
    notes = [verdict(table, table.rows), paused(table.rows)]
    return Sheet(
        path=table.name,
        title=table.title,
        facts=table.header,
        grids=[Grid("", ("Method", *measured(table).values()), 1, blocks, [note for note in notes if note])],
        trust=table.trust,
        values=[{**row_values(table, row), "trust": table.trust} for row in table.rows],
    )


def chapter_sheets(table: Table) -> list[Sheet]:
    """The chapters in which the table has methods, in order; leaves that are not in the survey's tree come last."""
    taxonomy = load_taxonomy()
    sheets = [
        _chapter(table, chapter, f"{chapter.number:02d}-{chapter.id}")
        for chapter in taxonomy.chapters
        if chapter.number is not None and any(taxonomy.chapter_of(row.leaf) is chapter for row in table.rows)
    ]
    strangers = sorted({row.leaf for row in table.rows if not taxonomy.find(row.leaf)})
    if strangers:
        leaves = tuple(Leaf(id=leaf, section=None, title=leaf, question="", cited=()) for leaf in strangers)
        own = SurveyTable(id="third-party", title="Third-party methods", survey=None, columns={}, leaves=leaves)
        chapter = Chapter(
            id="third-party", number=None, title="Leaves that are not in the survey's tree", tables=(own,)
        )
        sheets.append(_chapter(table, chapter, chapter.id))
    return sheets


def blocks_of(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Neighbouring rows of one block, under its name."""
    return [(block, list(group)) for block, group in groupby(rows, key=lambda row: row.block)]


def _chapter(table: Table, chapter: Chapter, name: str) -> Sheet:
    columns = [key for part in chapter.tables for key in part.columns]
    values: list[dict[str, Any]] = []
    for part in chapter.tables:
        for row in _rows(table, part):
            own = {key: text for key, text in (row.survey or {}).items() if key in part.columns}
            survey = {f"survey_{key}": own.get(key) for key in dict.fromkeys(columns)}
            values.append({"table": part.id, **row_values(table, row), **survey, "trust": table.trust})
    number = f"{chapter.number}. " if chapter.number else ""
    return Sheet(
        path=f"{table.name}/{name}",
        title=f"{number}{chapter.title}: {table.title}",
        facts=[],
        grids=[_grid(table, part) for part in chapter.tables],
        trust=table.trust,
        values=values,
    )


def _rows(table: Table, part: SurveyTable) -> list[Row]:
    """The controls and the rows of the part's leaves; none without the latter, or controls, that belong to it."""
    ids = {leaf.id for leaf in part.leaves}
    if not any(row.leaf in ids for row in table.rows):
        return []
    return [row for row in table.rows if row.control or row.leaf in ids]


def _grid(table: Table, part: SurveyTable) -> Grid:
    rows = _rows(table, part)
    ids = {leaf.id for leaf in part.leaves}

    def cells(row: Row) -> list[Cell]:
        # a control stands in tables of other leaves too, whose columns are not about it
        survey = (row.survey or {}) if row.leaf in ids else {}
        declared = [Cell(survey.get(key, "-")) for key in part.columns]
        return [Cell(row.label), *declared, *measured_cells(table, row).values()]

    return Grid(
        heading=part.title,
        columns=("Method", *part.columns.values(), *measured(table).values()),
        text_columns=1 + len(part.columns),
        blocks=[Block(name, [cells(row) for row in group]) for name, group in blocks_of(rows)],
        notes=_notes(table, part, rows),
    )


def _notes(table: Table, part: SurveyTable, rows: Sequence[Row]) -> list[str]:
    notes = [verdict(table, rows), paused(rows)]
    leaves = {row.leaf for row in rows}
    for leaf in part.leaves:
        if leaf.open and leaf.id not in leaves:
            notes.append(f"{leaf.heading}: open; {leaf.open}.")
        elif leaf.id not in leaves:
            notes.append(f"{leaf.heading}: no records here.")
        elif all(row.control for row in rows if row.leaf == leaf.id):
            notes.append(f"{leaf.heading}: among the controls alone.")
    foreign = sorted({f"{row.label} ({row.cls})" for row in rows if row.survey is None})
    if foreign:
        notes.append(f"Without entries for the survey's columns: {', '.join(foreign)}.")
    return [note for note in notes if note]
