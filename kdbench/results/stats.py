"""Statistics of seeds: means with t-intervals, paired differences, and the share of the gap that a method recovers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy.stats import t as student_t

_NO_SPREAD = 1e-9
"""Percentage points below which a standard deviation is rounding error."""


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds and its confidence interval; `low`, `high` are None where one seed tells no spread."""

    mean: float
    n: int
    low: float | None
    high: float | None

    @property
    def half(self) -> float | None:
        """Half the width of the interval, what stands behind ±."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2


@dataclass(frozen=True)
class Difference(Estimate):
    """A mean paired difference over `n` common seeds; `p` is the two-sided p-value of the paired t-test."""

    p: float | None


def mean_interval(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Mean m and its t-interval, m ± t(1 - (1 - level)/2; n - 1) · s / √n with s² = Σ(x - m)² / (n - 1).

    The sum is exact, so the order of the values plays no part.

    Raises:
        ValueError: there is no value.
    """
    mean, error = _mean_and_error(values)
    if error is None:
        return Estimate(mean, len(values), None, None)
    half = _quantile(level, len(values)) * error
    return Estimate(mean, len(values), mean - half, mean + half)


def paired_difference(a: Mapping[int, float], b: Mapping[int, float], level: float = 0.95) -> Difference | None:
    """a - b over the seeds (keys) that both have; None where they share none.

    With d_i = a_i - b_i: the interval is `mean_interval` of d, and p = 2 · P(T > |m| / (s / √n)) for T of the t
    distribution with n - 1 degrees of freedom. With one common seed both are None, and p is None where the d_i do not
    spread at all, as s estimates nothing then.
    """
    common = sorted(a.keys() & b.keys())
    if not common:
        return None
    differences = [a[seed] - b[seed] for seed in common]
    estimate = mean_interval(differences, level)
    _, error = _mean_and_error(differences)
    p = None
    if error is not None and error > _NO_SPREAD:
        p = 2 * float(student_t.sf(abs(estimate.mean) / error, len(common) - 1))
    return Difference(estimate.mean, estimate.n, estimate.low, estimate.high, p)


def gap_recovered(method: float, student: float, teacher: float) -> float | None:
    """(method - student) / (teacher - student): 0 is training from scratch, 1 the teacher's accuracy.

    None where the teacher is not better than the student: there is no gap to recover.
    """
    return None if teacher <= student else (method - student) / (teacher - student)


def _mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error s / √n, None for one value."""
    n = len(values)
    if n == 0:
        raise ValueError("a mean needs at least one value")
    mean = math.fsum(values) / n
    if n == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)


def _quantile(level: float, n: int) -> float:
    return float(student_t.ppf((1 + level) / 2, n - 1))
