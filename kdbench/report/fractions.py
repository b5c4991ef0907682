"""Chapter 8 of the survey: a pair with few labels, with all, and distilled without any; and where these cross."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from typing import Any, NamedTuple

from kdbench.report.across import order, standing
from kdbench.report.measured import method_cell, subject
from kdbench.report.model import KEY_DIGITS, Row, Table, file_name
from kdbench.report.settings import Comparison
from kdbench.report.sheet import Block, Cell, Column, Grid, Sheet, mean, method_column, p_value
from kdbench.report.words import cut
from kdbench.results.record import Record, digest
from kdbench.results.stats import ALPHA, holm, paired_difference
from kdbench.taxonomy import load_taxonomy

FOLDER = "across-labels"
REQUIRED, FREE = "labels/required", "labels/free"
"""The leaves of the chapter, a second reading of all others by what their methods need."""


@dataclass(frozen=True)
class Point:
    """A method that needs labels, with so many of them; `delta`: to the best that needs none, over common seeds."""

    labels: int
    row: Row
    delta: Comparison | None


class Crossing(NamedTuple):
    """Where a method with labels passes distillation without any: above `low`, the largest number with which it is
    worse (None: with none), and at most at `high`, from which on it is better (None: with no number that was run)."""

    low: Point | None
    high: Point | None


@dataclass(frozen=True)
class _World:
    """Tables that differ in how many of the same images have labels; `free` rows need none, the best comes first."""

    tables: Sequence[Table]
    total: int | None
    free: Sequence[Row]
    curves: Mapping[str, Sequence[Point]]


def crossing_of(points: Sequence[Point]) -> Crossing:
    """From a method's points in ascending order: by the paired test over seeds, after Holm."""
    low = high = None
    for point in points:
        sure = point.delta is not None and point.delta.significant
        better = sure and point.delta is not None and point.delta.better
        if sure and not better:
            low = point
        high = (high or point) if better else None
    return Crossing(low, high)


def across_labels(tables: Sequence[Table]) -> list[Sheet]:
    """One sheet for each student, teacher, protocol and data set of which several tables differ only in how many of its
    images have labels (a scenario with ``labelled``, or none, which is all), if anything was distilled without labels.

    An epoch must have as many steps in all of them: ``laps`` makes up for fewer images with labels.
    """
    groups: dict[str, list[Table]] = defaultdict(list)
    for table in tables:
        groups[_key(table)].append(table)
    sheets = []
    for key, group in groups.items():
        teachers, scenarios = (sorted({*filter(None, map(word, group))}) for word in (_teacher, _scenario))
        for sha, posed in product(teachers, scenarios):
            world = _world([t for t in group if _teacher(t) in (sha, None) and _scenario(t) in (posed, None)])
            if world:
                sheets.append(_sheet(world, digest([key, sha, posed])[:KEY_DIGITS]))
    return sorted(sheets, key=lambda sheet: sheet.path)


def _key(table: Table) -> str:
    """What all records have in common, whatever the number of labels."""
    record = table.records[0]
    config, posed = record.config.get("dataset"), _posed(record)
    data = {key: value for key, value in config.items() if key != "scenario"} if isinstance(config, Mapping) else config
    sizes = {key: value for key, value in record.dataset.model_dump().items() if key != "n_train"}
    protocol, laps = record.config["protocol"], 1
    if "labelled" in posed:
        laps, posed = posed.get("laps", 1), {}
    batch = protocol.get("batch_size", 1) if isinstance(protocol, Mapping) else 1
    steps = math.ceil(laps * record.dataset.n_train / batch)
    same = [record.cell.dataset, data, dict(posed), sizes, record.cell.protocol, protocol, record.cell.student, steps]
    return digest([*same, asdict(table.measure)])


def _posed(record: Record) -> Mapping[str, Any]:
    config = record.config.get("dataset")
    posed = config.get("scenario") if isinstance(config, Mapping) else None
    return posed if isinstance(posed, Mapping) else {}


def _scenario(table: Table) -> str | None:
    """What else the scenario says that hides labels; None where none are hidden."""
    posed = _posed(table.records[0])
    rest = {key: value for key, value in posed.items() if key not in ("labelled", "laps")}
    return digest(rest) if "labelled" in posed else None


def _teacher(table: Table) -> str | None:
    return next((record.taught_by for record in table.records if record.taught_by), None)


