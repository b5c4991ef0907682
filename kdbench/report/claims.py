"""Paper vs ours: what is published beside what the store says."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from kdbench.report.csv import CSV_MARKER, csv_value
from kdbench.report.markdown import MARKER, escape, line
from kdbench.results.claims import STATUSES, TEACHER_TOLERANCE, TOLERANCE, Claim, Comparison, Status, compare_claims
from kdbench.results.record import Record
from kdbench.results.stats import Estimate
from kdbench.text import fixed

HEADER = (
    "Method",
    "Claim",
    "Source",
    "Rule (theirs / ours)",
    "Epochs (theirs / ours)",
    "+ KD",
    "Teacher (theirs / ours)",
    "Ours",
    "n",
    "Ours, best test",
    "Difference",
    "Status",
    "Why, notes",
)
COVERAGE_HEADER = ("Source", "Claims", "Method and networks here", *STATUSES)
_LEAST_FLATTERING: tuple[Status, ...] = ("below", "above", "reproduced", "protocol differs", "untested")
TRUST = (
    "Claims are top-1 accuracies in percent, published errors converted. Ours: last epoch, mean ± 95 % t-interval over "
    f"n seeds. Reproduced: same protocol and selection rule, and within max(2 SE, {TOLERANCE:g}) of the claim. Where "
    f"anything differs, also a teacher by more than {TEACHER_TOLERANCE:g} point, nothing is judged. Our best test "
    "epoch is shown and never judged."
)


@dataclass(frozen=True)
class ClaimsTable:
    """Cells of plain text, to be escaped for the format they go into."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def render_claims(records: Iterable[Record], claims: Iterable[Claim]) -> dict[str, str]:
    """Text of ``claims.md`` and ``claims.csv``, by file name; the order of `records` and `claims` plays no part.

    Both hold the claims that join records; the Markdown file ends with the coverage of each source.
    """
    comparisons = compare_claims(claims, records)
    return {"claims.md": _markdown(comparisons), "claims.csv": _csv(comparisons)}


def claims_tables(comparisons: Sequence[Comparison]) -> list[ClaimsTable]:
    """One table for each data set and pair that has both claims and records, in the order of `comparisons`."""
    tested = [comparison for comparison in comparisons if comparison.cells]
    return [
        ClaimsTable(f"{dataset}: {pair}", HEADER, tuple(_cells(comparison) for comparison in group))
        for (dataset, pair), group in groupby(tested, key=lambda c: (c.claim.dataset, c.claim.pair))
    ]


def coverage_table(comparisons: Sequence[Comparison]) -> ClaimsTable:
    """How many claims of each source are answered, and how; its last row is the sum.

    A claim that records with several teachers answer counts once, by the answer that flatters least; a number that
    several sources print counts for each.
    """
    total = Counter[str]()
    by_source: dict[str, Counter[str]] = {}
    answers: dict[tuple[Claim, ...], list[Comparison]] = {}
    for comparison in comparisons:
        answers.setdefault((comparison.claim, *comparison.also), []).append(comparison)
    for claims, group in answers.items():
        status = min((comparison.status for comparison in group), key=_LEAST_FLATTERING.index)
        for claim in claims:
            counts = Counter({"claims": 1, "here": int(_here(claim)), status: 1})
            by_source.setdefault(claim.source.partition("@")[0], Counter()).update(counts)
            total.update(counts)
    columns = ("claims", "here", *STATUSES)
    rows = [
        (name, *(str(counts[column]) for column in columns))
        for name, counts in [*sorted(by_source.items(), key=lambda item: item[0].lower()), ("all", total)]
    ]
    return ClaimsTable("Coverage", COVERAGE_HEADER, tuple(rows))


def _here(claim: Claim) -> bool:
    """Whether kdbench has the claim's method and both networks."""
    foreign = "@" in claim.teacher or "@" in claim.student
    return bool(claim.config) and claim.quantity == "top1" and not foreign


