"""What a reader must know to trust, and to compare, the numbers of a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kdbench.measures import TOP1, Measure
from kdbench.report.settings import Comparison, Reference, shown
from kdbench.results.labels import ClassSizes
from kdbench.results.record import Record, digest, flatten
from kdbench.results.stats import ALPHA, above_chance, mean_interval
from kdbench.text import fixed


def header(
    records: Sequence[Record],
    teacher: float | None,
    scratch: Reference | None,
    kd: Reference | None,
    sizes: ClassSizes | None,
    *,
    protocol: str,
    digits: int = 2,
) -> list[str]:
    """The facts, one a line; `protocol` is its name as a title has it, `digits` the decimals of what is measured."""
    first, measure = records[0], records[0].measure
    environments = [record.environment for record in records]
    diverged = sum(record.status == "diverged" for record in records)
    student_line = f"Student: {first.cell.student}, no run from scratch."
    if scratch:
        start = mean_interval(list(scratch.setting.scores.values()))
        reached = f"{measure.text(start.mean, digits)} (one seed)"
        if start.half is not None:
            reached = f"{fixed(start.mean, digits)} ± {measure.text(start.half, digits)}"
        how = ORIGINS.get(scratch.setting.method, f"by {scratch.setting.method}")
        student_line = f"Student: {first.cell.student}, {how} {reached}."
    references = [
        f"{name} is against {reference.setting.label}{_why(reference)}"
        for name, reference in ((versus("scratch", scratch), scratch), (versus("kd", kd), kd))
        if reference
    ]
    config, name = first.config["protocol"], first.cell.protocol
    settings = flatten(config) if isinstance(config, dict) else {}
    listed = ", ".join(f"{key}={shown(value)}" for key, value in sorted(settings.items()))
    return [
        f"Teacher: {_teacher(records, teacher, digits)}{_weak(records, teacher, scratch)}.",
        *_further(records, digits),
        student_line,
        f"Data: {first.cell.dataset} {_data(first, sizes)}.",
        f"Protocol: {protocol}{f' ({listed})' if listed else ''}."
        + (" With values of your own, protocol.name=NAME gives it a name of its own." if protocol != name else ""),
        f"Selection: the last epoch, {_measured(measure)}; the best test epoch is never ranked.",
        f"Seeds: {_seeds(records)}. ± is a 95 % t-interval over seeds, for Δ over the differences between "
        f"runs of the same seed.{f' {_sentence(references)}' if references else ''}",
        f"Records: {len(records)}, {diverged} of them diverged; those count in the last column alone.",
        f"Made on {_unique(e.device for e in environments)}; precision {_unique(e.precision for e in environments)}; "
        f"kdbench {_unique(e.kdbench for e in environments)}, torch {_unique(e.torch for e in environments)}, "
        f"lightning {_unique(e.lightning for e in environments)}, Python {_unique(e.python for e in environments)}; "
        f"engine path {_unique(e.path for e in environments)}.",
        *([f"Not of one kind: {mixed}."] if (mixed := mixed_code(records)) else []),
    ]


ORIGINS = {"scratch": "from scratch"}
"""How a student came about without a teacher, where it is not said by its control's name."""
ROLES = {"kd": "KD"}
"""How a column calls a control whose method is called like its role, where people write that in another way."""


def versus(control: str, reference: Reference | None) -> str:
    """The head of the differences to a control: by the name of the method that stands for it, where that is another."""
    name = reference.setting.method if reference else control
    return f"Δ {ROLES.get(name, name)}"


def _measured(measure: Measure) -> str:
    if measure == TOP1:
        return "in percent of the test set"
    return f"{measure.label}{f' in {measure.unit}' if measure.unit else ''}, {measure.direction}"


def _data(record: Record, sizes: ClassSizes | None) -> str:
    """Content, sizes and scenario of a data set."""
    data, examples = record.dataset, record.measure.examples
    facts = [f"(sha256 {data.sha256[:12]}), {data.n_train} training, {data.n_val} validation"]
    if examples == "images":
        uneven = sizes is not None and sizes.unequal
        counts = f" of {min(sizes.counts)} to {max(sizes.counts)} test images" if sizes and uneven else ""
        # one output, as of depth, is none of several classes
        classes = f", {data.num_classes} classes{counts}" if data.num_classes > 1 else ""
        facts.append(f"and {data.n_test} test images{classes}")
    else:
        judged = record.scores.n if record.scores else data.n_test
        # episodes are played, or drawn from images
        among = f"{data.n_test} test images, in {judged}" if judged != data.n_test else f"{judged} test"
        facts.append(f"samples and {among} {examples}")
    if posed := scenario(record):
        settings = f" ({', '.join(posed[1])})" if posed[1] else ""
        return f"{' '.join(facts)}, posed as {posed[0]}{settings}"
    return " ".join(facts)


