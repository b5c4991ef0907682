"""Statistics against published examples and tabulated quantiles."""

from __future__ import annotations

import math
import random
from itertools import product

import numpy as np
import pytest
from scipy.stats import binomtest, mannwhitneyu, norm

from kdbench.results.stats import (
    Interval,
    average_ranks,
    gap_recovered,
    holm,
    improvement_probability,
    iqm,
    mcnemar,
    mean_interval,
    paired_difference,
    sign_flip,
    sign_flip_scores,
)

# Extra hours of sleep of ten patients under two drugs: Student, "The probable error of a mean", Biometrika 1908; R
# ships the data as `sleep` and its manual page works the paired test.
DRUG_1 = (0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0)
DRUG_2 = (1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4)


def test_interval_of_one_sample_is_rs() -> None:
    estimate = mean_interval(DRUG_1)  # t.test(DRUG_1): 95 percent confidence interval -0.5297804 2.0297804
    assert estimate.mean == pytest.approx(0.75)
    assert estimate.n == 10
    assert (estimate.low, estimate.high) == pytest.approx((-0.5297804, 2.0297804), abs=1e-7)


def test_paired_difference_is_rs() -> None:
    # t.test(DRUG_1, DRUG_2, paired = TRUE): t = -4.0621, df = 9, p-value = 0.002833, interval -2.4598858 -0.7001142
    difference = paired_difference(dict(enumerate(DRUG_1)), dict(enumerate(DRUG_2)))
    assert difference is not None
    assert difference.mean == pytest.approx(-1.58)
    assert (difference.low, difference.high) == pytest.approx((-2.4598858, -0.7001142), abs=1e-7)
    assert difference.p == pytest.approx(0.002833, abs=5e-7)
    assert difference.n == 10


@pytest.mark.parametrize(("n", "quantile"), [(2, 12.7062), (3, 4.3027), (5, 2.7764), (10, 2.2622)])
def test_half_width_uses_the_tabulated_quantile(n: int, quantile: float) -> None:
    """The values 1..n have variance n (n + 1) / 12."""
    estimate = mean_interval([float(i) for i in range(1, n + 1)])
    assert estimate.half == pytest.approx(quantile * math.sqrt((n + 1) / 12), rel=2e-5)


def test_another_level() -> None:
    assert mean_interval([0.0, 2.0], level=0.90).half == pytest.approx(6.3138, abs=1e-4)  # s / sqrt(n) = 1


def test_one_seed_has_no_interval() -> None:
    estimate = mean_interval([70.0])
    assert (estimate.mean, estimate.n, estimate.low, estimate.high, estimate.half) == (70.0, 1, None, None, None)
    difference = paired_difference({3: 70.0}, {3: 69.0, 4: 1.0})
    assert difference is not None
    assert (difference.mean, difference.n, difference.low, difference.p) == (1.0, 1, None, None)


def test_no_values_have_no_mean() -> None:
    with pytest.raises(ValueError, match="at least one"):
        mean_interval([])


def test_only_common_seeds_are_paired() -> None:
    difference = paired_difference({0: 71.0, 1: 73.0, 7: 0.0}, {1: 70.0, 0: 70.0, 8: 99.0})
    assert difference is not None
    assert (difference.mean, difference.n) == (2.0, 2)
    assert difference.half == pytest.approx(12.7062, abs=1e-4)  # differences 1 and 3: s / sqrt(n) = 1
    assert difference.p == pytest.approx(2 * (0.5 - math.atan(2.0) / math.pi))  # t = 2, one degree: the Cauchy law
    assert paired_difference({0: 1.0}, {1: 1.0}) is None


def test_no_p_value_without_spread() -> None:
    difference = paired_difference({0: 70.1, 1: 70.4, 2: 69.6}, {0: 69.8, 1: 70.1, 2: 69.3})
    assert difference is not None
    assert difference.mean == pytest.approx(0.3)
    assert difference.half == pytest.approx(0.0, abs=1e-9)
    assert difference.p is None


