"""Verdicts: what our runs of a published setting say to the number that is published. Pure functions of numbers.

Two questions are asked of a claim, each with an interval at the 95 % level.

**Its level.** A number of one run is compared with where a further single run of ours would lie: the prediction
interval of a normal sample, m ± t(.975; n - 1) s √(1 + 1/n) (Hahn & Meeker, Statistical Intervals, 1991, section 4.4),
for the mean of k runs m ± t s √(1/k + 1/n). A number that comes with its own k and sd is compared by Welch's interval
of the difference of two means (Biometrika 1947). The best of k runs is compared with the largest of k further ones,
taken as independent: their joint level gives each tail its quantile. A number over fewer test images than ours has
their binomial spread besides. What is printed with d decimals may be half a unit of the last one away.

**Its gain** over the baseline that the source compares it with: the paired t-interval over the seeds that both of our
arms have, as everywhere here (`kdbench.results.stats.paired_difference`). A control is a third arm, which the source
lacks and which could explain the gain; its pairing is the same.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

from scipy.stats import t as student_t

from kdbench.results.stats import Estimate, paired_difference

Word = Literal[
    "reproduced",
    "above",
    "below",
    "direction reproduced",
    "gain not reproduced",
    "confounded",
    "cannot be decided",
]
WORDS: Final[tuple[Word, ...]] = get_args(Word)

LEVEL: Final = 0.95


@dataclass(frozen=True)
class Printed:
    """A published number, so that higher is better.

    Attributes:
        decimals: printed ones, of which the last is rounded.
        runs: of which it is the mean, or the best.
        sd: over those runs, where that is printed.
        best: whether it is the best of the runs.
        images: how many test images it is a share of, in percent, where these are fewer than ours.
    """

    value: float
    decimals: int = 2
    runs: int = 1
    sd: float | None = None
    best: bool = False
    images: int | None = None

    @property
    def rounding(self) -> float:
        """How far the number may be from the one that was rounded."""
        return 0.5 * 10.0**-self.decimals


@dataclass(frozen=True)
class Arm:
    """Our runs of a setting, so that higher is better: seed -> value under the claim's selection rule."""

    name: str
    values: Mapping[int, float]


@dataclass(frozen=True)
class Verdict:
    """A word, and what it rests on.

    Attributes:
        level: where the claim lies beside our runs; None where one run or none tells no spread.
        interval: where a number as the claim's would lie by our runs.
        gain: of our arm over the baseline's, and over the control's.
        claimed_gain: over the source's own baseline.
        control: the arm beside which the gain vanishes.
        reason: why this word, as a clause.
    """

    word: Word
    reason: str
    level: Literal["reproduced", "above", "below"] | None = None
    interval: tuple[float, float] | None = None
    gain: Estimate | None = None
    claimed_gain: float | None = None
    beside_control: Estimate | None = None
    control: str | None = None


