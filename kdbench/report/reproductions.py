"""Groups of published numbers that were trained again: what was claimed, what was run, what came out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kdbench.engine.arms import records_of_arms
from kdbench.measures import Measure, further
from kdbench.reproductions import Reproduction, find
from kdbench.results.claims import FROM_MEMORY, METRICS, Claim, Comparison, compare_claims
from kdbench.results.record import Record
from kdbench.results.stats import Estimate, mean_interval
from kdbench.results.verdict import WORDS
from kdbench.text import fixed, many

HEADER = (
    "Arm",
    "Claimed",
    "Ours, their rule",
    "Ours, last epoch",
    "n",
    "Interval of a number as theirs",
    "Gain (claimed / ours)",
    "Beside the control",
    "Verdict",
    "Why, notes",
)
RULE = (
    "Each arm of a group is trained as its source says. Ours: mean ± 95 % t-interval over n seeds, by the source's own "
    "selection rule, and beside it after the last epoch. A number of one run is judged by the 95 % prediction interval "
    "of a further run of ours, one with its own runs and sd by Welch's interval, with half a unit of its last printed "
    "digit to spare; the gain over the source's own baseline by the paired interval over common seeds. Confounded: the "
    "gain vanishes beside a control that the source lacks. Protocol incomplete: something that the source leaves open "
    "was filled in before the first run; what was changed after it says so."
)
INCOMPLETE = "protocol incomplete"
DIGITS = 2
"""Decimals, as in every table of shares."""


@dataclass(frozen=True)
class Group:
    """A reproduction with the answers to its claims, and the records of its arms by ``NAME/ARM``."""

    reproduction: Reproduction
    comparisons: tuple[Comparison, ...]
    arms: Mapping[str, Sequence[Record]]

    @property
    def tested(self) -> tuple[Comparison, ...]:
        """The claims that were run, and that are more than memory."""
        return tuple(each for each in self.comparisons if each.verdict)

    @property
    def rows(self) -> list[tuple[str, ...]]:
        """Those of its table, as `HEADER`: arm by arm, each claim of it, or ours alone."""
        rows = []
        for arm in self.reproduction.arms:
            of_arm = [each for each in self.comparisons if _arm(each) == arm]
            rows += [self._row(arm, each) for each in of_arm] or [self._alone(arm)]
        return rows

    @property
    def sentences(self) -> list[str]:
        """What was claimed, what was run, by what it was filled in, what came out, what that says."""
        group = self.reproduction
        return [
            f"{group.source} says: {group.claimed.rstrip('.')}; it reports {group.selection}.",
            self._run(),
            self._filled_in(),
            self._came_out(),
            self._said(),
        ]

    def _run(self) -> str:
        group = self.reproduction
        theirs = {_arm(each) for each in self.comparisons}
        controls = [arm for arm in group.arms if arm not in theirs]
        seeds = [len(runs) for runs in self.arms.values()]
        beside = f" ({listed(controls)} of them not the source's)" if controls else ""
        if not seeds:
            arms, runs = many(len(group.arms), "arm"), many(group.seeds, "seed")
            return f"It has {arms}{beside}, each to be trained with {runs}; none was trained yet."
        span = many(min(seeds), "seed") if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)} seeds"
        were = "was" if len(seeds) == 1 else "were"
        return f"{len(seeds)} of its {many(len(group.arms), 'arm')}{beside} {were} trained, with {span} each."

    def _filled_in(self) -> str:
        filled = self.reproduction.filled_in
        if not filled:
            return "The source says all that it takes."
        return f"The source leaves open: {listed(list(filled))}; what was filled in stands below."

    def _came_out(self) -> str:
        told = [
            f"{_arm(c)} {estimate(c.under_rule)} where {claimed(c.claim)} is printed"
            for c in self.tested
            if c.under_rule
        ]
        return (
            f"By its own rule we get, in {self._measure.quantity}: {listed(told)}."
            if told
            else "There is no result yet."
        )

    @property
    def verdicts(self) -> str:
        """How many of its numbers got which."""
        words = Counter(each.status for each in self.tested)
        return listed([f"{words[word]} {word}" for word in WORDS if words[word]])

    def _said(self) -> str:
        if not self.tested:
            return "No verdict can be given yet."
        confounded = {f"{_arm(c)} beside {c.verdict.control}" for c in self.tested if c.verdict and c.verdict.control}
        more = f"; what vanishes is the gain of {listed(sorted(confounded))}" if confounded else ""
        return f"Of {many(len(self.tested), 'number')}: {self.verdicts}{more}."

    @property
    def _measure(self) -> Measure:
        name = next((METRICS[each.claim.metric].measure for each in self.comparisons), "top1")
        return further(name)

    def _row(self, arm: str, answer: Comparison) -> tuple[str, ...]:
        claim, verdict = answer.claim, answer.verdict
        number = claimed(claim)
        gain = beside = within = "–"
        if verdict and verdict.gain:
            theirs = "–" if verdict.claimed_gain is None else fixed(verdict.claimed_gain, DIGITS, signed=True)
            gain = f"{theirs} / {estimate(verdict.gain, signed=True)} over {claim.baseline}"
        if verdict and verdict.beside_control:
            beside = f"{estimate(verdict.beside_control, signed=True)} over {claim.control}"
        if verdict and verdict.interval:
            low, high = sorted(claim.merit(bound) for bound in verdict.interval)
            within = f"{fixed(low, DIGITS)} to {fixed(high, DIGITS)}"
        said: str = answer.status
        if answer.cells and self.reproduction.filled_in:
            said += f", {INCOMPLETE}"
        return (
            arm,
            number,
            estimate(answer.under_rule),
            estimate(answer.ours),
            str(len(answer.seeds)),
            within,
            gain,
            beside,
            said,
            "; ".join(answer.notes),
        )

    def _alone(self, arm: str) -> tuple[str, ...]:
        """An arm of which the source prints nothing: by the measure and the rule of the group's first claim."""
        values = []
        for record in self.arms.get(f"{self.reproduction.name}/{arm}", ()):
            if record.metrics:
                name = next((each.claim.quantity for each in self.comparisons), record.metrics.primary)
                found = record.metrics.last if name == record.metrics.primary else record.metrics.others.get(name)
                values += [] if found is None else [found]
        ours = estimate(mean_interval(values)) if values else "–"
        return (arm, "–", "–", ours, str(len(values)), "–", "–", "–", "–", "not of the source")