def scenario(record: Record) -> tuple[str, list[str]] | None:
    """How the data set is posed as a problem: the scenario's name and its settings; None where it is as it is."""
    dataset = record.config.get("dataset")
    posed = dataset.get("scenario") if isinstance(dataset, Mapping) else None
    if not isinstance(posed, Mapping):
        return None
    settings = [f"{key}={shown(value)}" for key, value in sorted(flatten(posed).items()) if key != "_target_"]
    return str(posed.get("_target_")).rpartition(".")[2], settings


def _further(records: Sequence[Record], digits: int) -> list[str]:
    """Which methods had several teachers."""
    found: dict[str, None] = {}
    for record in sorted(records, key=lambda record: record.cell.method):
        if record.others:
            measure, names = record.measure, []
            for other in record.others:
                names.append(f"{other.name} {measure.text(other.accuracy, digits)} (sha256 {other.sha256[:12]})")
            found[f"{record.cell.method} had {len(names) + 1}, beside the first {', '.join(names)}"] = None
    return [f"Several teachers: {'; '.join(found)}."] if found else []


def mixed_code(records: Sequence[Record]) -> str | None:
    """Which methods were changed between the records of one row, as a clause, or None."""
    code: dict[str, dict[str, set[str]]] = {}
    for record in records:
        if record.method.source:
            settings = code.setdefault(record.cell.method, {})
            settings.setdefault(digest(record.config.get("method")), set()).add(record.method.source)
    names = sorted(name for name, settings in code.items() if any(len(hashes) > 1 for hashes in settings.values()))
    return f"seeds of {', '.join(names)} are by different code" if names else None


def weakness(
    teacher: float, n_test: int, num_classes: int, scratch: Iterable[float], measure: Measure = TOP1
) -> str | None:
    """Why a teacher that reaches so much has nothing to teach, as a clause, or None.

    Args:
        n_test, num_classes: of the test set.
        scratch: what students from scratch reach on it.
    """
    if measure == TOP1 and not above_chance(teacher, n_test, num_classes):
        return f"not above chance ({100 / num_classes:.2f} %)"
    scores = list(scratch)
    if scores and measure.merit(teacher) <= measure.merit(mean := math.fsum(scores) / len(scores)):
        digits = measure.digits([teacher, mean])
        return f"not {'above' if measure.higher else 'below'} the student from scratch ({measure.text(mean, digits)})"
    return None


def weakness_in(records: Sequence[Record], teacher: float | None, scratch: Reference | None) -> str | None:
    """The same of the teacher of a table, if it knows all classes of the student."""
    data = records[0].dataset
    scores = scratch.setting.scores.values() if scratch else ()
    if teacher is None or ignorance(records):
        return None
    return weakness(teacher, data.n_test, data.num_classes, scores, records[0].measure)


def ignorance(records: Sequence[Record]) -> str | None:
    """Which classes of the student the teacher of a table does not know, as a clause, or None.

    What it reaches on the student's test set is no end of the way then, and there is no gap to recover.
    """
    record = next((record for record in records if record.teacher), None)
    recipe = record.config.get("teacher") if record else None
    own = recipe.get("dataset") if isinstance(recipe, Mapping) else None
    data = record.config.get("dataset") if record else None
    if record is None or not isinstance(own, Mapping) or not isinstance(data, Mapping):
        return None
    known, wanted = _classes(own.get("classes")), _classes(data.get("classes"))
    if known is None or known == wanted:
        return None
    total = record.dataset.num_classes
    alike = own.get("name") == data.get("name") and wanted is not None and {*map(type, known)} == {*map(type, wanted)}
    common = len(known & wanted) if alike and wanted is not None else min(len(known), total)
    return None if common == total else f"knows {common} of the {total} classes, so no gap is shown"


