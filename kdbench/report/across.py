"""Sheets across pairs of one data set and protocol: every method on every pair, and how methods do over all of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kdbench.measures import TOP1, Measure
from kdbench.report.measured import blocks_of, method_cell, subject
from kdbench.report.model import KEY_DIGITS, Row, Table, file_name
from kdbench.report.settings import CONTROLS, ROLES
from kdbench.report.sheet import (
    Block,
    Cell,
    Column,
    Grid,
    Sheet,
    count,
    method_column,
    plain,
)
from kdbench.report.words import network_name
from kdbench.results.record import digest
from kdbench.results.stats import (
    ALPHA,
    REPLICATES,
    Interval,
    average_ranks,
    gap_recovered,
    improvement_probability,
    iqm,
)
from kdbench.taxonomy import load_taxonomy
from kdbench.text import fixed


def _notes(kd: str, measure: Measure) -> list[str]:
    return [
        *([f"Ranked by {measure.label}: {measure.direction}."] if measure != TOP1 else []),
        "Gap recovered = (run - mean from scratch) / (teacher - mean from scratch). IQM: the mean of the middle half "
        "of all runs of all pairs. A pair whose teacher is no better than the student, or within its interval, "
        "has no gap.",
        f"P(better than {kd}): the chance that a run beats a run of {kd} on a pair drawn at random; ties count half.",
        "Average rank: of the mean over seeds, among the methods of this table; 1 is the best.",
    ]


def across_pairs(tables: Sequence[Table]) -> list[Sheet]:
    """One sheet for each data set and protocol that has more than one table (a pair, or a teacher of one)."""
    cohorts: dict[str, list[Table]] = defaultdict(list)
    for table in tables:
        cohorts[table.cohort].append(table)
    sheets = [_sheet(key, group) for key, group in cohorts.items() if len(group) > 1]
    return sorted(sheets, key=lambda sheet: sheet.path)


def _sheet(cohort: str, tables: Sequence[Table]) -> Sheet:
    first = tables[0]
    shown = {row.method: row for table in reversed(tables) for row in standing(table).values()}
    methods = _complete(tables)
    measure, heads = first.measure, {table.versus["kd"].removeprefix("Δ ") for table in tables}
    kd = " or ".join(sorted(heads))
    ranks = average_ranks({name: [_mean(row) for row in rows] for name, rows in methods.items()}, higher=measure.higher)
    controls = [[table.control(name) for table in tables] for name in ("scratch", "kd")]
    values = [_values(name, rows, tables, *controls, rank=ranks[name]) for name, rows in methods.items()]
    values.sort(key=lambda value: (value["average_rank"], value["method"]))
    notes = _notes(kd, measure)
    if partial := sorted(shown.keys() - methods.keys()):
        notes.append(f"Without a finished run on some pair, and so not compared here: {', '.join(partial)}.")
    trust = "; ".join(
        [
            f"{len(tables)} pairs: {', '.join(table.name for table in tables)}",
            f"protocol {first.protocol} ({digest(first.records[0].config['protocol'])[:12]})",
            "selection: last epoch",
            "of each control the reference, of each method the shipped default, else the setting of most seeds",
            "± standard deviation over seeds",
            f"95 % percentile intervals of {REPLICATES} bootstrap resamples of the runs within each pair",
            f"{len(frozenset().union(*(table.cells for table in tables)))} records",
        ]
    )
    rows = list(shown.values())
    blocks = [Block("", [[_method(shown[value["method"]], rows), *_cells(value)] for value in values])]
    everything = subject(first, f"{len(tables)} pairs")
    summary = Grid("Over all pairs", _columns(kd), blocks, notes, f"{everything}. {_SUMMARY}", "summary")
    nothing = dict.fromkeys(key for value in values for key in value)
    complete = {value["method"]: value for value in values}
    return Sheet(
        path=f"across-pairs/{file_name(first.dataset, first.records[0].cell.protocol, key=cohort[:KEY_DIGITS])}",
        title=f"Across pairs: {first.data}, {first.protocol}",
        facts=[],
        grids=[_matrix(tables, everything), *([summary] if values else [])],
        trust=trust,
        values=[
            {
                **complete.get(name, {**nothing, **_ran(name, [standing(table).get(name) for table in tables])}),
                **_pair_values(name, tables),
                "trust": trust,
            }
            for name in [*complete, *partial]
        ],
    )


# ---- methods x pairs ------------------------------------------------------------------------------------------------


def _matrix(tables: Sequence[Table], everything: str) -> Grid:
    """Every method on every pair, teachers first, as papers show them."""
    measure, digits = tables[0].measure, max(table.digits for table in tables)
    found = [standing(table) for table in tables]
    rows: dict[str, Row] = {}
    for each in found:
        rows |= {name: row for name, row in each.items() if name not in rows}
    ordered = sorted(rows.values(), key=order)
    blocks = []
    if any(table.teacher is not None for table in tables):
        blocks.append(Block("", [[Cell("Teacher"), *(plain(table.teacher, digits) for table in tables)]]))
    for heading, group in blocks_of(ordered):
        lines = [
            [
                _method(row, ordered),
                *(_reached(each.get(row.method), table, digits) for each, table in zip(found, tables, strict=True)),
            ]
            for row in group
        ]
        blocks.append(Block(heading, lines))
    quantity = f"{measure.quantity[:1].upper()}{measure.quantity[1:]}"
    what = f"{quantity} after the last epoch, mean ± standard deviation over seeds"
    kd = " or ".join(sorted({table.versus["kd"].removeprefix("Δ ") for table in tables if table.control("kd")}))
    bold = f"Bold: better than {kd} on that pair, p < {ALPHA:g} (paired t-test, Holm within the pair)." if kd else ""
    return Grid(
        heading="",
        columns=[method_column(), *(_pair_column(table, tables) for table in tables)],
        blocks=blocks,
        notes=[f"{what}.", *([bold] if bold else [])],
        caption=f"{everything}. {what}. {bold}".rstrip(),
        key="pairs",
    )


def _method(row: Row, rows: Sequence[Row]) -> Cell:
    return method_cell(replace(row, setting=""), rows)


def _pair_column(table: Table, tables: Sequence[Table]) -> Column:
    taught = next((record for record in table.records if record.teacher), None)
    student = table.records[0].cell.student
    if taught is None or taught.teacher is None:
        return Column(f"pair {table.name}", student, (network_name(student),))
    # several teachers of one architecture
    twins = sum(other.pair == table.pair for other in tables) > 1
    of, name = f" {str(taught.taught_by)[:6]}" if twins else "", taught.teacher.name
    lines = (f"{network_name(name)}{of}", network_name(student))
    return Column(f"pair {table.name}", f"{name}{of} → {student}", lines)


def order(row: Row) -> tuple[int, tuple[int, str], str]:
    """Sort key of rows of several tables, each for its method: controls, then the survey's leaves in its order."""
    place = (CONTROLS.index(row.control), "") if row.control else load_taxonomy().order(row.leaf)
    return ROLES.index(row.role), place, row.method


