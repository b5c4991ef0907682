"""Rows of a table of the model as sheets show them: columns, cells, captions, values for CSV, and what is best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from kdbench.measures import TOP1, further
from kdbench.report.model import PAUSED, Row, Table
from kdbench.report.settings import Comparison, row_label, shown
from kdbench.report.sheet import (
    OTHER,
    Block,
    Cell,
    Column,
    Grid,
    Work,
    count,
    difference,
    mean,
    method_column,
    p_value,
    plain,
)
from kdbench.report.words import data_name, network_name
from kdbench.results.stats import ALPHA, Estimate
from kdbench.text import fixed

REFERENCE = "reference"
"""Stands for the difference of a control to itself."""


def measured(table: Table) -> dict[str, str]:
    """What `measured_cells` give: key -> the head of its column."""
    return {column.key: column.head for column in measured_columns(table)}


def measured_columns(table: Table) -> list[Column]:
    """What is measured of a method, with units, and an arrow where lower is better."""
    measure = table.measure
    head = measure.label if measure == TOP1 else measure.quantity.removesuffix(" ↓")
    each = "img" if measure.examples == "images" else "sample"
    unit = f"({measure.unit})" if measure.unit else ""
    scratch, kd = table.versus["scratch"], table.versus["kd"]
    goal = ""
    if table.goal is not None:
        end = measure.text(table.goal, table.digits)
        goal = f"gap: share of the way from {scratch.removeprefix('Δ ')} to the teacher's {end}"
    return [
        Column("n", "n"),
        Column(
            "score",
            f"{head} last" if measure.higher else f"{head} last ↓",
            (measure.label, f"{unit}{'' if measure.higher else ' ↓'}".strip()),
        ),
        # beside top-1, where the classes of the test set differ in size
        *([Column("balanced", "balanced", ("balanced", "(%)"))] if table.unequal else []),
        Column("delta_scratch", scratch, legend=_against(table, "scratch")),
        Column("delta_kd", kd, legend=_against(table, "kd")),
        *(Column(f"{OTHER}{name}", (of := further(name)).quantity, (of.label, of.suffix)) for name in table.others),
        Column("gap", "gap recovered %", ("gap", "(%)"), legend=goal),
        Column("minutes", "train min", ("train", "(min)")),
        Column("student_forwards", f"student fwd/{each}", ("student", f"fwd/{each}")),
        Column("teacher_forwards", f"teacher fwd/{each}", ("teacher", f"fwd/{each}")),
        Column("extra_params", "extra params", ("extra", "params")),
        Column("diverged", "diverged"),
    ]


def _against(table: Table, control: str) -> str:
    reference = table.control(control)
    head = table.versus[control]
    label = head.removeprefix("Δ ") if reference and not reference.setting else reference.label if reference else ""
    return f"{head}: difference to {label} between runs of the same seed" if reference else ""


def measured_cells(table: Table, row: Row) -> dict[str, Cell]:
    """A row as `measured` shows it; rounded, "-" for what there is not."""

    def against(control: str, delta: Comparison | None) -> Cell:
        if row.reference and row.control == control:
            return Cell(REFERENCE)
        return difference(delta, len(row.seeds), table.digits)

    return {
        "n": count(len(row.seeds)),
        "score": mean(row.reached, table.digits),
        **({"balanced": mean(row.recall.mean if row.recall else None)} if table.unequal else {}),
        "delta_scratch": against("scratch", row.delta_scratch),
        "delta_kd": against("kd", row.delta_kd),
        **{f"{OTHER}{name}": mean(row.others.get(name), digits) for name, digits in table.others.items()},
        "gap": plain(row.gap, 1, scale=100),
        "minutes": plain(row.train_minutes),
        "student_forwards": plain(row.student_forwards),
        "teacher_forwards": plain(row.teacher_forwards),
        "extra_params": Cell("-") if row.extra_params is None else count(row.extra_params),
        "diverged": count(row.diverged),
    }


def method_cell(row: Row, rows: Sequence[Row]) -> Cell:
    """The method's name in a table of `rows`; two methods that people call the same are told apart by their ids."""
    twins = {other.method for other in rows if other.title == row.title}
    title = row.title if len(twins) == 1 or row.method == row.title.lower() else f"{row.title} ({row.method})"
    return Cell(row.label, work=Work(row_label(title, row.setting), row.paper))


def measured_grid(
    table: Table, rows: Sequence[Row], heading: str = "", notes: Sequence[str] = (), key: str = ""
) -> Grid:
    """Some rows of a table, in blocks, with all that is measured."""
    blocks = [
        Block(name, [[method_cell(row, table.rows), *measured_cells(table, row).values()] for row in group])
        for name, group in blocks_of(rows)
    ]
    columns = [
        replace(column, note=paused(rows)) if column.key == "minutes" else column for column in measured_columns(table)
    ]
    said = ": ".join(filter(None, [heading, caption(table, rows)]))
    return Grid(heading, [method_column(), *columns], blocks, notes, said, key)


