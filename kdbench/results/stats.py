"""Statistics of seeds (t-intervals, paired tests), test examples (sign flips), many rows (Holm) and many pairs (IQM).

Three sources of chance, three kinds of test. `paired_difference` asks whether a difference would come again with other
seeds, `sign_flip` and `mcnemar` whether the networks at hand would differ on other test examples. `iqm` and
`improvement_probability` sum up over pairs, with intervals over the runs of each pair.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.fft import irfft
from scipy.special import stdtr
from scipy.stats import binom, binomtest, permutation_test, rankdata, trim_mean
from scipy.stats import t as student_t

ALPHA = 0.05
"""Level of every test."""

REPLICATES = 2000
"""Resamples of a bootstrap, as many as rliable's examples take."""

MANY = 50
"""Examples from which on the sum of their signed differences is taken as normal."""

_NO_SPREAD = 1e-9
"""Standard deviations below this are rounding error: a billionth of a percentage point, or of any other measure."""


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


def prediction_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float] | None:
    """Where one further value would lie with probability `level`: m ± t(1 - (1 - level)/2; n - 1) · s · √(1 + 1/n).

    None where one value tells no spread. Of normally distributed values, as `mean_interval`.
    """
    mean = mean_interval(values, level)
    if mean.half is None:
        return None
    half = mean.half * math.sqrt(mean.n + 1)
    return mean.mean - half, mean.mean + half


def paired_difference(a: Mapping[int, float], b: Mapping[int, float], level: float = 0.95) -> Difference | None:
    """a - b over the seeds (keys) that both have; None where they share none.

    With d_i = a_i - b_i: the interval is `mean_interval` of d, and ``p = 2 · P(T > |m| / (s / √n))`` for T of the
    t distribution with n - 1 degrees of freedom. With one common seed both are None, and p is None where the d_i do
    not spread at all, as s estimates nothing then.
    """
    common = sorted(a.keys() & b.keys())
    if not common:
        return None
    differences = [a[seed] - b[seed] for seed in common]
    estimate = mean_interval(differences, level)
    _, error = _mean_and_error(differences)
    p = None
    if error is not None and error > _NO_SPREAD:
        p = 2 * float(stdtr(len(common) - 1, -abs(estimate.mean) / error))
    return Difference(estimate.mean, estimate.n, estimate.low, estimate.high, p)


def gap_recovered(method: float, student: float, teacher: float, *, higher: bool = True) -> float | None:
    """(method - student) / (teacher - student): 0 is training from scratch, 1 what the teacher reaches.

    None where the teacher is not better than the student, by a measure of which `higher` values are better or lower
    ones: there is no gap to recover.
    """
    better = teacher > student if higher else teacher < student
    return (method - student) / (teacher - student) if better else None


