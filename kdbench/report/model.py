"""From records to rows: which records are comparable, what each method reached, and how sure that is."""

from __future__ import annotations

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from kdbench.errors import UserError
from kdbench.measures import TOP1, Measure, further
from kdbench.report.settings import (
    Comparison,
    Known,
    Reference,
    Role,
    Setting,
    compare_settings,
    is_default,
    parse_setting,
    reference,
    role_of,
    row_label,
    settings_of,
)
from kdbench.report.trust import header, ignorance, nearness, scenario, trust_line, versus, weakness_in
from kdbench.report.words import cut, protocol_names
from kdbench.results.labels import ClassSizes, Labels, class_sizes
from kdbench.results.record import MethodInfo, Record, digest, unpack_correct
from kdbench.results.stats import Estimate, gap_recovered, holm, mean_interval
from kdbench.results.store import Store
from kdbench.taxonomy import load_taxonomy

KEY_DIGITS = 8
"""Of the hash of what makes records comparable, by which a file's name ends."""

PAUSED = 2.0
"""Training times of seeds that differ by more than this factor hold pauses of the machine, and are not shown."""


@dataclass(frozen=True)
class Recall:
    """Over the classes of a test set, in percent.

    Attributes:
        mean: over classes; over seeds with its interval. That is the balanced accuracy.
        low, high: of the worst and the best class, each over seeds.
    """

    mean: Estimate
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One setting of one method over its seeds; None where there is none, `gap` a fraction.

    Attributes:
        title, paper: how the method is called where people write about it, and the key of its work in a bibliography.
        reference: whether the other rows are compared with this one, as far as it is a control.
        default: whether it has the settings that ship with its method.
        setting: the config values that tell this row from others of the same method; empty where it has the name alone.
        cells: ids of its cells in the order of their seeds, the diverged ones among them.
        scores: what is measured after the last epoch by seed, of the finished cells; only these enter the statistics
            and costs.
        reached: their mean.
        std: their standard deviation s, s² = Σ(x - m)² / (n - 1); None of one seed.
        others: means of further measures by name, over the seeds that have them.
        recall: None where the labels of the test set are not in the store.
        survey: what the method says for the survey's columns; None where neither it nor its record is known to.
        train_minutes: median over seeds, None where they differ by more than `PAUSED`.
        student_forwards, teacher_forwards: per image seen.
    """

    block: str
    leaf: str
    control: str | None
    role: Role
    reference: bool
    default: bool
    method: str
    title: str
    paper: str | None
    setting: str
    cls: str
    survey: Mapping[str, str] | None
    cells: tuple[str, ...]
    scores: Mapping[int, float]
    diverged: int
    reached: Estimate | None
    std: float | None
    others: Mapping[str, Estimate]
    recall: Recall | None
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
        name: of its files: readable, and by its last part the same for ever, whatever other tables come.
        header: the facts, one a line; trust: the same in one line.
        cohort: the same for tables that differ in the pair alone.
        data: the data set and which part of it was trained on.
        protocol: its name, and where its values are not those that ship under it.
        measure: what all records measure.
        digits: its decimals.
        others: further measures of any row by name, with their decimals.
        versus: the heads of the differences, by control.
        teacher: what the teacher reaches, None where there is none.
        goal: the same as the end of the gap to recover; None where the teacher does not know all classes of the
            student, or the gap is inside the interval of the student from scratch.
        weak: why it has nothing to teach, as a clause, or None.
        unequal: whether the classes of the test set differ in size, see `kdbench.results.labels.UNEQUAL`.
    """

    cells: frozenset[str]
    name: str
    title: str
    header: list[str]
    trust: str
    rows: list[Row]
    cohort: str
    dataset: str
    data: str
    pair: str
    protocol: str
    measure: Measure
    digits: int
    others: Mapping[str, int]
    versus: Mapping[str, str]
    teacher: float | None
    goal: float | None
    weak: str | None
    unequal: bool
    records: Sequence[Record] = field(repr=False, compare=False)

    def control(self, control: str) -> Row | None:
        """The row of a control that others are compared with, see `kdbench.report.settings.reference`."""
        return next((row for row in self.rows if row.control == control and row.reference), None)


def load_records(store_root: str | Path) -> list[Record]:
    """All records of a store.

    Raises:
        UserError: there are none, or some are bad.
    """
    records = Store(store_root).load()
    if not records:
        raise UserError(f"The store {store_root} has no records: train some cells first, with `kdbench run`.")
    return records