def blocks_of(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Neighbouring rows of one block, under its name."""
    return [(block, list(group)) for block, group in groupby(rows, key=lambda row: row.block)]


def subject(table: Table, pair: str | None = None) -> str:
    """Data, networks and budget in words: ``CIFAR-100 (20 classes), ResNet-20 to ResNet-8, 12 epochs (lite)``."""
    record = table.records[0]
    teacher = next((each.teacher.name for each in table.records if each.teacher), None)
    data = table.data.replace(record.cell.dataset, data_name(record.cell.dataset), 1)
    networks = " to ".join(map(network_name, [*([teacher] if teacher else []), record.cell.student]))
    protocol = record.config["protocol"]
    epochs = protocol.get("epochs") if isinstance(protocol, Mapping) else None
    budget = f"{shown(epochs)} epochs (protocol {table.protocol})" if epochs else f"protocol {table.protocol}"
    return ", ".join([data, networks if pair is None else pair, budget])


def caption(table: Table, rows: Sequence[Row]) -> str:
    """What a reader of `rows` in a paper must know, in sentences."""
    measure, seeds = table.measure, {len(row.seeds) for row in rows if row.scores}
    what = f"{measure.label[:1].upper()}{measure.label[1:]}{f' in {measure.unit}' if measure.unit else ''}"
    lower = "" if measure.higher else f" ({measure.direction})"
    parts = [f"{subject(table)}."]
    if max(seeds, default=1) == 1:
        return " ".join([*parts, f"{what}{lower} after the last epoch, of one seed."])
    many = "seeds" if len(seeds) > 1 else f"{max(seeds)} seeds"
    parts.append(f"{what}{lower} after the last epoch, mean ± 95 % t-interval over {many};")
    return " ".join([*parts, f"bold: p < {ALPHA:g} (paired t-test, Holm)."])


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
    """The best of those `rows` that are no controls, and whether it can be told from KD; empty where there is none.

    Where a table has no KD, as for tasks that it does not serve, the best is compared with the other reference.
    """
    measure, digits = table.measure, table.digits
    ranked = [(measure.merit(row.reached.mean), row) for row in rows if row.reached and not row.control]
    if not ranked:
        return ""
    _, best = max(ranked, key=lambda pair: pair[0])
    assert best.reached is not None
    start = f"Best beside the controls: {best.label}, {measure.text(best.reached.mean, digits)}"
    deltas = {"kd": best.delta_kd, "scratch": best.delta_scratch}
    found = [(_reference(table, role), table.control(role), delta) for role, delta in deltas.items()]
    name, reference, delta = next((each for each in found if each[1]), ("", None, None))
    if reference is None:
        return f"{start}; there is no run of a control to compare it with."
    if delta is None:
        return f"{start}; it shares no seed with {reference.label}, so it cannot be compared with {name}."
    if delta.half is None:
        size = fixed(delta.mean, digits, signed=True)
        return f"{start}; on one seed not distinguishable from {name} (Δ {size}, no interval and no test)."
    tested = f"{p_value(delta.holm)} after Holm" if delta.holm is not None else p_value(None)
    size = f"Δ {mean(delta, digits, signed=True).text}, {tested}, n = {delta.n}"
    if not delta.significant:
        return f"{start}; not distinguishable from {name} ({size})."
    return f"{start}; {'better' if delta.better else 'worse'} than {name} ({size})."


def tally(table: Table, rows: Sequence[Row]) -> str:
    """How many of those `rows` that are no controls are better or worse than each reference, and which.

    By the paired test over seeds, after Holm over all of the table. Empty for less than two, which `verdict` tells.
    """
    own = [row for row in rows if row.reached and not row.control]
    parts = []
    for role in ("kd", "scratch"):
        deltas = [(row, delta) for row in own if (delta := getattr(row, f"delta_{role}")) and delta.p is not None]
        if len(deltas) < 2:
            continue
        sure = {
            word: [row.label for row, delta in deltas if delta.significant and delta.better is better]
            for word, better in (("better", True), ("worse", False))
        }
        counts = [f"{len(names)} {word}" + (f" ({', '.join(names)})" if names else "") for word, names in sure.items()]
        rest = len(deltas) - sum(map(len, sure.values()))
        parts.append(f"beside {_reference(table, role)} {', '.join(counts)}, {rest} not distinguishable")
    if not parts:
        return ""
    return f"Of {len(own)} methods that are no controls: {'; '.join(parts)} (p < {ALPHA:g} after Holm)."


def _reference(table: Table, role: str) -> str:
    return table.versus[role].removeprefix("Δ ")


def paused(rows: Sequence[Row]) -> str:
    """Whose minutes are not shown, and why; empty where there is nothing to say."""
    found = [row.label for row in rows if row.scores and row.train_minutes is None]
    if not found:
        return ""
    return f"No minutes where seeds differ by more than {PAUSED:g}x, which is the machine's doing: {', '.join(found)}."


def _interval(name: str, value: Estimate | None) -> dict[str, float | None]:
    if value is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: value.mean, f"{name}_low": value.low, f"{name}_high": value.high}