def nearness(records: Sequence[Record], teacher: float | None, scratch: Reference | None) -> str | None:
    """Whether what is between the student from scratch and its teacher may be chance, as a clause, or None.

    A share of such a gap is a number without a meaning, and often of hundreds of percent.
    """
    if teacher is None or scratch is None or ignorance(records) or weakness_in(records, teacher, scratch):
        return None
    start = mean_interval(list(scratch.setting.scores.values()))
    if start.half is None or abs(teacher - start.mean) > start.half:
        return None
    return "within the interval of the student from scratch, so no gap is shown"


def _classes(value: Any) -> set[Any] | None:
    """The classes that a data set's setting chooses, by number or name; None for all."""
    if isinstance(value, int):
        return set(range(value))
    return set(value) if isinstance(value, (list, tuple)) else None


def from_scratch(records: Iterable[Record], config: Mapping[str, Any], measure: Measure = TOP1) -> list[float]:
    """What the student reaches from scratch, of those records of `measure` whose config has these values."""
    return [
        record.metrics.last
        for record in records
        if record.method.control == "scratch"
        and record.metrics
        and record.measure == measure
        and config.items() <= record.config.items()
    ]


def trust_line(
    records: Sequence[Record],
    teacher: float | None,
    scratch: Reference | None,
    *,
    protocol: str,
    seeds: int,
    deltas: Sequence[Sequence[Comparison | None]],
    digits: int = 2,
) -> str:
    """Protocol, selection, seeds, interval and test, teacher, device, versions and number of records, in one line.

    Args:
        protocol: as a title has it.
        seeds: the most that any row has.
        deltas: the comparisons with each control; those with one are a family of Holm's correction.
        digits: of what is measured.
    """
    measure = records[0].measure
    first, environments = records[0], [record.environment for record in records]
    diverged = sum(record.status == "diverged" for record in records)
    versions = ("kdbench", "torch", "lightning")
    if seeds > 1:
        tests = " + ".join(str(sum(1 for delta in column if delta and delta.p is not None)) for column in deltas)
        spread = f"± 95 % t-interval over seeds, bold: paired t-test p < {ALPHA} after Holm ({tests} tests)"
    else:
        spread = "one seed: no interval and no test"
    return "; ".join(
        [
            f"protocol {protocol} ({digest(first.config['protocol'])[:12]})",
            "selection: last epoch" + ("" if measure == TOP1 else f", {_measured(measure)}"),
            f"seeds {_seeds(records)}",
            spread,
            f"teacher {_teacher(records, teacher, digits)}{_weak(records, teacher, scratch)}",
            _unique(e.device for e in environments),
            ", ".join(f"{name} {_unique(getattr(e, name) for e in environments)}" for name in versions),
            f"{len(records)} records, {diverged} diverged",
            *filter(None, [mixed_code(records)]),
        ]
    )


def _teacher(records: Sequence[Record], reached: float | None, digits: int) -> str:
    teachers = [record.teacher for record in records if record.teacher]
    if not teachers:
        return "none"
    assert reached is not None
    text = records[0].measure.text(reached, digits)
    if any(record.own_teacher for record in records):
        return f"{_unique(t.name for t in teachers)}, {text} (the mean, as each run has one of its own)"
    origin = f", brought from {teachers[0].origin}" if teachers[0].origin else ""
    return f"{_unique(t.name for t in teachers)}, {text} (sha256 {teachers[0].sha256[:12]}{origin})"


def _why(reference: Reference) -> str:
    if reference.why == "named":
        return ", as was asked for"
    if reference.of == 1:
        return ", which has other settings than the shipped default" if reference.default is False else ""
    if reference.why == "default":
        return ", the shipped default"
    return f", of {reference.of} settings the one of most seeds, as none is the shipped default"


def _weak(records: Sequence[Record], teacher: float | None, scratch: Reference | None) -> str:
    clause = ignorance(records) or weakness_in(records, teacher, scratch) or nearness(records, teacher, scratch)
    return f", {clause}" if clause else ""


def _seeds(records: Sequence[Record]) -> str:
    return ", ".join(map(str, sorted({record.cell.seed for record in records})))


def _sentence(clauses: list[str]) -> str:
    return "; ".join(clauses) + "."


def _unique(values: Iterable[str]) -> str:
    return " / ".join(sorted(set(values)))
