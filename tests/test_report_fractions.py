"""The sheet of chapter 8: made-up records of one pair with 10, 100 and 1000 labels, whose crossings are known."""

from __future__ import annotations

import csv
import io
import math
import re
import statistics
from typing import Any

import pytest
from factories import known, make_record

from kdbench.report import render
from kdbench.results.record import Record

SHEET = "tables/across-labels/cifar100-resnet56-resnet20-crd240"
FREE = (60.0, 60.2, 60.4)
"""What is reached without labels, by seed."""
ALONE: dict[str, Any] = {"teacher": None, "cell": {"teacher": None, "pair": "resnet20"}}
INFO = {
    "scratch": {"leaf": "controls", "cls": "methods.controls.scratch.Scratch", "needs": ["labels"]},
    "kd": {"cls": "methods.logits.kd.KD", "needs": ["labels", "teacher"]},
    "mean_teacher": {
        "leaf": "learning/semi-self-supervised",
        "cls": "methods.learning.mean_teacher.MeanTeacher",
        "needs": ["labels", "unlabelled"],
    },
    "kd_unlabelled": {"cls": "methods.logits.kd_unlabelled.KDUnlabelled", "needs": ["teacher"]},
    "logits_mse": {"cls": "methods.logits.logits_mse.LogitsMSE", "needs": ["teacher"]},
}


def few(labels: int, laps: int) -> dict[str, Any]:
    target = "kdbench.data.scenarios.SemiSupervised"
    return {"scenario": {"_target_": target, "labelled": labels, "laps": laps, "per_batch": 64}}