def build_tables(
    records: Iterable[Record],
    known: Iterable[Known] = (),
    labels: Mapping[str, Labels] | None = None,
    named: Sequence[str] = (),
) -> list[Table]:
    """Group records into tables and compute their rows; the order of `records` plays no part.

    Records share a table where data set (content and settings), student, protocol (name and config), teacher (hash of
    the weights, of the first where there are several, or of its recipe where each run has one of its own) and what is
    measured are the same. Those that used no teacher stand in the table of every teacher.

    Args:
        known: methods of the registry, for what records do not say of them.
        labels: of test sets, by key, for the recall of each class.
        named: settings of controls that the others are to be compared with, as in ``kd:temperature=4``.

    Raises:
        UserError: no record is of a setting in `named`, or labels do not fit their records.
    """
    records, known = list(records), list(known)
    _check_named(records, named)
    protocols = protocol_names(records)
    unnamed: dict[str, list[Record]] = defaultdict(list)
    for record in sorted(records, key=lambda r: r.cell.id):
        unnamed[_cohort(record, None)].append(record)
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for cohort, alike in unnamed.items():
        namings = {record.dataset.classes for record in alike}
        # the first records do not say how classes are called: as those that do, where these are of one mind
        together = None in namings and len(namings) <= 2
        for record in alike:
            own = cohort if together else _cohort(record, record.dataset.classes)
            groups[own, record.cell.student].append(record)
    tables: list[Table] = []
    for (cohort, student), group in groups.items():
        taught = [(record.taught_by, record) for record in group]
        for teacher in sorted({sha for sha, _ in taught if sha}) or [""]:
            shared = [record for sha, record in taught if sha in (None, teacher)]
            key = digest([cohort, student, teacher])[:KEY_DIGITS]
            tables.append(_table(shared, cohort, key, protocols[shared[0].cell.id], known, labels or {}, named))
    return sorted(_told_apart(tables), key=lambda table: table.name)


def _told_apart(tables: list[Table]) -> list[Table]:
    """Tables of one title say there what differs, too: settings of the scenario, the teacher, at last the key."""

    def posed(table: Table) -> list[str]:
        found = scenario(table.records[0])
        return found[1] if found else []

    def teacher(table: Table) -> list[str]:
        return [] if table.teacher is None else [f"teacher {table.measure.text(table.teacher, table.digits)}"]

    def key(table: Table) -> list[str]:
        return [table.name.rpartition("-")[2]]

    for marks in (posed, teacher, key):
        alike: dict[str, list[Table]] = defaultdict(list)
        for table in tables:
            alike[table.title].append(table)
        tables = []
        for title, group in alike.items():
            common = set.intersection(*(set(marks(table)) for table in group))
            for table in group:
                own = [mark for mark in marks(table) if mark not in common]
                tables.append(replace(table, title=", ".join([title, *own])))
    return tables


def _cohort(record: Record, naming: str | None) -> str:
    """A hash of what records of a table share, but for networks.

    Args:
        naming: the hash of how classes are called.
    """
    cell, config = record.cell, record.config
    sizes = record.dataset.model_copy(update={"classes": naming}).model_dump()
    same = [cell.dataset, cell.protocol, sizes, config.get("dataset"), config["protocol"]]
    if record.measure != TOP1:
        same.append(asdict(record.measure))
    return digest(same)


