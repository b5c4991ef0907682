"""Verdicts on made-up runs with known answers; the quantiles of t are those of printed tables."""

from __future__ import annotations

import math
import statistics

import pytest

from kdbench.results.verdict import WORDS, Arm, Printed, Verdict, judge, level_interval

T4, T2, T8 = 2.776445, 4.302653, 2.306004
"""97.5 % quantiles of t with 4, 2 and 8 degrees of freedom."""


def arm(mean: float, spread: float = 0.1, name: str = "kd", n: int = 5, first: int = 0) -> Arm:
    """`n` runs around `mean` with standard deviation spread * √(n(n+1)/12)."""
    return Arm(name, {first + k: mean + spread * (k - (n - 1) / 2) for k in range(n)})


SD5 = math.sqrt(2.5)  # of -2, -1, 0, 1, 2


def test_one_run_is_compared_with_where_a_further_run_would_lie() -> None:
    low, high = level_interval(Printed(90.0), list(arm(90.0).values.values())) or (0, 0)
    half = T4 * 0.1 * SD5 * math.sqrt(1 + 1 / 5)
    assert (low, high) == (pytest.approx(90 - half, abs=1e-5), pytest.approx(90 + half, abs=1e-5))


def test_the_mean_of_several_runs_without_sd_lies_closer() -> None:
    low, _ = level_interval(Printed(90.0, runs=5), list(arm(90.0).values.values())) or (0, 0)
    assert low == pytest.approx(90 - T4 * 0.1 * SD5 * math.sqrt(2 / 5), abs=1e-5)


def test_runs_with_sd_are_compared_by_welch() -> None:
    """With equal n and sd Welch's degrees of freedom are 2 (n - 1), and its half width that of the pooled test."""
    low, high = level_interval(Printed(90.0, runs=5, sd=0.1 * SD5), list(arm(90.0).values.values())) or (0, 0)
    half = T8 * 0.1 * SD5 * math.sqrt(2 / 5)
    assert (low, high) == (pytest.approx(90 - half, abs=1e-5), pytest.approx(90 + half, abs=1e-5))


def test_the_best_of_runs_lies_higher_than_one() -> None:
    values = list(arm(90.0).values.values())
    one, best = level_interval(Printed(90.0), values), level_interval(Printed(90.0, runs=10, best=True), values)
    assert one is not None
    assert best is not None
    assert best[0] > one[0]
    assert best[1] > one[1]
    assert level_interval(Printed(90.0, runs=1, best=True), values) == pytest.approx(one)
    # ten of a sample without spread are that sample
    assert level_interval(Printed(90.0, runs=10, best=True), [90.0, 90.0]) == (90.0, 90.0)


def test_fewer_test_images_widen_the_interval_by_their_binomial() -> None:
    low, high = level_interval(Printed(98.0, images=1000), [98.0, 98.0, 98.0], (0.0, 100.0)) or (0, 0)
    half = 1.959964 * 100 * math.sqrt(0.98 * 0.02 / 1000)
    assert (low, high) == (pytest.approx(98 - half, abs=1e-4), pytest.approx(98 + half, abs=1e-4))
    assert half == pytest.approx(0.868, abs=1e-3)
    assert (level_interval(Printed(99.9, images=20), [99.9, 99.9], (0.0, 100.0)) or (0, 0))[1] == 100.0


def test_intervals_cover_what_they_say() -> None:
    """Of 2,000 made-up sources of one run beside five runs of ours, about 95 % are reproduced."""
    drawn = statistics.NormalDist(90, 0.5).samples(12000, seed=1)
    groups = [drawn[k : k + 6] for k in range(0, 12000, 6)]
    words = [judge(Printed(six[0], decimals=6), Arm("kd", dict(enumerate(six[1:])))).word for six in groups]
    assert 0.94 < words.count("reproduced") / 2000 < 0.96
    assert abs(words.count("above") - words.count("below")) < 40


SCRATCH = arm(89.0, name="scratch")


def kd(claim: float, ours: Arm, **changes: object) -> Verdict:
    """A source that prints 89.0 from scratch; our scratch is the same on the mean."""
    given = {"baseline": SCRATCH, "claimed_baseline": Printed(89.0)} | changes
    return judge(Printed(claim), ours, **given)  # type: ignore[arg-type]


SHIFTED = Arm("kd", {k: 90.0 + d for k, d in enumerate((-0.2, -0.15, 0.0, 0.1, 0.25))})