def _reached(row: Row | None, table: Table, digits: int) -> Cell:
    if row is None or row.reached is None:
        return Cell("-")
    delta = row.delta_kd
    middle, spread = fixed(row.reached.mean, digits), "" if row.std is None else fixed(row.std, digits)
    return Cell(
        f"{middle} ± {spread}" if spread else f"{middle} (one seed)",
        bold=delta is not None and delta.significant and delta.better,
        number=(middle, spread, ""),
    )


def _pair_values(name: str, tables: Sequence[Table]) -> dict[str, Any]:
    """A method's mean, standard deviation and number of runs on each pair, for CSV."""
    values: dict[str, Any] = {}
    for table in tables:
        row = standing(table).get(name)
        values |= {
            table.name: row.reached.mean if row and row.reached else None,
            f"{table.name}_std": row.std if row else None,
            f"{table.name}_n": len(row.scores) if row else 0,
        }
    return values


def standing(table: Table) -> dict[str, Row]:
    """Of each method with a finished run the row that stands for it beside other tables.

    That is the reference of a control, else the shipped default, else the setting of most seeds; never the best
    accuracy: otherwise a method that is tuned more would look better.
    """
    best: dict[str, Row] = {}
    for row in table.rows:
        if row.scores and (row.method not in best or _rank(row) > _rank(best[row.method])):
            best[row.method] = row
    return best