def records(method: str, labels: int, scores: tuple[float, ...], **config: Any) -> list[Record]:
    """Of 1000 images, so many of which have labels and are shown as often as makes equal epochs."""
    dataset = few(labels, 1000 // labels) if labels < 1000 else {}
    apart = ALONE if "teacher" not in INFO[method]["needs"] else {}
    return [
        make_record(
            method,
            seed,
            top1,
            info=INFO[method],
            dataset={"n_train": labels},
            config={"dataset": dataset, **({"pair": None} if apart else {}), **config},
            **apart,
        )
        for seed, top1 in enumerate(scores)
    ]


def behind(*differences: float) -> tuple[float, ...]:
    return tuple(round(score + difference, 2) for score, difference in zip(FREE, differences, strict=True))


def sample() -> list[Record]:
    return [
        *records("kd_unlabelled", 1000, FREE),
        *records("logits_mse", 1000, (50.0, 50.1, 50.2)),
        *records("scratch", 10, behind(-30.0, -29.5, -30.5)),
        *records("scratch", 100, behind(-0.5, 0.4, 0.3)),
        *records("scratch", 1000, behind(5.0, 5.1, 5.3)),
        *records("kd", 10, behind(-29.0, -29.5, -29.0)),
        *records("kd", 1000, behind(-0.1, 0.2, 0.2)),
        *records("mean_teacher", 10, behind(0.1, -0.2, 0.3)),
        *records("mean_teacher", 100, behind(2.0, 2.1, 2.05)),
        *records("mean_teacher", 1000, behind(3.0, 3.1, 3.05)),
    ]


def sheet(found: list[Record], suffix: str = "md") -> str:
    (text,) = [
        text
        for name, text in render(found, [suffix], methods=known()).items()
        if re.fullmatch(rf"{re.escape(SHEET)}-[0-9a-f]{{8}}\.{suffix}", name)
    ]
    return text


def shown(*scores: float) -> str:
    """Mean and half its t-interval; 4.3027 is the 97.5 % quantile with two degrees of freedom."""
    return f"{statistics.mean(scores):.2f} ± {4.3027 * statistics.stdev(scores) / math.sqrt(3):.2f}"


def p_of(*differences: float) -> float:
    """The paired t-test with two degrees of freedom, in closed form."""
    mean = sum(differences) / 3
    variance = sum((each - mean) ** 2 for each in differences) / 2
    t = mean / math.sqrt(variance / 3)
    return 1 - abs(t) / math.sqrt(t * t + 2)


def test_the_crossing_lies_between_what_is_surely_worse_and_what_is_surely_better() -> None:
    text = sheet(sample())
    (free,) = [line for line in text.splitlines() if line.startswith("- 8.2 Label-free")]
    assert "How good is a student that never sees a true label? Best without labels: kd_unlabelled, 60.20 %. " in free
    # with 100 labels it is neither: that lies within
    assert "scratch passes kd_unlabelled between 10 labels (1 %) (Δ -30.00 ± 1.24, p < 0.001)" in free
    assert "and 1,000 labels (100 %) (Δ +5.13 ± 0.38, p = 0.00" in free
    assert "kd: no crossing with kd_unlabelled within what was run (with 1,000 labels (100 %) Δ +0.10 ± 0.43" in free
    assert (
        "mean_teacher is better than kd_unlabelled from 100 labels (10 %) (Δ +2.05 ± 0.12, p < 0.001) on, and with "
        "fewer cannot be told from it."
    ) in free
    (required,) = [line for line in text.splitlines() if line.startswith("- 8.1 Label-required")]
    assert "With 1,000 labels (100 %), beside kd_unlabelled without: kd Δ +0.10 ± 0.43, p = 1.000." in required
    assert "scratch" not in required


def test_every_method_stands_with_every_number_of_labels() -> None:
    text = sheet(sample())
    assert text.splitlines()[1] == (
        "# 8. Label-required and label-free distillation: cifar100, resnet56-resnet20, crd240"
    )
    lines = {line[2:-2].split(" | ")[0]: line[2:-2].split(" | ")[1:] for line in text.splitlines() if line[:2] == "| "}
    assert lines["Method"] == [
        "no labels",
        "10 labels (1 %)",
        "100 labels (10 %)",
        "1,000 labels (100 %)",
        "better from",
    ]
    assert lines["kd_unlabelled"] == ["60.20 ± 0.50", "-", "-", "-", "-"]
    assert lines["logits_mse"][0] == "50.10 ± 0.25"
    values = [shown(*behind(*each)) for each in ((-30.0, -29.5, -30.5), (-0.5, 0.4, 0.3), (5.0, 5.1, 5.3))]
    assert lines["scratch"] == ["-", *values[:2], f"**{values[2]}**", "1,000 labels"]
    assert lines["kd"][-2:] == [shown(*behind(-0.1, 0.2, 0.2)), "no crossing"]
    assert lines["kd"][2] == "-"
    values = [shown(*behind(*each)) for each in ((2.0, 2.1, 2.05), (3.0, 3.1, 3.05))]
    assert lines["mean_teacher"][-3:] == [f"**{values[0]}**", f"**{values[1]}**", "100 labels"]
    assert "after Holm (8 tests)" in text
    assert "30 records" in text
    assert "across-labels/" in render(sample(), ["md"])["tables/README.md"]
    assert r"\bfseries 65.33" in sheet(sample(), "tex")


def test_the_csv_holds_every_point_and_its_crossing() -> None:
    rows = list(csv.DictReader(io.StringIO(sheet(sample(), "csv"))))
    assert len(rows) == 10
    found = {(row["method"], int(row["labels"])): row for row in rows}
    assert found["kd_unlabelled", 0]["without"] == ""
    scratch = found["scratch", 1000]
    assert (scratch["crossing_above"], scratch["crossing_at_most"]) == ("10", "1000")
    assert float(scratch["share"]) == 1
    assert float(scratch["delta"]) == pytest.approx(15.4 / 3)
    # by size the second of eight: 30.0 ± 0.5 is surer, 5.13, 3.05 and 2.05 are less
    every = sorted(
        p_of(*differences)
        for differences in (
            (-30.0, -29.5, -30.5), (-0.5, 0.4, 0.3), (5.0, 5.1, 5.3), (-29.0, -29.5, -29.0), (-0.1, 0.2, 0.2),
            (0.1, -0.2, 0.3), (2.0, 2.1, 2.05), (3.0, 3.1, 3.05),
        )
    )  # fmt: skip
    place = every.index(p_of(5.0, 5.1, 5.3))
    expected = max((8 - k) * p for k, p in enumerate(every[: place + 1]))
    assert float(scratch["delta_p_holm"]) == pytest.approx(expected)


def test_who_is_better_with_the_fewest_has_crossed_before() -> None:
    text = sheet([*records("kd_unlabelled", 1000, FREE), *records("scratch", 10, behind(2.0, 2.1, 2.05)),
                  *records("scratch", 100, behind(3.0, 3.1, 3.05))])  # fmt: skip
    assert "scratch is better than kd_unlabelled already with 10 labels (1 %) (Δ +2.05" in text
    # better with few labels and not with more is no crossing
    text = sheet([*records("kd_unlabelled", 1000, FREE), *records("scratch", 10, behind(2.0, 2.1, 2.05)),
                  *records("scratch", 100, behind(0.1, -0.2, 0.2))])  # fmt: skip
    assert "scratch: no crossing with kd_unlabelled within what was run (with 100 labels (10 %) Δ +0.03" in text


def test_one_seed_tells_no_crossing() -> None:
    found = [record for record in sample() if record.cell.seed == 0]
    assert "scratch: on one seed no crossing can be told." in sheet(found)


def test_only_what_differs_in_labels_alone_is_compared() -> None:
    free, one = records("kd_unlabelled", 1000, FREE), records("scratch", 10, (30.0, 30.1, 30.2))
    for other in (
        records("scratch", 10, (31.0, 31.1, 31.2)),  # one number of labels alone
        records("scratch", 100, (31.0, 31.1, 31.2), protocol={"epochs": 120}),
        records("scratch", 100, (31.0, 31.1, 31.2), dataset=few(100, 5)),  # half as many steps
        records("scratch", 100, (31.0, 31.1, 31.2), dataset={**few(100, 10), "flip": True}),
        records(
            "scratch", 100, (31.0, 31.1, 31.2), dataset={"scenario": {**few(100, 10)["scenario"], "per_batch": 32}}
        ),
    ):
        there = {record.cell.id: record for record in [*free, *one, *other]}
        assert not any("across-labels" in name for name in render([*there.values()], ["md"]))
    more = records("scratch", 100, (31.0, 31.1, 31.2))
    assert any("across-labels" in name for name in render([*free, *one, *more], ["md"]))
    assert not any("across-labels" in name for name in render([*one, *more], ["md"]))  # nothing without labels
