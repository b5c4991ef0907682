"""Statistics against published examples and tabulated quantiles."""

from __future__ import annotations

import math
import random

import pytest

from kdbench.results.stats import gap_recovered, mean_interval, paired_difference

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