def _cells(comparison: Comparison) -> tuple[str, ...]:
    claim = comparison.claim
    sources = dict.fromkeys(_source(each) for each in (claim, *comparison.also))
    teacher = comparison.teacher[0] if comparison.teacher else None
    why = [*comparison.differences, *comparison.notes]
    if comparison.others:
        why.append(f"closest of {comparison.others + 1} settings")
    return (
        claim.method if not claim.settings else f"{claim.method} ({claim.settings})",
        fixed(claim.accuracy, 2),
        "; ".join(sources),
        f"{claim.selection} / last",
        f"{claim.epochs} / {_text(comparison.epochs)}",
        claim.kd_term,
        f"{_number(claim.teacher_accuracy)} / {_number(teacher)}",
        _estimate(comparison.ours),
        str(len(comparison.seeds)),
        _number(comparison.oracle),
        "" if comparison.difference is None else fixed(comparison.difference, 2, signed=True),
        comparison.status,
        "; ".join(why),
    )


def _source(claim: Claim) -> str:
    """Where the number is printed and, if another, who reports it."""
    quoted = claim.source.partition("@")[0] != claim.reported_by
    return f"{claim.reported_by}, in {claim.source}" if quoted else claim.source


def _number(value: float | None) -> str:
    return "–" if value is None else fixed(value, 2)


def _text(value: int | None) -> str:
    return "–" if value is None else str(value)


def _estimate(value: Estimate | None) -> str:
    if value is None:
        return "–"
    return fixed(value.mean, 2) if value.half is None else f"{fixed(value.mean, 2)} ± {fixed(value.half, 2)}"


def _markdown(comparisons: Sequence[Comparison]) -> str:
    tables = claims_tables(comparisons)
    coverage = coverage_table(comparisons)
    claims, *_, untested = coverage.rows[-1][1:]
    records = len({cell for comparison in comparisons for cell in comparison.cells})
    lines = [MARKER, "# Paper vs ours", "", TRUST, ""]
    if records:
        lines += [f"{claims} claims, {untested} of them untested; {records} records join the others.", ""]
    else:
        lines += [f"No record joins one of the {claims} claims yet.", ""]
    for table in [*tables, coverage]:
        rows = [line(table.header), "|" + "---|" * len(table.header), *(line(map(escape, row)) for row in table.rows)]
        if records:
            lines += [f"## {escape(table.title)}", "", *rows, ""]
        else:  # rows of zeros, for who looks for them
            lines += ["<details>", f"<summary>{escape(table.title)}</summary>", "", *rows, "", "</details>", ""]
    return "\n".join(lines).rstrip() + "\n"


_COLUMNS = (
    CSV_MARKER,
    "dataset",
    "teacher",
    "student",
    "method",
    "config",
    "settings",
    "claim",
    "reported_by",
    "source",
    "also",
    "selection",
    "claim_epochs",
    "kd_term",
    "claim_teacher",
    "claim_student",
    "status",
    "ours",
    "ours_low",
    "ours_high",
    "n",
    "seeds",
    "cells",
    "oracle",
    "difference",
    "teacher_accuracy",
    "teacher_sha256",
    "protocol",
    "epochs",
    "differences",
    "notes",
    "other_settings",
)


def _csv(comparisons: Sequence[Comparison]) -> str:
    """Ten significant digits; empty where there is no value."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for comparison in comparisons:
        if comparison.cells:
            writer.writerow(map(csv_value, _values(comparison)))
    return file.getvalue()


def _values(comparison: Comparison) -> list[Any]:
    claim, ours = comparison.claim, comparison.ours
    accuracy, sha = comparison.teacher or (None, None)
    return [
        "claims",
        claim.dataset,
        claim.teacher,
        claim.student,
        claim.method,
        claim.config,
        claim.settings,
        claim.accuracy,
        claim.reported_by,
        claim.source,
        "; ".join(map(_source, comparison.also)),
        claim.selection,
        claim.epochs,
        claim.kd_term,
        claim.teacher_accuracy,
        claim.student_accuracy,
        comparison.status,
        ours.mean if ours else None,
        ours.low if ours else None,
        ours.high if ours else None,
        len(comparison.seeds),
        " ".join(map(str, comparison.seeds)),
        " ".join(comparison.cells),
        comparison.oracle,
        comparison.difference,
        accuracy,
        sha,
        comparison.protocol,
        comparison.epochs,
        "; ".join(comparison.differences),
        "; ".join(comparison.notes),
        comparison.others,
    ]
