"""Paper vs ours: what is published beside what the store says."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from kdbench.report.csv import CSV_MARKER, csv_value
from kdbench.report.markdown import MARKER, escape, line
from kdbench.report.reproductions import HEADER as ARMS
from kdbench.report.reproductions import RULE, Group
from kdbench.results.claims import STATUSES, TEACHER_TOLERANCE, TOLERANCE, Claim, Comparison, Status
from kdbench.results.stats import Estimate
from kdbench.text import fixed, many

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
_LEAST_FLATTERING: tuple[Status, ...] = (
    "confounded",
    "below",
    "above",
    "gain not reproduced",
    "direction reproduced",
    "reproduced",
    "cannot be decided",
    "protocol differs",
    "untested",
)
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


def render_claims(comparisons: Sequence[Comparison], groups: Sequence[Group]) -> dict[str, str]:
    """Text of ``claims.md`` and ``claims.csv``, by file name, of what `kdbench.report.reproductions.groups_of` gives.

    Both hold the claims that records answer; the Markdown file begins with the groups that were trained as their
    sources say, and ends with the coverage of each source.
    """
    return {"claims.md": _markdown(comparisons, groups), "claims.csv": _csv(comparisons, groups)}


def answered(comparisons: Iterable[Comparison]) -> list[Comparison]:
    """Those that records answer. What is from memory is no published number, and stands in its group alone."""
    return [each for each in comparisons if each.cells and each.claim.provenance == "confirmed"]


def claims_tables(comparisons: Sequence[Comparison]) -> list[ClaimsTable]:
    """One table for each data set and pair that has both claims and records, in the order of `comparisons`."""
    return [
        ClaimsTable(f"{dataset}: {pair}", HEADER, tuple(_cells(comparison) for comparison in group))
        for (dataset, pair), group in groupby(answered(comparisons), key=lambda c: (c.claim.dataset, c.claim.pair))
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
            by_source.setdefault(claim.origin, Counter()).update(counts)
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
        f"{claim.selection} / {'both' if claim.reproduction else 'last'}",
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
    quoted = claim.origin != claim.reported_by
    return f"{claim.reported_by}, in {claim.source}" if quoted else claim.source


def _number(value: float | None) -> str:
    return "–" if value is None else fixed(value, 2)


def _text(value: int | None) -> str:
    return "–" if value is None else str(value)


def _estimate(value: Estimate | None) -> str:
    if value is None:
        return "–"
    return fixed(value.mean, 2) if value.half is None else f"{fixed(value.mean, 2)} ± {fixed(value.half, 2)}"


def _markdown(comparisons: Sequence[Comparison], groups: Sequence[Group]) -> str:
    run = [group for group in groups if group.arms]
    rest = claims_tables([each for each in comparisons if not each.claim.reproduction])
    coverage = coverage_table(comparisons)
    total, untested = coverage.rows[-1][1], coverage.rows[-1][-1]
    lines = [MARKER, "# Paper vs ours", ""]
    if run:
        words = Counter(each.status for group in run for each in group.tested)
        verdicts = ", ".join(f"{words[word]} {word}" for word in STATUSES if words[word])
        lines += [
            f"Trained again: {many(sum(words.values()), 'published number')} in {many(len(run), 'group')}: {verdicts}.",
            "",
            RULE,
            "",
        ]
    for group in run:
        lines += _group(group)
    if rest:
        lines += ["## Joined by method and networks", "", TRUST, ""]
        for table in rest:
            lines += [f"### {escape(table.title)}", "", *_rows(table.header, table.rows), ""]
    records = len({cell for comparison in comparisons for cell in comparison.cells})
    if records:
        lines += [f"{total} claims, {untested} of them untested; {records} records join the others.", ""]
    else:
        lines += [f"No record joins one of the {total} claims yet.", ""]
    waiting = [group for group in groups if not group.arms]
    if waiting:
        lines += ["Ready to be trained: " + ", ".join(f"`{group.reproduction.name}`" for group in waiting) + ".", ""]
    # long, and mostly of what was not tested: for who looks for it
    folded = _rows(coverage.header, coverage.rows)
    lines += ["<details>", f"<summary>{escape(coverage.title)}</summary>", "", *folded, "", "</details>", ""]
    return "\n".join(lines).rstrip() + "\n"


def _group(group: Group) -> list[str]:
    told = group.reproduction
    lines = [
        f"## {escape(told.title)}",
        "",
        f"`kdbench run reproduction={told.name}`. {escape(' '.join(group.sentences))}",
    ]
    lines += ["", *_rows(ARMS, group.rows), ""]
    if told.filled_in:
        lines += ["Filled in:", "", *(f"- {escape(f'{what}: {how}')}" for what, how in told.filled_in.items()), ""]
    return lines


def _rows(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [line(header), "|" + "---|" * len(header), *(line(map(escape, row)) for row in rows)]


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
    "reproduction",
    "baseline",
    "control",
    "ours_by_their_rule",
    "interval_low",
    "interval_high",
    "gain",
    "gain_low",
    "gain_high",
    "claimed_gain",
    "beside_control",
    "beside_control_low",
    "beside_control_high",
    "filled_in",
)


def _csv(comparisons: Sequence[Comparison], groups: Sequence[Group]) -> str:
    """Ten significant digits; empty where there is no value."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_COLUMNS)
    filled = {group.reproduction.name: "; ".join(group.reproduction.filled_in) for group in groups}
    for comparison in answered(comparisons):
        writer.writerow(map(csv_value, [*_values(comparison), *_judged(comparison, filled)]))
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


def _judged(comparison: Comparison, filled: Mapping[str, str]) -> list[Any]:
    claim, verdict = comparison.claim, comparison.verdict
    low, high = sorted(map(claim.merit, verdict.interval)) if verdict and verdict.interval else (None, None)
    gain, beside = (verdict.gain, verdict.beside_control) if verdict else (None, None)
    return [
        claim.reproduction,
        claim.baseline,
        claim.control,
        comparison.under_rule.mean if comparison.under_rule else None,
        low,
        high,
        *((gain.mean, gain.low, gain.high) if gain else (None, None, None)),
        verdict.claimed_gain if verdict else None,
        *((beside.mean, beside.low, beside.high) if beside else (None, None, None)),
        filled.get(claim.group),
    ]