def _world(tables: Sequence[Table]) -> _World | None:
    """None where nothing is to be compared."""
    ordered = sorted(tables, key=_labels)
    free: dict[str, Row] = {}
    curves: dict[str, list[Point]] = defaultdict(list)
    for table in ordered:
        needs = {record.cell.id: record.method.needs for record in table.records}
        for name, row in standing(table).items():
            if "labels" in needs[row.cells[0]]:
                curves[name].append(Point(_labels(table), row, None))
            elif {"teacher", "teachers"} & {*needs[row.cells[0]]}:
                free[name] = row  # of the table with the most images
    if not free or len({_labels(table) for table in ordered}) < 2 or not any(len(each) > 1 for each in curves.values()):
        return None
    measure = tables[0].measure
    ranked = sorted(free.values(), key=lambda row: (-measure.merit(_mean(row)), row.method))
    total = max((_labels(table) for table in ordered if "labelled" not in _posed(table.records[0])), default=None)
    return _World(ordered, total, ranked, _compared(curves, ranked[0], higher=measure.higher))


def _compared(curves: Mapping[str, Sequence[Point]], best: Row, *, higher: bool) -> dict[str, list[Point]]:
    """With the differences to the best without labels, and Holm's correction over all of them."""
    points = [point for name in sorted(curves, key=lambda name: order(curves[name][0].row)) for point in curves[name]]
    differences = [paired_difference(point.row.scores, best.scores) for point in points]
    adjusted = holm([each.p if each else None for each in differences])
    found: dict[str, list[Point]] = defaultdict(list)
    for point, difference, p in zip(points, differences, adjusted, strict=True):
        values = difference and {each.name: getattr(difference, each.name) for each in fields(difference)}
        delta = Comparison(**values, p_examples=None, higher=higher, holm=p) if values else None
        found[point.row.method].append(replace(point, delta=delta))
    return found


def _sheet(world: _World, key: str) -> Sheet:
    first = max(world.tables, key=lambda table: (_teacher(table) is not None, table.name))
    record = first.records[0]
    part = cut(record)
    data = f"{record.cell.dataset} ({part})" if part else record.cell.dataset
    chapter = load_taxonomy().chapter_of(FREE)
    assert chapter is not None
    counts = sorted({point.labels for points in world.curves.values() for point in points})
    digits = max(table.digits for table in world.tables)
    rows = [*world.free, *(points[-1].row for points in world.curves.values())]
    blocks = [
        Block("Without labels", [_line(row, rows, [row, *[None] * len(counts)], digits) for row in world.free]),
        Block("With labels", [_curve(points, rows, counts, digits) for points in world.curves.values()]),
    ]
    every = [point for points in world.curves.values() for point in points]
    tested = sum(point.delta is not None and point.delta.p is not None for point in every)
    measure, best = first.measure, world.free[0].label
    quantity = f"{measure.quantity[:1].upper()}{measure.quantity[1:]}"
    what = f"{quantity} after the last epoch, mean ± 95 % t-interval over seeds"
    bold = f"Bold: better than {best}, which has no label, p < {ALPHA:g} (paired t-test, Holm)."
    cells = frozenset(cell for row in (*world.free, *(point.row for point in every)) for cell in row.cells)
    trust = "; ".join(
        [
            f"{len(world.tables)} tables: {', '.join(table.name for table in world.tables)}",
            f"protocol {first.protocol} ({digest(record.config['protocol'])[:12]})",
            "selection: last epoch",
            "of each method the reference, the shipped default, else the setting of most seeds",
            f"± 95 % t-interval over seeds, bold: paired t-test p < {ALPHA} after Holm ({tested} tests)",
            f"teacher {(_teacher(first) or '')[:12]}",
            f"{len(cells)} records",
        ]
    )
    grid = Grid(
        heading="With and without labels",
        columns=[
            method_column(),
            Column("labels none", "no labels", ("no", "labels")),
            *(Column(f"labels {n}", _told(n, world), (f"{n:,}", _share(n, world) or "labels")) for n in counts),
            Column("crossing", "better from", words=True),
        ],
        blocks=blocks,
        notes=[f"{what}. {bold}", *_answers(world)],
        caption=f"{subject(replace(first, data=data))}. {what}. {bold}",
        key="labels",
    )
    return Sheet(
        path=f"{FOLDER}/{file_name(record.cell.dataset, first.pair, record.cell.protocol, key=key)}",
        title=f"{chapter.number}. {chapter.title}: {data}, {first.pair}, {first.protocol}",
        facts=[],
        grids=[grid],
        trust=trust,
        values=[{**value, "trust": trust} for value in _values(world)],
    )