@pytest.mark.parametrize(
    ("verdict", "word"),
    [
        (kd(90.0, SHIFTED), "reproduced"),
        (kd(92.0, SHIFTED), "direction reproduced"),  # ours are better than scratch, and below the number
        (kd(89.4, SHIFTED), "direction reproduced"),
        (kd(90.0, SHIFTED, control=arm(90.0, name="softer")), "confounded"),
        (kd(90.0, SHIFTED, control=arm(91.0, name="softer")), "confounded"),
        (kd(92.0, SHIFTED, control=arm(90.0, name="softer")), "confounded"),
        (kd(90.0, SHIFTED, control=arm(89.5, name="softer")), "reproduced"),
        (kd(89.3, Arm("kd", {0: 88.5, 1: 90.1, 2: 88.7, 3: 89.6, 4: 89.0})), "cannot be decided"),
        (kd(90.0, Arm("kd", {k: v + d for (k, v), d in zip(SCRATCH.values.items(), (0.01, -0.01, 0.02, 0.0, 0.0),
                                                           strict=True)})), "below"),
        (kd(89.3, Arm("kd", {k: v + 0.001 * (-1) ** k for k, v in SCRATCH.values.items()})), "gain not reproduced"),
        (kd(88.0, SHIFTED), "above"),  # a loss is claimed, and ours gain
        (kd(88.0, Arm("kd", {k: v - 1 - 0.01 * k for k, v in SCRATCH.values.items()})), "reproduced"),
        (judge(Printed(90.0), arm(90.0)), "reproduced"),
        (judge(Printed(91.0), arm(90.0)), "below"),
        (judge(Printed(89.0), arm(90.0)), "above"),
    ],
)  # fmt: skip
def test_each_word(verdict: Verdict, word: str) -> None:
    assert verdict.word == word, verdict
    assert verdict.word in WORDS


def test_a_confounded_gain_names_its_control() -> None:
    verdict = kd(90.0, SHIFTED, control=arm(90.0, name="random_targets"))
    assert verdict.control == "random_targets"
    assert verdict.reason == "the gain over scratch vanishes beside random_targets"
    assert verdict.level == "reproduced"
    assert verdict.gain is not None
    assert verdict.gain.mean == pytest.approx(1.0)


def test_a_claimed_loss_is_not_confounded() -> None:
    """A control explains a gain; of a loss there is none to explain."""
    worse = Arm("kd", {k: v - 1 - 0.01 * k for k, v in SCRATCH.values.items()})
    assert kd(88.0, worse, control=arm(90.0, name="softer")).word == "reproduced"


def test_rounding_of_printed_digits_counts() -> None:
    exact = Arm("kd", dict.fromkeys(range(5), 23.4))
    assert judge(Printed(23.0, decimals=0), exact).word == "reproduced"
    assert judge(Printed(23.0, decimals=1), exact).word == "above"
    # 23 and 24 may be 23.49 and 23.51: no gain is claimed
    one, other = Printed(24.0, decimals=0), Printed(23.0, decimals=0)
    exact = Arm("kd", dict.fromkeys(range(5), 23.6))
    assert judge(one, exact, baseline=arm(23.5), claimed_baseline=other).word == "reproduced"


def test_too_few_runs_decide_nothing() -> None:
    verdict = judge(Printed(90.0), Arm("kd", {0: 90.0}))
    assert (verdict.word, verdict.reason, verdict.level) == ("cannot be decided", "one run tells no spread", None)
    assert judge(Printed(90.0), Arm("kd", {})).reason == "no run of ours finished"


def test_a_baseline_that_was_not_run_leaves_the_level() -> None:
    """Nor does one with which a single seed is common tell a gain; a control that was not run confounds nothing."""
    for baseline in (None, Arm("scratch", {}), Arm("scratch", {0: 89.0}), arm(89.0, name="scratch", first=10)):
        verdict = kd(90.0, SHIFTED, baseline=baseline)
        assert verdict.word == "reproduced"
    assert kd(90.0, SHIFTED, control=Arm("softer", {})).word == "reproduced"
    assert kd(90.0, SHIFTED, control=Arm("softer", {0: 90.0})).word == "reproduced"


def test_runs_that_do_not_spread_are_judged_by_rounding_alone() -> None:
    same = Arm("kd", dict.fromkeys(range(3), 90.0))
    assert judge(Printed(90.004, decimals=2), same).word == "reproduced"
    assert judge(Printed(90.01, decimals=2), same).word == "below"
    assert judge(Printed(90.0, runs=3, sd=0.0), same).word == "reproduced"