def file_name(*parts: str, key: str) -> str:
    """Names, for people, and the key that tells them apart, joined to one that every file system takes."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', '-'.join(parts)).lstrip('.')[:150]}-{key}"


def _check_named(records: Sequence[Record], named: Sequence[str]) -> None:
    controls = [s for s in settings_of(records) if s.info.control in ("scratch", "kd")] if named else []
    for text in named:
        name, values = parse_setting(text)
        if not any(setting.method == name and setting.has(values) for setting in controls):
            there = "; ".join(dict.fromkeys(setting.label for setting in controls)) or "none"
            raise UserError(f"No control is '{text}', so nothing can be compared with it: choose from {there}.")


def _block(info: MethodInfo) -> str:
    leaf = load_taxonomy().find(info.leaf)
    heading = leaf.heading if leaf else info.leaf
    return {
        "control": "Controls",
        "survey": heading,
        "extension": "Extensions",
        "third-party": f"Third-party: {heading}",
    }[role_of(info)]


# ---- tables ---------------------------------------------------------------------------------------------------------


def _table(
    records: list[Record],
    cohort: str,
    key: str,
    protocol: str,
    known: Sequence[Known],
    labels: Mapping[str, Labels],
    named: Sequence[str],
) -> Table:
    cell = max((record.cell for record in records), key=lambda cell: (cell.teacher is not None, cell.id))
    settings = settings_of(records)
    scratch, kd = (reference(settings, control, known, named) for control in ("scratch", "kd"))
    accuracy = _mean([record.teacher.accuracy for record in records if record.teacher])
    goal = None if ignorance(records) or nearness(records, accuracy, scratch) else accuracy
    measure = records[0].measure
    sizes = class_sizes(labels, records[0]) if measure == TOP1 else None
    rows = _corrected([_row(setting, scratch, kd, goal, sizes, known) for setting in settings])
    shown = [score for row in rows for score in row.scores.values()]
    digits = measure.digits(shown if accuracy is None else [*shown, accuracy])
    posed = scenario(records[0])
    dataset = f"{cell.dataset} {posed[0]}" if posed else cell.dataset
    data = f"{dataset} ({part})" if (part := cut(records[0])) else dataset
    return Table(
        cells=frozenset(record.cell.id for record in records),
        name=file_name(dataset, cell.pair, cell.protocol, key=key),
        title=f"{data}, {cell.pair}, {protocol}",
        header=header(records, accuracy, scratch, kd, sizes, protocol=protocol, digits=digits),
        trust=trust_line(
            records,
            accuracy,
            scratch,
            protocol=protocol,
            seeds=max(len(row.scores) for row in rows),
            deltas=[[row.delta_scratch for row in rows], [row.delta_kd for row in rows]],
            digits=digits,
        ),
        rows=rows,
        cohort=cohort,
        dataset=dataset,
        data=data,
        pair=cell.pair,
        protocol=protocol,
        measure=measure,
        digits=digits,
        others={
            name: further(name).digits(_of(rows, name))
            for name in sorted({name for row in rows for name in row.others})
        },
        versus={"scratch": versus("scratch", scratch), "kd": versus("kd", kd)},
        teacher=accuracy,
        goal=goal,
        weak=weakness_in(records, accuracy, scratch),
        unequal=sizes is not None and sizes.unequal,
        records=records,
    )


def _row(
    setting: Setting,
    scratch: Reference | None,
    kd: Reference | None,
    goal: float | None,
    sizes: ClassSizes | None,
    known: Sequence[Known],
) -> Row:
    info, scores, costs = setting.info, setting.scores, [record.cost for record in setting.finished]
    seen = [cost for cost in costs if cost.images_seen]

    def delta(control: Reference | None) -> Comparison | None:
        if control is None or control.setting is setting:
            return None
        return compare_settings(setting, control.setting)

    gap = None
    entry = next((entry for entry in known if entry.path == info.cls), None)
    if scores and scratch and scratch.setting is not setting and goal is not None:
        higher = setting.records[0].measure.higher
        gap = gap_recovered(_mean_of(scores), _mean_of(scratch.setting.scores), goal, higher=higher)
    return Row(
        block=_block(info),
        leaf=info.leaf,
        control=info.control,
        role=role_of(info),
        reference=any(control is not None and control.setting is setting for control in (scratch, kd)),
        default=bool(is_default(setting, known)),
        method=setting.method,
        title=entry.title if entry else setting.method,
        paper=info.paper,
        setting=setting.setting,
        cls=info.cls,
        # a class that is known speaks for itself, so that what is mended there is mended in every table
        survey=entry.survey if entry else info.survey,
        cells=tuple(record.cell.id for record in sorted(setting.records, key=lambda record: record.cell.seed)),
        scores=scores,
        diverged=len(setting.records) - len(setting.finished),
        reached=mean_interval(list(scores.values())) if scores else None,
        std=statistics.stdev(scores.values()) if len(scores) > 1 else None,
        others=_others(setting),
        recall=_recall(setting, sizes),
        delta_scratch=delta(scratch),
        delta_kd=delta(kd),
        gap=gap,
        train_minutes=_minutes([cost.train_seconds / 60 for cost in costs]),
        student_forwards=_mean([cost.student_forwards / cost.images_seen for cost in seen]),
        teacher_forwards=_mean([cost.teacher_forwards / cost.images_seen for cost in seen]),
        extra_params=max((cost.extra_params for cost in costs), default=None),
    )


def _others(setting: Setting) -> dict[str, Estimate]:
    runs: dict[str, list[float]] = defaultdict(list)
    for record in setting.finished:
        for name, value in record.metrics.others.items() if record.metrics else ():
            runs[name].append(value)
    return {name: mean_interval(values) for name, values in sorted(runs.items())}


def _of(rows: Sequence[Row], other: str) -> list[float]:
    return [row.others[other].mean for row in rows if other in row.others]


def _recall(setting: Setting, sizes: ClassSizes | None) -> Recall | None:
    if sizes is None or not setting.finished:
        return None
    runs = [sizes.recalls(unpack_correct(record.correct)) for record in setting.finished if record.correct]
    classes = [math.fsum(values) / len(runs) for values in zip(*(run.tolist() for run in runs), strict=True)]
    mean = mean_interval([math.fsum(run.tolist()) / len(run) for run in runs])
    return Recall(mean, min(classes), max(classes))


def _minutes(minutes: Sequence[float]) -> float | None:
    return statistics.median(minutes) if minutes and max(minutes) <= PAUSED * min(minutes) else None


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
