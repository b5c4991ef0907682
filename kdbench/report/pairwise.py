"""Two methods compared, in words and numbers."""

from __future__ import annotations

import difflib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from kdbench.errors import UserError
from kdbench.measures import TOP1
from kdbench.report.model import Table, build_tables
from kdbench.report.settings import (
    Comparison,
    Known,
    Setting,
    compare_settings,
    p_of_examples,
    paired_examples,
    parse_setting,
    settings_of,
)
from kdbench.report.sheet import p_value
from kdbench.results.record import Record
from kdbench.results.stats import Interval, holm, improvement_probability, mcnemar, mean_interval
from kdbench.text import fixed


@dataclass(frozen=True)
class _Match:
    """One setting of either method in one table; `delta` is a - b."""

    table: Table
    a: Setting
    b: Setting
    delta: Comparison | None

    @property
    def winner(self) -> Setting | None:
        """The better of the two, where they can be told apart."""
        if self.delta is None or not self.delta.significant:
            return None
        return self.a if self.delta.better else self.b


def compare(records: Iterable[Record], a: str, b: str, known: Iterable[Known] = ()) -> str:
    """The paired comparison of two methods wherever both stand in one table, as plain text.

    Differences are of runs with the same seed, last epoch, in the unit of what is measured. "Better" is said where the
    paired t-test over seeds has p < 0.05 after Holm's correction over all comparisons of the text. The test over
    examples is about the networks at hand, and decides nothing.

    Args:
        a, b: a method's name, with settings behind a colon where it has several: ``kd:temperature=4``,
            ``kd:temperature=4,weights.kd=0.9``. Without them all settings are compared.
        known: see `build_tables`.

    Raises:
        UserError: an unknown method or setting, the same one twice, or no table that holds both.
    """
    records = list(records)
    tables = build_tables(records, known)
    chosen = [(table, _choose(table, a), _choose(table, b)) for table in tables]
    for index, text in ((1, a), (2, b)):
        if not any(each[index] for each in chosen):
            raise _unknown(text, records)
    both = [each for each in chosen if each[1] and each[2]]
    if not both:
        places = [", ".join(each[0].title for each in chosen if each[index]) for index in (1, 2)]
        raise UserError(
            f"{a} and {b} share no table: {a} stands in {places[0]}, {b} in {places[1]}; run one where the other is."
        )
    matches = _corrected(
        [
            _Match(table, one, other, compare_settings(one, other))
            for table, ones, others in both
            for one in ones
            for other in others
            if one.records is not other.records and one.label != other.label
        ]
    )
    if not matches:
        raise UserError(f"{a} and {b} are the same setting: name two methods, or two settings as in kd:temperature=4.")
    parts = [_paragraph(match) for match in matches]
    cohorts: dict[tuple[str, str, str], list[_Match]] = defaultdict(list)
    for match in matches:
        if match.delta:
            cohorts[match.table.cohort, match.a.method, match.b.method].append(match)
    parts += [_summary(group) for group in cohorts.values() if len({match.table.name for match in group}) > 1]
    return "\n\n".join(parts) + "\n"


def _choose(table: Table, text: str) -> list[Setting]:
    """The settings that `text` (``NAME`` or ``NAME:key=value,...``) names, in the table's order."""
    name, wanted = parse_setting(text)
    return [s for s in settings_of(table.records) if s.method == name and s.has(wanted)]


def _unknown(text: str, records: Sequence[Record]) -> UserError:
    name = text.partition(":")[0]
    known = sorted({record.cell.method for record in records})
    if name in known:
        labels = [setting.label for setting in settings_of([r for r in records if r.cell.method == name])]
        return UserError(f"No record is of the setting '{text}': {name} has {'; '.join(dict.fromkeys(labels))}.")
    near = difflib.get_close_matches(name, known, n=3) or known
    return UserError(f"No record is of a method '{name}': did you mean {' or '.join(near)}?")


def _corrected(matches: list[_Match]) -> list[_Match]:
    adjusted = holm([match.delta.p if match.delta else None for match in matches])
    return [
        replace(match, delta=match.delta and replace(match.delta, holm=p))
        for match, p in zip(matches, adjusted, strict=True)
    ]