def _curve(points: Sequence[Point], rows: Sequence[Row], counts: Sequence[int], digits: int) -> list[Cell]:
    there = {point.labels: point for point in points}
    cells = _line(points[-1].row, rows, [None, *(there[n].row if n in there else None for n in counts)], digits)
    for place, n in enumerate(counts, start=2):
        delta = there[n].delta if n in there else None
        cells[place] = replace(cells[place], bold=bool(delta and delta.significant and delta.better))
    high = crossing_of(points).high
    cells[-1] = Cell(f"{high.labels:,} labels" if high else "no crossing")
    return cells


def _line(row: Row, rows: Sequence[Row], found: Sequence[Row | None], digits: int) -> list[Cell]:
    named = method_cell(replace(row, setting=""), rows)
    return [named, *(mean(each.reached if each else None, digits) for each in found), Cell("-")]


# ---- in words -------------------------------------------------------------------------------------------------------


def _answers(world: _World) -> Iterator[str]:
    """What the chapter's questions are answered by."""
    required, free = (load_taxonomy().find(leaf) for leaf in (REQUIRED, FREE))
    assert required is not None
    assert free is not None
    measure, digits = world.tables[0].measure, max(table.digits for table in world.tables)
    best = world.free[0]
    yield (
        f"{free.heading}: {free.question} Best without labels: {best.label}, {measure.text(_mean(best), digits)}. "
        + " ".join(_sentence(name, points, world, digits) for name, points in world.curves.items())
    )
    most = max(points[-1].labels for points in world.curves.values())
    taught = [
        f"{point.row.label} Δ {_size(point, digits)}"
        for points in world.curves.values()
        if (point := points[-1]).labels == most and point.delta and _is_taught(point.row, world)
    ]
    if taught:
        yield (
            f"{required.heading}: {required.question} With {_told(most, world)}, beside {best.label} without: "
            f"{'; '.join(taught)}."
        )


def _sentence(name: str, points: Sequence[Point], world: _World, digits: int) -> str:
    """Where one method crosses."""
    best, (low, high) = world.free[0].label, crossing_of(points)
    if len(world.free[0].scores) < 2:
        return f"{name}: on one seed no crossing can be told."
    if high is None:
        last = points[-1]
        told = f"with {_told(last.labels, world)} Δ {_size(last, digits)}" if last.delta else "no seed in common"
        return f"{name}: no crossing with {best} within what was run ({told})."
    end = f"{_told(high.labels, world)} (Δ {_size(high, digits)})"
    if low is not None:
        return f"{name} passes {best} between {_told(low.labels, world)} (Δ {_size(low, digits)}) and {end}."
    if high is points[0]:
        return f"{name} is better than {best} already with {end}, the fewest that were run."
    return f"{name} is better than {best} from {end} on, and with fewer cannot be told from it."


def _size(point: Point, digits: int) -> str:
    assert point.delta is not None
    tested = point.delta.p if point.delta.holm is None else point.delta.holm
    return f"{mean(point.delta, digits, signed=True).text}, {p_value(tested)}"


def _told(labels: int, world: _World) -> str:
    share = _share(labels, world)
    return f"{labels:,} labels ({share})" if share else f"{labels:,} labels"


def _share(labels: int, world: _World) -> str:
    """Of all images, where it is known how many there are."""
    return f"{100 * labels / world.total:.3g} %" if world.total else ""


# ---- values ---------------------------------------------------------------------------------------------------------


def _values(world: _World) -> Iterator[dict[str, Any]]:
    """A line for each method and number of labels."""
    free = [Point(0, row, None) for row in world.free]
    for points in (*([point] for point in free), *world.curves.values()):
        low, high = crossing_of(points)
        for point in points:
            reached, delta = point.row.reached, point.delta
            assert reached is not None
            yield {
                "method": point.row.method,
                "setting": point.row.setting,
                "labels": point.labels,
                "share": point.labels / world.total if world.total else None,
                "n": reached.n,
                world.tables[0].measure.name: reached.mean,
                "low": reached.low,
                "high": reached.high,
                "without": world.free[0].label if delta else None,
                "delta": delta and delta.mean,
                "delta_low": delta and delta.low,
                "delta_high": delta and delta.high,
                "delta_p_holm": delta and delta.holm,
                "crossing_above": low and low.labels,
                "crossing_at_most": high and high.labels,
                "cells": " ".join(point.row.cells),
            }


def _is_taught(row: Row, world: _World) -> bool:
    return any(record.cell.id in row.cells and record.teacher for table in world.tables for record in table.records)


def _labels(table: Table) -> int:
    """How many training images have a label; methods that need none do not see them."""
    return table.records[0].dataset.n_train


def _mean(row: Row) -> float:
    assert row.reached is not None
    return row.reached.mean
