"""Two methods compared in words."""

from __future__ import annotations

import re

import numpy as np
import pytest
from factories import N_TEST, make_record
from scipy.stats import binomtest

from kdbench.errors import UserError
from kdbench.report import compare
from kdbench.results.record import Record, pack_correct

FEATURES = {"leaf": "intermediate/features", "control": None}
SMALL = {"cell": {"student": "resnet8", "pair": "resnet56-resnet8"}, "config": {"pair": {"student": "resnet8"}}}


def runs(method: str, values: tuple[float, ...], **overrides: object) -> list[Record]:
    return [make_record(method, seed, top1, **overrides) for seed, top1 in enumerate(values)]


def scratch() -> list[Record]:
    return runs("scratch", (69.0, 69.2, 69.4), info={"leaf": "controls"})


def test_a_better_method() -> None:
    """Differences 0.10, 0.11, 0.12: t = 19.05, p = 0.00274; gaps are (mean - 69.2) / (72.34 - 69.2)."""
    records = [*scratch(), *runs("kd", (70.0, 70.8, 71.0)), *runs("at", (70.1, 70.91, 71.12), info=FEATURES)]
    text = compare(records, "at", "kd")
    assert text.splitlines() == [
        "cifar100, resnet56-resnet20, crd240: at against kd",
        "  at: 70.71 % ± 1.34, n = 3, 48.1 % of the gap recovered",
        "  kd: 70.60 % ± 1.31, n = 3, 44.6 % of the gap recovered",
        "  Difference: +0.11 ± 0.02 points (seed 0 +0.10, seed 1 +0.11, seed 2 +0.12); at won 3, lost 0.",
        "  Seeds: p = 0.003 (paired t-test, n = 3, p = 0.003 after Holm).",
        "  Examples: 33 right by at alone, 0 by kd alone; p < 0.001 (exact sign flips of the mean over seeds; "
        "McNemar: seed 0 p = 0.002, seed 1 p < 0.001, seed 2 p < 0.001).",
        "  at is better than kd.",
    ]
    assert compare(records, "kd", "at").splitlines()[-1] == "  at is better than kd."
    assert compare(records[::-1], "at", "kd") == text


def test_the_examples_are_compared_one_by_one() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(N_TEST) < 0.7, rng.random(N_TEST) < 0.69
    records = [
        make_record(
            name,
            0,
            info=FEATURES,
            metrics={"last": float(100 * c.mean()), "oracle": 100.0},
            correct=pack_correct(c).model_dump(),
        )
        for name, c in (("at", a), ("sp", b))
    ]
    text = compare(records, "at", "sp")
    first, second = int((a & ~b).sum()), int((~a & b).sum())
    p = binomtest(first, first + second).pvalue
    assert f"Examples: {first} right by at alone, {second} by sp alone; p = {p:.3f} (exact sign flips" in text
    assert f"McNemar: seed 0 p = {p:.3f})" in text


def test_one_seed_settles_nothing() -> None:
    text = compare([*runs("at", (75.0,), info=FEATURES), *runs("kd", (70.0, 71.0))], "at", "kd")
    assert "at: 75.00 % one seed" in text
    assert "Seeds: one in common, so no interval and no test." in text
    assert text.endswith("at and kd are not distinguishable here.\n")
    text = compare([make_record("at", 3, info=FEATURES), *runs("kd", (70.0,))], "at", "kd")
    assert "share no finished seed" in text


def test_diverged_runs_are_counted() -> None:
    records = [*runs("kd", (70.0, 71.0)), *runs("at", (70.0,), info=FEATURES)]
    records.append(make_record("at", 1, status="diverged", info=FEATURES))
    assert "  at: 70.00 % one seed, 1 diverged" in compare(records, "at", "kd")
    lost = [*runs("kd", (70.0,)), make_record("at", 0, status="diverged", info=FEATURES)]
    assert "  at: no finished run, 1 diverged" in compare(lost, "at", "kd")


def test_every_table_that_holds_both_and_a_summary() -> None:
    records = [*runs("kd", (70.0, 70.8, 71.0)), *runs("at", (70.1, 70.91, 71.12), info=FEATURES)]
    records += [*runs("kd", (60.0, 60.5, 61.0), **SMALL), *runs("at", (60.5, 60.0, 60.9), info=FEATURES, **SMALL)]
    records += runs("kd", (50.0,), cell={"protocol": "lite"}, config={"protocol": {"epochs": 3}})
    text = compare(records, "at", "kd")
    assert re.findall(r"^cifar100, (\S+), ", text, re.MULTILINE) == ["resnet56-resnet20", "resnet56-resnet8"]
    # by hand: at wins 6 of 9 pairs of runs on the first pair; on the second 4 (60.5 ties once, counting half)
    wins = (
        np.mean([(a > b) + 0.5 * (a == b) for a in (70.1, 70.91, 71.12) for b in (70.0, 70.8, 71.0)])
        + np.mean([(a > b) + 0.5 * (a == b) for a in (60.5, 60.0, 60.9) for b in (60.0, 60.5, 61.0)])
    ) / 2
    summary = "Over 2 comparisons on cifar100, crd240: at is better in 1, kd in 0, 1 not distinguishable; P(at > kd) ="
    assert f"{summary} {wins:.2f}" in text
    assert "p = 0.003 (paired t-test, n = 3, p = 0.005 after Holm)" in text  # two comparisons


def test_settings_are_told_apart() -> None:
    records = [*runs("kd", (70.0, 70.1)), *runs("kd", (71.0, 71.1), config={"method": {"temperature": 8.0}})]
    records += runs("at", (72.0, 72.1), info=FEATURES)
    both = compare(records, "at", "kd")
    assert re.findall(r"at against (.+)", both) == ["kd (temperature=4)", "kd (temperature=8)"]
    assert re.findall(r"at against (.+)", compare(records, "at", "kd:temperature=8")) == ["kd (temperature=8)"]
    text = compare(records, "kd:temperature=4", "kd:temperature=8")
    assert text.startswith("cifar100, resnet56-resnet20, crd240: kd (temperature=4) against kd (temperature=8)\n")


def test_what_cannot_be_compared_is_an_error() -> None:
    records = [*runs("kd", (70.0,)), *runs("at", (70.0,), info=FEATURES, **SMALL)]
    with pytest.raises(UserError, match=r"No record is of a method 'atx': did you mean at\?"):
        compare(records, "atx", "kd")
    with pytest.raises(UserError, match=r"at and kd share no table: at stands in .*resnet8.*, kd in .*resnet20"):
        compare(records, "at", "kd")
    with pytest.raises(UserError, match="same setting"):
        compare(records, "kd", "kd")
    with pytest.raises(UserError, match="No record is of the setting 'kd:temperature=5': kd has kd"):
        compare(records, "kd:temperature=5", "at")