# ---- over all pairs -------------------------------------------------------------------------------------------------

_SUMMARY = (
    "IQM of the gap recovered and chance to beat plain distillation, with 95 % bootstrap intervals, and rank among the "
    "methods that ran on every pair."
)


def _columns(kd: str) -> list[Column]:
    """`kd`: the name of the control that stands for plain distillation."""
    return [
        method_column(),
        Column("pairs", "pairs"),
        Column("runs", "runs"),
        Column("iqm", "gap recovered % (IQM)", ("gap (%)", "IQM")),
        Column("better", f"P(better than {kd})", ("P(better", f"than {kd})")),
        Column("rank", "average rank", ("average", "rank")),
    ]


def _complete(tables: Sequence[Table]) -> dict[str, list[Row]]:
    """The rows, one of each table, of the methods that have a finished run in every table."""
    rows: dict[str, list[Row]] = defaultdict(list)
    for table in tables:
        for name, row in standing(table).items():
            rows[name].append(row)
    return {name: found for name, found in sorted(rows.items()) if len(found) == len(tables)}


def _rank(row: Row) -> tuple[bool, bool, int]:
    return row.reference, row.default, len(row.scores)


def _values(
    name: str,
    rows: Sequence[Row],
    tables: Sequence[Table],
    scratch: Sequence[Row | None],
    kd: Sequence[Row | None],
    *,
    rank: float,
) -> dict[str, Any]:
    gaps: list[list[float]] = []
    for row, table, start in zip(rows, tables, scratch, strict=True):
        if start is not None and table.goal is not None and row.control != "scratch":
            higher = table.measure.higher
            runs = [gap_recovered(run, _mean(start), table.goal, higher=higher) for run in row.scores.values()]
            gaps.append([gap for gap in runs if gap is not None])
    against = [
        (list(row.scores.values()), list(other.scores.values()))
        for row, other in zip(rows, kd, strict=True)
        if other is not None and row.control != "kd"
    ]
    values = _ran(name, rows)
    cells = values.pop("cells")  # the last column
    values |= _interval("gap_iqm", iqm(gaps) if any(gaps) else None)
    values["gap_pairs"] = sum(1 for runs in gaps if runs)
    better = None
    if len(against) == len(rows):
        better = improvement_probability(against, higher=tables[0].measure.higher)
    values |= _interval("p_better_than_kd", better)
    return values | {"average_rank": rank, "cells": cells}


def _ran(name: str, rows: Sequence[Row | None]) -> dict[str, Any]:
    """On how many pairs, how often, and as which cells."""
    there = [row for row in rows if row is not None]
    cells = " ".join(cell for row in there for cell in row.cells)
    return {"method": name, "pairs": len(there), "runs": sum(len(row.scores) for row in there), "cells": cells}


def _cells(values: dict[str, Any]) -> list[Cell]:
    return [
        count(values["pairs"]),
        count(values["runs"]),
        Cell(_shown(values, "gap_iqm", 100, 1)),
        Cell(_shown(values, "p_better_than_kd", 1, 2)),
        plain(values["average_rank"]),
    ]


def _shown(values: dict[str, Any], name: str, scale: int, digits: int) -> str:
    if values[name] is None:
        return "-"
    middle, *ends = (
        fixed(value, digits, scale=scale)
        for value in (values[name], values[f"{name}_low"], values[f"{name}_high"])
        if value is not None
    )
    return f"{middle} [{ends[0]}, {ends[1]}]" if ends else f"{middle} (one seed)"


def _interval(name: str, value: Interval | None) -> dict[str, float | None]:
    if value is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: value.value, f"{name}_low": value.low, f"{name}_high": value.high}


def _mean(row: Row) -> float:
    assert row.reached is not None
    return row.reached.mean