def test_order_of_values_plays_no_part() -> None:
    values = [random.Random(0).gauss(70, 1) for _ in range(50)]
    assert mean_interval(values) == mean_interval(values[::-1]) == mean_interval(sorted(values))


def test_gap_recovered() -> None:
    # RepDistiller, CIFAR-100, wrn-40-2 to wrn-16-2: teacher 75.61, student 73.26, KD 74.92
    assert gap_recovered(74.92, 73.26, 75.61) == pytest.approx(1.66 / 2.35)
    assert gap_recovered(73.26, 73.26, 75.61) == 0.0
    assert gap_recovered(75.61, 73.26, 75.61) == 1.0
    assert gap_recovered(72.0, 73.0, 75.0) == -0.5


@pytest.mark.parametrize("teacher", [70.0, 69.0])
def test_no_gap_below_a_teacher_that_is_not_better(teacher: float) -> None:
    assert gap_recovered(71.0, 70.0, teacher) is None


# ---- many tests -----------------------------------------------------------------------------------------------------


def test_holm() -> None:
    """R: p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm"); at 5 % the first and the last are rejected."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_counts_only_what_was_tested() -> None:
    assert holm([0.04, None, 0.01]) == [0.04, None, 0.02]
    assert holm([None]) == [None]
    assert holm([]) == []
    assert holm([0.6, 0.7, 0.8]) == [1.0, 1.0, 1.0]


# ---- examples -------------------------------------------------------------------------------------------------------


def discordant(first: int, second: int, same: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """Correctness of two networks of which each alone is right on so many examples."""
    a = [True] * first + [False] * second + [True] * same + [False] * same
    b = [False] * first + [True] * second + [True] * same + [False] * same
    order = np.random.default_rng(0).permutation(len(a))
    return np.array(a)[order], np.array(b)[order]


@pytest.mark.parametrize(("first", "second", "p"), [(9, 1, 22 / 1024), (1, 9, 22 / 1024), (0, 3, 0.25), (4, 4, 1.0)])
def test_mcnemar_by_hand(first: int, second: int, p: float) -> None:
    """2 · Σ_{k <= min} C(n, k) / 2^n."""
    result = mcnemar(*discordant(first, second))
    assert (result.first, result.second) == (first, second)
    assert result.p == pytest.approx(p)


def test_mcnemar_of_equal_networks() -> None:
    assert mcnemar([True, False], [True, False]).p == 1.0
    with pytest.raises(ValueError, match="different examples"):
        mcnemar([True], [True, False])


@pytest.mark.parametrize(("first", "second"), [(9, 1), (0, 3), (59, 121), (30, 31), (5, 5), (1, 0), (400, 330)])
def test_sign_flips_of_one_seed_are_mcnemars(first: int, second: int) -> None:
    expected = binomtest(first, first + second).pvalue
    assert sign_flip([discordant(first, second)]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_sign_flips_by_enumeration(seeds: int) -> None:
    """All 2^n signs of the n examples, by hand."""
    rng = np.random.default_rng(seeds)
    for _ in range(10):
        a, b = rng.random((seeds, 9)) < 0.8, rng.random((seeds, 9)) < 0.5
        d = (a.astype(int) - b).sum(0)
        sums = [abs(int(np.dot(signs, d))) for signs in product((-1, 1), repeat=9)]
        expected = sum(value >= abs(int(d.sum())) for value in sums) / len(sums)
        assert sign_flip(list(zip(a, b, strict=True))) == pytest.approx(expected, abs=1e-12)


def test_sign_flips_of_a_test_set_follow_the_normal_law() -> None:
    rng = np.random.default_rng(0)
    pairs = [(rng.random(10_000) < 0.71, rng.random(10_000) < 0.70) for _ in range(3)]
    d = sum(a.astype(int) - b for a, b in pairs)
    z = (abs(d.sum()) - 1) / math.sqrt((d**2).sum())  # the sum moves in steps of 2
    assert sign_flip(pairs) == pytest.approx(2 * norm.sf(z), rel=0.01)
    assert sign_flip([(b, a) for a, b in pairs]) == sign_flip(pairs)


def test_sign_flips_take_the_same_examples() -> None:
    with pytest.raises(ValueError, match="at least one pair"):
        sign_flip([])
    with pytest.raises(ValueError, match="not of the same examples"):
        sign_flip([([True], [False]), ([True, True], [False, True])])


# ---- pairs ----------------------------------------------------------------------------------------------------------


def test_the_interquartile_mean_is_that_of_the_middle_half() -> None:
    values = [float(v) for v in range(12)]  # the middle half is 3..8
    random.Random(0).shuffle(values)
    assert iqm([values[:4], values[4:6], values[6:]]).value == pytest.approx(5.5)
    assert iqm([[1.0], [2.0], [3.0], [10.0]]) == Interval(2.5, None, None)
    assert iqm([[0.0, 0.0, 100.0]]).value == pytest.approx(100 / 3)  # a quarter of three, rounded down, is none


def test_the_bootstrap_draws_within_pairs() -> None:
    """By enumeration: of the 16 resamples of [0, 1] and [10, 20] the lowest has IQM (0 + 10) / 2, as one in 16 do."""
    outcomes = sorted(
        float(np.mean(sorted((*low, *high))[1:3]))
        for low in product((0, 1), repeat=2)
        for high in product((10, 20), repeat=2)
    )
    assert (outcomes[0], outcomes[-1]) == (5.0, 10.5)
    interval = iqm([[0.0, 1.0], [10.0, 20.0]])
    assert (interval.low, interval.high) == (5.0, 10.5)
    assert iqm([[0.0, 1.0], [10.0, 20.0]]) == interval  # the same resamples in every call


def test_improvement_is_the_mann_whitney_share_averaged_over_pairs() -> None:
    rng = np.random.default_rng(1)
    pairs = [(rng.integers(0, 5, 4).tolist(), rng.integers(0, 5, 3).tolist()) for _ in range(5)]
    expected = np.mean([mannwhitneyu(a, b).statistic / (len(a) * len(b)) for a, b in pairs])
    result = improvement_probability(pairs)
    assert result.value == pytest.approx(expected)
    assert result.low is not None
    assert result.high is not None
    assert result.low < result.value < result.high
    assert improvement_probability([(b, a) for a, b in pairs]).value == pytest.approx(1 - expected)


def test_improvement_by_hand() -> None:
    assert improvement_probability([([1.0], [0.0]), ([1.0], [1.0])]) == Interval(0.75, None, None)
    assert improvement_probability([([2.0, 3.0], [0.0, 1.0])]) == Interval(1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="on every pair"):
        improvement_probability([([1.0], [])])


def test_average_ranks_are_demsars() -> None:
    """AUC of four variants of C4.5: Demsar, JMLR 2006, table 6; the tie in "voting" is resolved as the paper does."""
    table = {
        "C4.5": (0.763, 0.599, 0.954, 0.628, 0.882, 0.936, 0.661, 0.583, 0.775, 1.0, 0.940, 0.619, 0.972, 0.957),
        "m": (0.768, 0.591, 0.971, 0.661, 0.888, 0.931, 0.668, 0.583, 0.838, 1.0, 0.962, 0.666, 0.981, 0.978),
        "cf": (0.771, 0.590, 0.968, 0.654, 0.886, 0.916, 0.609, 0.563, 0.866, 1.0, 0.965, 0.614, 0.9751, 0.946),
        "m+cf": (0.798, 0.569, 0.967, 0.657, 0.898, 0.931, 0.685, 0.625, 0.875, 1.0, 0.962, 0.669, 0.975, 0.970),
    }
    ranks = average_ranks(table)
    assert list(ranks) == list(table)
    assert [round(rank, 3) for rank in ranks.values()] == [3.143, 2.0, 2.893, 1.964]
    assert average_ranks({}) == {}


# ---- scores, and measures of which lower is better ------------------------------------------------------------------


def all_signs(differences: np.ndarray) -> float:
    """The share of all signs by which the sum is as large as it is, one by one."""
    signs = np.array(list(product((1, -1), repeat=len(differences))))
    return float((np.abs(signs @ differences) >= abs(differences.sum()) - 1e-9).mean())


@pytest.mark.parametrize("seeds", [1, 3])
def test_few_scores_are_flipped_in_every_way(seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    pairs = [(rng.normal(0.5, 1, 11), rng.normal(0, 1, 11)) for _ in range(seeds)]
    assert sign_flip_scores(pairs) == pytest.approx(all_signs(sum(a - b for a, b in pairs)), abs=1e-12)


def test_more_scores_are_flipped_by_chance_but_always_in_the_same_ways() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(0.5, 1, 17), rng.normal(0, 1, 17)
    exact = all_signs(a - b)
    p = sign_flip_scores([(a, b)])
    assert 0.01 < exact < 0.5
    assert abs(p - exact) < 4 * math.sqrt(exact * (1 - exact) / 2**14) + 2**-14
    assert p == sign_flip_scores([(a, b)])


def test_many_scores_have_the_normal_tail_of_their_own_variance() -> None:
    rng = np.random.default_rng(0)
    pairs = [(rng.normal(0.02, 1, 400), rng.normal(0, 1, 400)) for _ in range(3)]
    total = sum(a - b for a, b in pairs)
    z = abs(total.sum()) / math.sqrt((total**2).sum())
    assert sign_flip_scores(pairs) == pytest.approx(2 * norm.sf(z), rel=1e-12)
    right = [(rng.random(4000) < 0.72, rng.random(4000) < 0.70)]
    scores = [(a.astype(np.float32), b.astype(np.float32)) for a, b in right]
    assert sign_flip_scores(scores) == pytest.approx(sign_flip(right), abs=0.01)


def test_examples_without_a_score_or_a_difference_do_not_count() -> None:
    a, b = np.array([1.0, 2.0, math.nan, 4.0, math.inf, 7.0]), np.array([0.0, 1.0, 3.0, math.nan, math.inf, 7.0])
    assert sign_flip_scores([(a, b)]) == pytest.approx(all_signs(np.array([1.0, 1.0])))
    assert sign_flip_scores([(b[:1], b[:1])]) == 1.0
    one = np.array([500.0, 500.0, 9.0])
    assert sign_flip_scores([(one, np.array([500.0, 500.0, 10.0]))]) == all_signs(np.array([1.0])) == 1.0
    with pytest.raises(ValueError, match="at least one pair"):
        sign_flip_scores([])
    with pytest.raises(ValueError, match="not of the same examples"):
        sign_flip_scores([(a, b[:3])])


def test_of_errors_the_lower_is_the_better() -> None:
    assert gap_recovered(0.2, 0.3, 0.1, higher=False) == pytest.approx(0.5)
    assert gap_recovered(0.4, 0.3, 0.1, higher=False) == pytest.approx(-0.5)
    assert gap_recovered(0.2, 0.1, 0.3, higher=False) is None
    assert average_ranks({"a": [0.1, 0.3], "b": [0.2, 0.2]}, higher=False) == {"a": 1.5, "b": 1.5}
    assert average_ranks({"a": [0.1], "b": [0.2], "c": [0.1]}, higher=False) == {"a": 1.5, "b": 3.0, "c": 1.5}
    pairs = [((0.1, 0.2), (0.2, 0.3, 0.05))]
    up, down = improvement_probability(pairs), improvement_probability(pairs, higher=False)
    assert down.value == pytest.approx((1 + 1 + 0 + 0.5 + 1 + 0) / 6)
    assert up.value == pytest.approx(1 - down.value)
