"""From records to rows: which records are comparable, what each method reached, and how sure that is."""

from __future__ import annotations

import importlib
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from kdbench.errors import UserError
from kdbench.report.settings import Comparison, Setting, compare_settings, reference, row_label, settings_of
from kdbench.report.trust import header, trust_line, weakness_in
from kdbench.results.record import MethodInfo, Record, digest
from kdbench.results.stats import Estimate, gap_recovered, holm, mean_interval
from kdbench.results.store import Store
from kdbench.taxonomy import load_taxonomy


@dataclass(frozen=True)
class Row:
    """One setting of one method over its seeds. Accuracies in percent, `gap` a fraction; None where there is none.

    Attributes:
        setting: the config values that tell this row from others of the same method; empty where it has the name alone.
        scores: last-epoch accuracy by seed, of the finished cells; only these enter the statistics and costs.
        survey: what the method's class says for the survey's columns; None where the class cannot be imported here.
        student_forwards, teacher_forwards: per image seen.
    """

    block: str
    leaf: str
    control: str | None
    extension: bool
    method: str
    setting: str
    cls: str
    survey: Mapping[str, str] | None
    scores: Mapping[int, float]
    diverged: int
    top1: Estimate | None
    delta_scratch: Comparison | None
    delta_kd: Comparison | None
    gap: float | None
    train_minutes: float | None
    student_forwards: float | None
    teacher_forwards: float | None
    extra_params: int | None

    @property
    def label(self) -> str:
        return row_label(self.method, self.setting)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.scores)


@dataclass(frozen=True)
class Table:
    """Comparable rows, in the order they are shown, and the lines that say what makes them comparable.

    Attributes:
        cells: ids of the records it stands on.
        header: the facts, one a line; trust: the same in one line.
        cohort: the same for tables that differ in the pair alone.
        teacher: accuracy of the teacher, None where there is none.
        weak: why it has nothing to teach, as a clause, or None.
    """

    cells: frozenset[str]
    name: str
    title: str
    header: list[str]
    trust: str
    rows: list[Row]
    cohort: str
    dataset: str
    pair: str
    protocol: str
    teacher: float | None
    weak: str | None
    records: Sequence[Record] = field(repr=False, compare=False)

    def control(self, control: str) -> Row | None:
        """The row of a control that others are compared with: the one of most seeds, not the one of best accuracy."""
        candidates = [row for row in self.rows if row.control == control and row.scores]
        return max(candidates, key=lambda row: len(row.scores), default=None)


def load_records(store_root: str | Path) -> list[Record]:
    """All records of a store.

    Raises:
        UserError: there are none, or some are bad.
    """
    records = Store(store_root).load()
    if not records:
        raise UserError(f"The store {store_root} has no records: train some cells first, with `kdbench run`.")
    return records


def build_tables(records: Iterable[Record]) -> list[Table]:
    """Group records into tables and compute their rows; the order of `records` plays no part.

    Records share a table where data set (content and settings), student, protocol (name and config) and teacher (hash
    of the weights) are the same. Those that used no teacher stand in the table of every teacher.
    """
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda r: r.cell.id):
        cell = record.cell
        sizes, config = record.dataset.model_dump(), record.config
        cohort = digest([cell.dataset, cell.protocol, sizes, config.get("dataset"), config["protocol"]])
        groups[cohort, cell.student].append(record)
    tables: list[Table] = []
    keys: list[str] = []
    for (cohort, student), group in groups.items():
        teachers = sorted({record.teacher.sha256 for record in group if record.teacher})
        for sha in teachers or [""]:
            shared = [record for record in group if record.teacher is None or record.teacher.sha256 == sha]
            tables.append(_table(shared, cohort))
            keys.append(digest([cohort, student, sha]))
    # Names are for people; where tables would share one (also on a disk that ignores case), the key tells them apart.
    taken = [table.name.lower() for table in tables]
    named = [
        replace(table, name=f"{table.name}-{key[:8]}") if taken.count(table.name.lower()) > 1 else table
        for table, key in zip(tables, keys, strict=True)
    ]
    return sorted(named, key=lambda table: table.name)