def groups_of(claims: Iterable[Claim], records: Iterable[Record]) -> tuple[list[Comparison], list[Group]]:
    """The answers to all claims, and the groups that have claims, in the order of their names.

    Raises:
        UserError: a claim names a reproduction that there is not.
    """
    claims, records = list(claims), list(records)
    names = sorted({claim.group for claim in claims} - {""})
    arms = records_of_arms(names, records)
    comparisons = compare_claims(claims, records, arms)
    of_name: dict[str, list[Comparison]] = {name: [] for name in names}
    for each in comparisons:
        if each.claim.group:
            of_name[each.claim.group].append(each)
    groups = []
    for name in names:
        own = {word: runs for word, runs in arms.items() if word.partition("/")[0] == name}
        groups.append(Group(find(name), tuple(of_name[name]), own))
    return comparisons, groups


def claimed(claim: Claim) -> str:
    """A published number as a reader may take it: a remembered one says so."""
    number = fixed(claim.accuracy, DIGITS)
    if claim.spread is not None:
        number += f" (sd {claim.spread:g}, {claim.seeds} runs)"
    elif claim.seeds:
        number += f" ({'best' if claim.selection == 'best-run' else 'mean'} of {claim.seeds} runs)"
    return f"{number}, {FROM_MEMORY.removeprefix('the number is ')}" if claim.provenance == "memory" else number


def estimate(value: Estimate | None, *, signed: bool = False) -> str:
    if value is None:
        return "–"
    mean = fixed(value.mean, DIGITS, signed=signed)
    return mean if value.half is None else f"{mean} ± {fixed(value.half, DIGITS)}"


def listed(words: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _arm(answer: Comparison) -> str:
    return answer.claim.reproduction.partition("/")[2]