def above_chance(percent: float, n: int, classes: int) -> bool:
    """Whether so many percent of `n` right answers are more than guessing among `classes` gives.

    The number of lucky guesses is binomial with probability 1 / classes; as many as these must be less likely than
    `ALPHA`.
    """
    return float(binom.sf(round(percent * n / 100) - 1, n, 1 / classes)) < ALPHA


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P-values adjusted for their number, in the given order; None (no test was possible) stays out of the count.

    Step-down (Holm, Scandinavian Journal of Statistics 1979): the i-th smallest of m becomes
    max over j <= i of min(1, (m - j + 1) · p_(j)). All that are below α hold at once with probability 1 - α.
    """
    tested = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[index] = largest
    return adjusted


# ---- on the examples of a test set ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class McNemar:
    """Examples that only the first, or only the second, of two networks gets right, and the exact two-sided p-value."""

    first: int
    second: int
    p: float


def mcnemar(a: ArrayLike, b: ArrayLike) -> McNemar:
    """Exact McNemar test of two networks on the same examples; `a`, `b`: correctness, booleans (n,).

    Of the examples on which they disagree each is right on half if neither is better: p is that of a binomial test
    with probability ½, and 1 without disagreement.
    """
    x, y = _same_examples(a, b)
    first, second = int((x & ~y).sum()), int((~x & y).sum())
    return McNemar(first, second, float(binomtest(first, first + second).pvalue) if first + second else 1.0)


def sign_flip(pairs: Sequence[tuple[ArrayLike, ArrayLike]]) -> float:
    """Exact two-sided p-value of a difference over examples, for several seeds at once.

    `pairs` holds the correctness, booleans (n,), of the two networks of each seed, on the same n examples. With
    D_i = Σ_seeds (a_i - b_i), that is seeds times the mean difference on example i, the statistic is ``|Σ_i D_i|``. If
    neither method is better, the two are exchangeable on each example, for all seeds together: every D_i is as likely
    with the other sign. ``p = P(|Σ ±D_i| >= |Σ D_i|)`` under independent fair signs. For one seed this is `mcnemar`.

    The distribution is that of a sum of c_k steps of ±k, c_k = number of examples with ``|D_i| = k``; its
    probabilities are the inverse Fourier transform of Π_k cos(kθ)^c_k, exact to about 1e-14 (so smaller p-values are
    noise).

    Raises:
        ValueError: there is no pair, or the pairs are not of the same examples.
    """
    if not pairs:
        raise ValueError("a test needs at least one pair")
    columns = [_same_examples(a, b) for a, b in pairs]
    if len({len(x) for x, _ in columns}) > 1:
        raise ValueError("the pairs are not of the same examples")
    differences = np.zeros(len(columns[0][0]), dtype=np.int32)
    for x, y in columns:
        differences += x
        differences -= y
    steps = np.bincount(np.abs(differences))
    reach = int(np.arange(len(steps)) @ steps)
    observed = abs(int(differences.sum()))
    if observed == 0:
        return 1.0
    size = 2048 * (reach // 1024 + 1)  # from -reach to reach without overlap; in few sizes, to be cached
    cosines = _cosines(size)
    sign, logarithm = np.ones(len(cosines)), np.zeros(len(cosines))  # powers of thousands are slow where they underflow
    before, cosine = np.ones(len(cosines)), cosines
    with np.errstate(divide="ignore"):
        for k in range(1, len(steps)):
            if steps[k]:
                logarithm += steps[k] * np.log(np.abs(cosine))
            if steps[k] % 2:
                sign *= np.sign(cosine)
            before, cosine = cosine, 2 * cosines * cosine - before  # cos (k + 1)θ
    spectrum = sign * np.exp(np.maximum(logarithm, -700.0))
    # the sum is symmetric, so its characteristic function is real and index j holds P(Σ = j)
    probability = irfft(spectrum, size)[observed : reach + 1]
    return float(np.clip(2 * probability.sum(), 0.0, 1.0))


def sign_flip_scores(pairs: Sequence[tuple[ArrayLike, ArrayLike]]) -> float:
    """As `sign_flip`, of scores instead of right and wrong: floats (n,), where what is not finite was not judged.

    Only examples that both networks of each seed have a score for count, and those with D_i = 0 change no sum. Under
    independent fair signs Σ ±D_i has mean 0 and variance Σ D_i², so from `MANY` such examples on
    ``p = erfc(|Σ D_i| / √(2 Σ D_i²))``, the two-sided tail of the normal distribution. With fewer p is the share of all
    signs, or of 2¹⁴ drawn ones, the same in every call, of at least that sum.

    Raises:
        ValueError: there is no pair, or the pairs are not of the same examples.
    """
    if not pairs:
        raise ValueError("a test needs at least one pair")
    columns = [(np.asarray(a, dtype=float), np.asarray(b, dtype=float)) for a, b in pairs]
    if len({each.shape for pair in columns for each in pair}) > 1 or columns[0][0].ndim != 1:
        raise ValueError("the pairs are not of the same examples")
    with np.errstate(invalid="ignore"):  # of infinities
        differences = np.sum([a - b for a, b in columns], axis=0)
    differences = differences[np.isfinite(differences) & (differences != 0)]
    if len(differences) < 2:  # either sign of one is as far from 0
        return 1.0
    observed = abs(math.fsum(differences))
    if len(differences) >= MANY:
        return math.erfc(observed / math.sqrt(2 * math.fsum(differences**2)))
    test = permutation_test(
        (differences,),
        lambda x, axis: np.abs(x.sum(axis=axis)),
        permutation_type="samples",
        vectorized=True,
        n_resamples=2**14,
        alternative="greater",
        random_state=_stream(),
    )
    return float(test.pvalue)


@lru_cache(maxsize=32)
def _cosines(size: int) -> NDArray[np.float64]:
    """cos θ at the non-negative frequencies of a real transform."""
    return np.cos(2 * np.pi / size * np.arange(size // 2 + 1))


def _same_examples(a: ArrayLike, b: ArrayLike) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    x, y = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"correctness of different examples: {x.shape} and {y.shape}")
    return x, y


# ---- over pairs -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A statistic and its 95 % bootstrap interval; `low`, `high` are None where no pair has two runs."""

    value: float
    low: float | None
    high: float | None


