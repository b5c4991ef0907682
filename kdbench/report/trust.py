"""What a reader must know to trust, and to compare, the numbers of a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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
) -> list[str]:
    """The facts, one a line."""
    first = records[0]
    data, environments = first.dataset, [record.environment for record in records]
    diverged = sum(record.status == "diverged" for record in records)
    student_line = f"Student: {first.cell.student}, no run from scratch."
    if scratch:
        start = mean_interval(list(scratch.setting.scores.values()))
        reached = f"{fixed(start.mean, 2)} % (one seed)"
        if start.half is not None:
            reached = f"{fixed(start.mean, 2)} ± {fixed(start.half, 2)} %"
        student_line = f"Student: {first.cell.student}, from scratch {reached}."
    references = [
        f"{name} is against {reference.setting.label}{_why(reference)}"
        for name, reference in (("Δ scratch", scratch), ("Δ KD", kd))
        if reference
    ]
    counts = "" if sizes is None or not sizes.unequal else f" of {min(sizes.counts)} to {max(sizes.counts)} test images"
    protocol = first.config["protocol"]
    settings = flatten(protocol) if isinstance(protocol, dict) else {}
    listed = ", ".join(f"{key}={shown(value)}" for key, value in sorted(settings.items()))
    return [
        f"Teacher: {_teacher(records, teacher)}{_weak(records, teacher, scratch)}.",
        student_line,
        f"Data: {first.cell.dataset} (sha256 {data.sha256[:12]}), {data.n_train} training, {data.n_val} validation and "
        f"{data.n_test} test images, {data.num_classes} classes{counts}.",
        f"Protocol: {first.cell.protocol}{f' ({listed})' if listed else ''}.",
        "Selection: the last epoch, in percent of the test set; the best test epoch is never ranked.",
        f"Seeds: {_seeds(records)}. ± is a 95 % t-interval over seeds, for Δ over the differences between "
        f"runs of the same seed.{f' {_sentence(references)}' if references else ''}",
        f"Records: {len(records)}, {diverged} of them diverged; those count in the last column alone.",
        f"Made on {_unique(e.device for e in environments)}; precision {_unique(e.precision for e in environments)}; "
        f"kdbench {_unique(e.kdbench for e in environments)}, torch {_unique(e.torch for e in environments)}, "
        f"lightning {_unique(e.lightning for e in environments)}, Python {_unique(e.python for e in environments)}; "
        f"engine path {_unique(e.path for e in environments)}.",
        *([f"Not of one kind: {mixed}."] if (mixed := mixed_code(records)) else []),
    ]


def mixed_code(records: Sequence[Record]) -> str | None:
    """Which methods were changed between the records of one row, as a clause, or None."""
    code: dict[str, dict[str, set[str]]] = {}
    for record in records:
        if record.method.source:
            settings = code.setdefault(record.cell.method, {})
            settings.setdefault(digest(record.config.get("method")), set()).add(record.method.source)
    names = sorted(name for name, settings in code.items() if any(len(hashes) > 1 for hashes in settings.values()))
    return f"seeds of {', '.join(names)} are by different code" if names else None


def weakness(teacher: float, n_test: int, num_classes: int, scratch: Iterable[float]) -> str | None:
    """Why a teacher of so many percent has nothing to teach, as a clause, or None.

    Args:
        n_test, num_classes: of the test set.
        scratch: percentages of students from scratch on it.
    """
    if not above_chance(teacher, n_test, num_classes):
        return f"not above chance ({100 / num_classes:.2f} %)"
    scores = list(scratch)
    if scores and teacher <= (mean := math.fsum(scores) / len(scores)):
        return f"not above the student from scratch ({mean:.2f} %)"
    return None


def weakness_in(records: Sequence[Record], teacher: float | None, scratch: Reference | None) -> str | None:
    """The same of the teacher of a table."""
    data = records[0].dataset
    scores = scratch.setting.scores.values() if scratch else ()
    return None if teacher is None else weakness(teacher, data.n_test, data.num_classes, scores)


def from_scratch(records: Iterable[Record], config: Mapping[str, Any]) -> list[float]:
    """Last accuracies of the student from scratch, of those records whose config has these values."""
    return [
        record.metrics.last
        for record in records
        if record.method.control == "scratch" and record.metrics and config.items() <= record.config.items()
    ]


def trust_line(
    records: Sequence[Record],
    teacher: float | None,
    scratch: Reference | None,
    seeds: int,
    deltas: Sequence[Sequence[Comparison | None]],
) -> str:
    """Protocol, selection, seeds, interval and test, teacher, device, versions and number of records, in one line.

    Args:
        seeds: the most that any row has.
        deltas: the comparisons with each control; those with one are a family of Holm's correction.
    """
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
            f"protocol {first.cell.protocol} ({digest(first.config['protocol'])[:12]})",
            "selection: last epoch",
            f"seeds {_seeds(records)}",
            spread,
            f"teacher {_teacher(records, teacher)}{_weak(records, teacher, scratch)}",
            _unique(e.device for e in environments),
            ", ".join(f"{name} {_unique(getattr(e, name) for e in environments)}" for name in versions),
            f"{len(records)} records, {diverged} diverged",
            *filter(None, [mixed_code(records)]),
        ]
    )


def _teacher(records: Sequence[Record], accuracy: float | None) -> str:
    teachers = [record.teacher for record in records if record.teacher]
    if not teachers:
        return "none"
    assert accuracy is not None
    return f"{_unique(t.name for t in teachers)}, {fixed(accuracy, 2)} % (sha256 {teachers[0].sha256[:12]})"


def _why(reference: Reference) -> str:
    if reference.why == "named":
        return ", as was asked for"
    if reference.of == 1:
        return ", which has other settings than the shipped default" if reference.default is False else ""
    if reference.why == "default":
        return ", the shipped default"
    return f", of {reference.of} settings the one of most seeds, as none is the shipped default"


def _weak(records: Sequence[Record], teacher: float | None, scratch: Reference | None) -> str:
    clause = weakness_in(records, teacher, scratch)
    return f", {clause}" if clause else ""


def _seeds(records: Sequence[Record]) -> str:
    return ", ".join(map(str, sorted({record.cell.seed for record in records})))


def _sentence(clauses: list[str]) -> str:
    return "; ".join(clauses) + "."


def _unique(values: Iterable[str]) -> str:
    return " / ".join(sorted(set(values)))
