"""Sheets of one table of the model: an overview of all rows, and one for each chapter of the survey."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdbench.report.measured import blocks_of, measured_grid, method_cell, row_values, subject, tally, verdict
from kdbench.report.model import Row, Table
from kdbench.report.sheet import Block, Cell, Column, Grid, Sheet, method_column
from kdbench.taxonomy import Chapter, Leaf, SurveyTable, load_taxonomy


def overview(table: Table) -> Sheet:
    """All rows, without the survey's columns."""
    return Sheet(
        path=table.name,
        title=table.title,
        facts=table.header,
        grids=[measured_grid(table, table.rows, notes=_answers(table, table.rows))],
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
        grids=[grid for part in chapter.tables for grid in _grids(table, part)],
        trust=table.trust,
        values=values,
    )


def _rows(table: Table, part: SurveyTable) -> list[Row]:
    """The controls and the rows of the part's leaves; none without the latter, or controls, that belong to it."""
    ids = {leaf.id for leaf in part.leaves}
    if not any(row.leaf in ids for row in table.rows):
        return []
    return [row for row in table.rows if row.control or row.leaf in ids]


def _grids(table: Table, part: SurveyTable) -> list[Grid]:
    """What is measured, and a table of its own for what the methods say for the survey's columns."""
    rows = _rows(table, part)
    grids = [measured_grid(table, rows, part.title, _notes(table, part, rows), part.id)]
    ids = {leaf.id for leaf in part.leaves}
    own = [row for row in rows if row.leaf in ids]  # the columns are not about controls of other leaves
    if own and part.columns:
        grids.append(_described(table, part, own))
    return grids


def _described(table: Table, part: SurveyTable, rows: Sequence[Row]) -> Grid:
    def cells(row: Row) -> list[Cell]:
        said = row.survey or {}
        return [method_cell(row, table.rows), *(Cell(said.get(key, "-")) for key in part.columns)]

    foreign = sorted({f"{row.label} ({row.cls})" for row in rows if row.survey is None})
    return Grid(
        heading=f"{part.title}: what the methods are",
        columns=[method_column(), *(Column(f"survey {key}", head, words=True) for key, head in part.columns.items())],
        blocks=[Block(name, [cells(row) for row in group]) for name, group in blocks_of(rows)],
        notes=[f"Without entries for the survey's columns: {', '.join(foreign)}."] if foreign else [],
        caption=f"{part.title}: the methods of {subject(table)}.",
        key=f"{part.id}-methods",
    )


def _notes(table: Table, part: SurveyTable, rows: Sequence[Row]) -> list[str]:
    notes = []
    leaves = {row.leaf for row in rows}
    for leaf in part.leaves:
        own = [row for row in rows if row.leaf == leaf.id and not row.control]
        if own:
            question = f" {leaf.question}" if leaf.question else ""
            notes.append(" ".join([f"{leaf.heading}:{question}", *_answers(table, own)]))
        if leaf.open and leaf.id not in leaves:
            notes.append(f"{leaf.heading}: open; {leaf.open}.")
        elif leaf.id not in leaves:
            notes.append(f"{leaf.heading}: no records here.")
        elif not own:
            notes.append(f"{leaf.heading}: among the controls alone.")
    return notes


def _answers(table: Table, rows: Sequence[Row]) -> list[str]:
    """What the rows say to the question of their leaf, or of the table, as sentences computed from their records."""
    return [sentence for sentence in (tally(table, rows), verdict(table, rows)) if sentence]