def _paragraph(match: _Match) -> str:
    a, b, delta = match.a, match.b, match.delta
    lines = [f"{match.table.title}: {a.label} against {b.label}"]
    lines += [f"  {setting.label}: {_reached(setting, match.table)}" for setting in (a, b)]
    if delta is None:
        lines.append("  They share no finished seed, so nothing is paired: not distinguishable.")
        return "\n".join(lines)
    measure, digits, x, y = match.table.measure, match.table.digits, a.scores, b.scores
    common = sorted(x.keys() & y.keys())
    each = ", ".join(f"seed {seed} {fixed(x[seed] - y[seed], digits, signed=True)}" for seed in common)
    wins, losses = (sum(sign * measure.merit(x[seed] - y[seed]) > 0 for seed in common) for sign in (1, -1))
    size = fixed(delta.mean, digits, signed=True) + ("" if delta.half is None else f" ± {fixed(delta.half, digits)}")
    unit = "points" if measure.unit == "%" else measure.unit
    of = "" if measure == TOP1 else f" of {measure.label} ({measure.direction})"
    lines.append(f"  Difference{of}: {f'{size} {unit}'.rstrip()} ({each}); {a.label} won {wins}, lost {losses}.")
    if delta.half is not None:
        corrected = f", {p_value(delta.holm)} after Holm" if delta.p is not None else ""
        lines.append(f"  Seeds: {p_value(delta.p)} (paired t-test, n = {delta.n}{corrected}).")
    else:
        lines.append("  Seeds: one in common, so no interval and no test.")
    lines.append(_examples(match))
    lines.append(f"  {_conclusion(match)}")
    return "\n".join(lines)


def _reached(setting: Setting, table: Table) -> str:
    scores = list(setting.scores.values())
    if not scores:
        return f"no finished run, {len(setting.records)} diverged"
    reached, digits = mean_interval(scores), table.digits
    spread = "one seed" if reached.half is None else f"± {fixed(reached.half, digits)}, n = {reached.n}"
    words = [f"{table.measure.text(reached.mean, digits)} {spread}"]
    rows = zip(table.rows, settings_of(table.records), strict=True)
    gap = next(row.gap for row, own in rows if own.records == setting.records)
    if gap is not None:
        words.append(f"{fixed(gap, 1, scale=100)} % of the gap recovered")
    diverged = len(setting.records) - len(scores)
    return ", ".join([*words, f"{diverged} diverged"] if diverged else words)


def _examples(match: _Match) -> str:
    assert match.delta is not None
    pairs, measure = paired_examples(match.a, match.b), match.table.measure
    if not pairs:
        return "  Examples: the records say nothing of the same single ones, so no test."
    scored = next(iter(pairs.values()))[0].dtype != bool
    first = second = 0
    tests = []
    for seed, (one, other) in pairs.items():
        # right is more than wrong
        more, less = int((one > other).sum()), int((one < other).sum())
        first, second = (first + more, second + less) if measure.higher or not scored else (first + less, second + more)
        tests.append(f"seed {seed} {p_value(p_of_examples([(one, other)]) if scored else mcnemar(one, other).p)}")
    a, b = match.a.label, match.b.label
    combined = f"{p_value(match.delta.p_examples)} ({'' if scored else 'exact '}sign flips of the mean over seeds"
    if scored:
        return f"  Examples: {first} better by {a}, {second} by {b}; {combined}; alone: {', '.join(tests)})."
    return f"  Examples: {first} right by {a} alone, {second} by {b} alone; {combined}; McNemar: {', '.join(tests)})."


def _conclusion(match: _Match) -> str:
    winner = match.winner
    if winner is None:
        return f"{match.a.label} and {match.b.label} are not distinguishable here."
    return f"{winner.label} is better than {(match.b if winner is match.a else match.a).label}."


def _summary(matches: Sequence[_Match]) -> str:
    """Over the tables of one data set and protocol."""
    first = matches[0]
    a, b = first.a.method, first.b.method
    wins = sum(match.winner is match.a for match in matches)
    losses = sum(match.winner is match.b for match in matches)
    runs = [(list(match.a.scores.values()), list(match.b.scores.values())) for match in matches]
    chance = improvement_probability(runs, higher=first.table.measure.higher)
    return (
        f"Over {len(matches)} comparisons on {first.table.dataset}, {first.table.protocol}: {a} is better in {wins}, "
        f"{b} in {losses}, {len(matches) - wins - losses} not distinguishable; P({a} > {b}) = {_chance(chance)}."
    )


def _chance(value: Interval) -> str:
    interval = (
        f" [{fixed(value.low, 2)}, {fixed(value.high, 2)}]" if value.low is not None and value.high is not None else ""
    )
    return f"{fixed(value.value, 2)}{interval}"