def safe_name(*parts: str) -> str:
    """Names joined to one that every file system takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(parts)).lstrip(".")[:150]


@cache
def declared(path: str) -> Mapping[str, str] | None:
    """The ``survey`` of a method's class (dotted path), None where it cannot be imported here: a third party's."""
    module, _, attribute = path.rpartition(".")
    try:
        survey = getattr(importlib.import_module(module), attribute).survey
    except Exception:  # whatever a third party's module does when it is imported
        return None
    return {str(key): str(value) for key, value in survey.items()} if isinstance(survey, Mapping) else None


def _block(info: MethodInfo) -> str:
    if info.control:
        return "Controls"
    if info.extension:
        return "Extensions"
    leaf = load_taxonomy().find(info.leaf)
    return leaf.heading if leaf else f"Third-party: {info.leaf}"


# ---- tables ---------------------------------------------------------------------------------------------------------


def _table(records: list[Record], cohort: str) -> Table:
    cell = max((record.cell for record in records), key=lambda cell: (cell.teacher is not None, cell.id))
    settings = settings_of(records)
    scratch, kd = (reference(settings, control) for control in ("scratch", "kd"))
    accuracy = _mean([record.teacher.accuracy for record in records if record.teacher])
    rows = _corrected([_row(setting, scratch, kd, accuracy) for setting in settings])
    return Table(
        cells=frozenset(record.cell.id for record in records),
        name=safe_name(cell.dataset, cell.pair, cell.protocol),
        title=f"{cell.dataset}, {cell.pair}, {cell.protocol}",
        header=header(records, accuracy, scratch, kd),
        trust=trust_line(
            records,
            accuracy,
            scratch,
            seeds=max(len(row.scores) for row in rows),
            deltas=[[row.delta_scratch for row in rows], [row.delta_kd for row in rows]],
        ),
        rows=rows,
        cohort=cohort,
        dataset=cell.dataset,
        pair=cell.pair,
        protocol=cell.protocol,
        teacher=accuracy,
        weak=weakness_in(records, accuracy, scratch),
        records=records,
    )


def _row(setting: Setting, scratch: Setting | None, kd: Setting | None, teacher: float | None) -> Row:
    info, scores, costs = setting.info, setting.scores, [record.cost for record in setting.finished]
    seen = [cost for cost in costs if cost.images_seen]

    def delta(control: Setting | None) -> Comparison | None:
        return None if control is None or control is setting else compare_settings(setting, control)

    gap = None
    if scores and scratch and scratch is not setting and teacher is not None:
        gap = gap_recovered(_mean_of(scores), _mean_of(scratch.scores), teacher)
    return Row(
        block=_block(info),
        leaf=info.leaf,
        control=info.control,
        extension=info.extension,
        method=setting.method,
        setting=setting.setting,
        cls=info.cls,
        survey=declared(info.cls),
        scores=scores,
        diverged=len(setting.records) - len(setting.finished),
        top1=mean_interval(list(scores.values())) if scores else None,
        delta_scratch=delta(scratch),
        delta_kd=delta(kd),
        gap=gap,
        train_minutes=_mean([cost.train_seconds / 60 for cost in costs]),
        student_forwards=_mean([cost.student_forwards / cost.images_seen for cost in seen]),
        teacher_forwards=_mean([cost.teacher_forwards / cost.images_seen for cost in seen]),
        extra_params=max((cost.extra_params for cost in costs), default=None),
    )


def _corrected(rows: list[Row]) -> list[Row]:
    """With Holm's correction over all rows of the table, for the comparisons with each control on their own."""
    scratch, kd = (_holm([row.delta_scratch for row in rows]), _holm([row.delta_kd for row in rows]))
    return [replace(row, delta_scratch=a, delta_kd=b) for row, a, b in zip(rows, scratch, kd, strict=True)]


def _holm(deltas: list[Comparison | None]) -> list[Comparison | None]:
    adjusted = holm([delta.p if delta else None for delta in deltas])
    return [delta and replace(delta, holm=p) for delta, p in zip(deltas, adjusted, strict=True)]


def _mean(values: list[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _mean_of(scores: Mapping[int, float]) -> float:
    return math.fsum(scores.values()) / len(scores)