def iqm(scores: Sequence[Sequence[float]], level: float = 0.95) -> Interval:
    """Interquartile mean of all runs of all pairs, with a stratified bootstrap interval.

    `scores` holds the runs of each pair. The mean of the middle half: a quarter of the values (rounded down) is cut at
    either end (Agarwal et al., NeurIPS 2021, arXiv:2108.13264: ``scipy.stats.trim_mean(scores, 0.25)``). The interval
    takes percentiles over `REPLICATES` resamples, in each of which the runs of every pair are drawn with replacement
    from that pair's own. The resamples are the same in every call.

    Raises:
        ValueError: there is no run.
    """
    strata = [np.asarray(runs, dtype=float) for runs in scores if len(runs)]
    if not strata:
        raise ValueError("an interquartile mean needs at least one run")
    value = float(trim_mean(np.sort(np.concatenate(strata)), 0.25))
    if all(len(runs) == 1 for runs in strata):
        return Interval(value, None, None)
    rng = _stream()
    drawn = np.concatenate([_resample(rng, runs) for runs in strata], axis=1)
    return _percentiles(value, trim_mean(np.sort(drawn, axis=1), 0.25, axis=1), level)


def improvement_probability(
    pairs: Sequence[tuple[Sequence[float], Sequence[float]]], level: float = 0.95, *, higher: bool = True
) -> Interval:
    """P(A > B): the chance that a run of A beats a run of B on a pair drawn at random, with a bootstrap interval.

    For each pair U / (n m), U the Mann-Whitney count of runs a > b (a < b where not `higher` values are better) out of
    n and m, ties counted ½; then the mean over pairs (Agarwal et al., NeurIPS 2021). The bootstrap resamples the runs
    of either method within each pair, as `iqm`.

    Raises:
        ValueError: there is no pair, or one without runs.
    """
    if not pairs or not all(len(a) and len(b) for a, b in pairs):
        raise ValueError("a probability of improvement needs runs of both methods on every pair")
    sign = 1 if higher else -1
    strata = [(sign * np.asarray(a, dtype=float), sign * np.asarray(b, dtype=float)) for a, b in pairs]
    value = float(np.mean([_beats(a[None], b[None])[0] for a, b in strata]))
    if all(len(a) == len(b) == 1 for a, b in strata):
        return Interval(value, None, None)
    rng = _stream()
    drawn = [_beats(_resample(rng, a), _resample(rng, b)) for a, b in strata]
    return _percentiles(value, np.mean(drawn, axis=0), level)


def average_ranks(means: Mapping[str, Sequence[float]], *, higher: bool = True) -> dict[str, float]:
    """Rank of each method's mean on every pair (1 is the best; ties share the mean of their ranks), averaged.

    Raises:
        ValueError: the methods do not have the same number of pairs.
    """
    table = np.array(list(means.values()), dtype=float)  # ragged input raises
    if table.size == 0:
        return {}
    ranks = rankdata(-table if higher else table, method="average", axis=0).mean(axis=1)
    return dict(zip(means, map(float, ranks), strict=True))


def _stream() -> np.random.RandomState:
    """The same numbers in every call and under every numpy: unlike Generator's, this stream is frozen."""
    return np.random.RandomState(0)


def _resample(rng: np.random.RandomState, runs: NDArray[np.float64]) -> NDArray[np.float64]:
    """(REPLICATES, n): n runs drawn with replacement in each row."""
    return runs[(rng.random_sample((REPLICATES, len(runs))) * len(runs)).astype(np.int64)]


def _beats(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the pairs of columns with a > b, ties counted ½, for each row of (R, n) and (R, m)."""
    sign = np.sign(a[:, :, None] - b[:, None, :])
    return (sign.mean(axis=(1, 2)) + 1) / 2


def _percentiles(value: float, replicates: NDArray[np.float64], level: float) -> Interval:
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


# ---- helpers of the means -------------------------------------------------------------------------------------------


def _mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error s / √n, None for one value."""
    n = len(values)
    if n == 0:
        raise ValueError("a mean needs at least one value")
    mean = math.fsum(values) / n
    if n == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)


@cache
def _quantile(level: float, n: int) -> float:
    return float(student_t.ppf((1 + level) / 2, n - 1))