def judge(
    claim: Printed,
    arm: Arm,
    *,
    baseline: Arm | None = None,
    claimed_baseline: Printed | None = None,
    control: Arm | None = None,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> Verdict:
    """The verdict on a claim.

    In this order:

    1. ``cannot be decided`` without two finished runs of ours;
    2. ``confounded``: the gain over the baseline is positive, and that over the control is not (its interval includes
       0, or lies below), although the source claims a gain;
    3. ``cannot be decided``: the interval of our gain includes both 0 and the claimed gain;
    4. by level and gain: ``reproduced`` where the level is and the gain, if one is claimed, has the claimed sign;
       ``direction reproduced`` where only the gain has; ``gain not reproduced`` where only the level is; else ``above``
       or ``below``, which say where our runs lie.

    Args:
        bounds: of the measure; no interval goes beyond them.
    """
    interval = level_interval(claim, list(arm.values.values()), bounds)
    if interval is None:
        n = len(arm.values)
        return Verdict("cannot be decided", "one run tells no spread" if n else "no run of ours finished")
    low, high = interval
    slack = claim.rounding + 1e-9
    # where the claim lies above the interval our runs are below it
    level: Literal["reproduced", "above", "below"] = (
        "below" if claim.value - slack > high else "above" if claim.value + slack < low else "reproduced"
    )
    gain = paired_difference(arm.values, baseline.values) if baseline else None
    beside = paired_difference(arm.values, control.values) if control else None
    claimed = claim.value - claimed_baseline.value if claimed_baseline else None
    rounding = claim.rounding + claimed_baseline.rounding if claimed_baseline else 0.0

    def say(word: Word, reason: str, name: str | None = None) -> Verdict:
        return Verdict(word, reason, level, interval, gain, claimed, beside, name)

    if claimed is None or gain is None or gain.low is None or gain.high is None or abs(claimed) <= rounding + 1e-9:
        # nothing is claimed beyond the number itself, or our baseline is not there
        return say(level, _LEVEL[level])
    assert baseline is not None
    sign = math.copysign(1, claimed)
    found = gain.low > 0 if sign > 0 else gain.high < 0
    if found and sign > 0 and control and beside and beside.low is not None and beside.low <= 0:
        return say("confounded", f"the gain over {baseline.name} vanishes beside {control.name}", control.name)
    if not found and gain.low <= 0 <= gain.high and gain.low - rounding <= claimed <= gain.high + rounding:
        return say("cannot be decided", "our spread is wider than the claimed difference")
    if found:
        if level == "reproduced":
            return say("reproduced", f"{_LEVEL[level]}, and so is the sign of the gain over {baseline.name}")
        return say("direction reproduced", f"the gain over {baseline.name} has the claimed sign; {_LEVEL[level]}")
    what = "has the other sign" if sign * gain.mean < 0 and not gain.low <= 0 <= gain.high else "is not found"
    if level == "reproduced":
        return say("gain not reproduced", f"{_LEVEL[level]}, but the gain over {baseline.name} {what}")
    return say(level, f"{_LEVEL[level]}; the gain over {baseline.name} {what}")


_LEVEL: Final = {
    "reproduced": "the number lies where further runs of ours would",
    "above": "our runs lie above the number",
    "below": "our runs lie below the number",
}


def level_interval(
    claim: Printed, values: list[float], bounds: tuple[float, float] = (-math.inf, math.inf)
) -> tuple[float, float] | None:
    """Where a number as the claim's would lie with probability `LEVEL`, by our runs `values`; None for fewer than two.

    For a claim with k > 1 runs and sd: our mean ± Welch's half width, so that the claim lies within where the interval
    of the difference of the means includes 0.
    """
    n = len(values)
    if n < 2:
        return None
    mean, sd = math.fsum(values) / n, statistics.stdev(values)
    tail = (1 - LEVEL) / 2
    if claim.sd is not None and claim.runs > 1 and not claim.best:
        ours, theirs = sd**2 / n, claim.sd**2 / claim.runs
        variance = ours + theirs
        # Welch and Satterthwaite; without any spread the degrees of freedom play no part
        df = variance**2 / (ours**2 / (n - 1) + theirs**2 / (claim.runs - 1)) if variance else 1.0
        below = above = _quantile(1 - tail, df) * math.sqrt(variance)
    elif claim.best:
        scale = sd * math.sqrt(1 + 1 / n)
        below = -_quantile(tail ** (1 / claim.runs), n - 1) * scale
        above = _quantile((1 - tail) ** (1 / claim.runs), n - 1) * scale
    else:
        below = above = _quantile(1 - tail, n - 1) * sd * math.sqrt(1 / claim.runs + 1 / n)
    if claim.images:
        share = min(max(mean / 100, 0.0), 1.0)
        binomial = 100 * _quantile(1 - tail, math.inf) * math.sqrt(share * (1 - share) / claim.images)
        below, above = math.hypot(below, binomial), math.hypot(above, binomial)
    return max(mean - below, bounds[0]), min(mean + above, bounds[1])


def _quantile(probability: float, df: float) -> float:
    return float(student_t.ppf(probability, df))
