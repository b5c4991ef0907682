"""Sheets across pairs: how methods do over all pairs of one data set and protocol."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kdbench.measures import TOP1, Measure
from kdbench.report.model import Row, Table, safe_name
from kdbench.report.sheet import Block, Cell, Grid, Sheet
from kdbench.results.record import digest
from kdbench.results.stats import REPLICATES, Interval, average_ranks, gap_recovered, improvement_probability, iqm
from kdbench.text import fixed


def columns(kd: str) -> tuple[str, ...]:
    """`kd`: the name of the control that stands for plain distillation."""
    return ("Method", "pairs", "runs", "gap recovered % (IQM)", f"P(better than {kd})", "average rank")


def _notes(kd: str, measure: Measure) -> list[str]:
    return [
        *([f"Ranked by {measure.label}: {measure.direction}."] if measure != TOP1 else []),
        "Gap recovered = (run - mean from scratch) / (teacher - mean from scratch). IQM: the mean of the middle half "
        "of all runs of all pairs. Pairs whose teacher is not better than the student have no gap.",
        f"P(better than {kd}): the chance that a run beats a run of {kd} on a pair drawn at random; ties count half.",
        "Average rank: of the mean over seeds, among the methods of this table; 1 is the best.",
    ]


def across_pairs(tables: Sequence[Table]) -> list[Sheet]:
    """One sheet for each data set and protocol that has more than one table (a pair, or a teacher of one)."""
    cohorts: dict[str, list[Table]] = defaultdict(list)
    for table in tables:
        cohorts[table.cohort].append(table)
    sheets = [(key, _sheet(group)) for key, group in cohorts.items() if len(group) > 1]
    names = [sheet.path for _, sheet in sheets]
    unique = [
        replace(sheet, path=f"{sheet.path}-{key[:8]}") if names.count(sheet.path) > 1 else sheet
        for key, sheet in sheets
    ]
    return sorted(unique, key=lambda sheet: sheet.path)


def _sheet(tables: Sequence[Table]) -> Sheet:
    first = tables[0]
    methods = _complete(tables)
    partial = sorted({row.method for table in tables for row in table.rows if row.scores} - methods.keys())
    measure, heads = first.measure, {table.versus["kd"].removeprefix("Δ ") for table in tables}
    kd = " or ".join(sorted(heads))
    ranks = average_ranks({name: [_mean(row) for row in rows] for name, rows in methods.items()}, higher=measure.higher)
    controls = [[table.control(name) for table in tables] for name in ("scratch", "kd")]
    values = [_values(name, rows, tables, *controls, rank=ranks[name]) for name, rows in methods.items()]
    values.sort(key=lambda value: (value["average_rank"], value["method"]))
    pairs = ", ".join(table.name for table in tables)
    notes = _notes(kd, measure)
    if partial:
        notes.append(f"Without a finished run on some pair, and so not compared here: {', '.join(partial)}.")
    trust = "; ".join(
        [
            f"{len(tables)} pairs: {pairs}",
            f"protocol {first.protocol} ({digest(first.records[0].config['protocol'])[:12]})",
            "selection: last epoch",
            "of each control the reference, of each method the shipped default, else the setting of most seeds",
            f"95 % percentile intervals of {REPLICATES} bootstrap resamples of the runs within each pair",
            f"{len(frozenset().union(*(table.cells for table in tables)))} records",
        ]
    )
    return Sheet(
        path=f"across-pairs/{safe_name(first.dataset, first.protocol)}",
        title=f"Across pairs: {first.dataset}, {first.protocol}",
        facts=[],
        grids=[Grid("", columns(kd), 1, [Block("", [_cells(value) for value in values])], notes)],
        trust=trust,
        values=[{**value, "trust": trust} for value in values],
    )


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
    values: dict[str, Any] = {"method": name, "pairs": len(rows), "runs": sum(len(row.scores) for row in rows)}
    values |= _interval("gap_iqm", iqm(gaps) if any(gaps) else None)
    values["gap_pairs"] = sum(1 for runs in gaps if runs)
    better = None
    if len(against) == len(rows):
        better = improvement_probability(against, higher=tables[0].measure.higher)
    values |= _interval("p_better_than_kd", better)
    return values | {"average_rank": rank}


def _cells(values: dict[str, Any]) -> list[Cell]:
    texts = [values["method"], str(values["pairs"]), str(values["runs"])]
    texts += [_shown(values, "gap_iqm", 100, 1), _shown(values, "p_better_than_kd", 1, 2)]
    return [*map(Cell, texts), Cell(fixed(values["average_rank"], 2))]


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
