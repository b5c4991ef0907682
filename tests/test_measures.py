"""Tables of other measures than top-1: direction, unit, scores of examples, further measures, controls of each task."""

from __future__ import annotations

import base64
import csv
import io
import json
import math
import re
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Kdbench
from factories import make_card, make_measured, make_record, rendered
from pydantic import ValidationError
from rich.console import Console
from scipy.stats import ttest_rel

from kdbench.cli import main
from kdbench.engine import run
from kdbench.engine.making import metrics_of
from kdbench.measures import TOP1, Measure
from kdbench.report import build_tables, compare, render, render_terminal
from kdbench.report.leaderboard import render as page
from kdbench.report.model import Table
from kdbench.report.trust import from_scratch, weakness
from kdbench.results import load
from kdbench.results.record import Record, dump, pack_scores, parse, unpack_scores
from kdbench.results.stats import sign_flip_scores
from kdbench.results.store import Store
from kdbench.tasks.depth import Depth
from kdbench.teaching.teachers import Card

MIOU = Measure("mIoU")
ABSREL = Measure("AbsRel", higher=False, unit="")
RETURN = Measure("return", unit="", examples="episodes")
AVERAGE = Measure("average")
FEATURES = {"leaf": "intermediate/features", "control": None}
NAME = "tables/cifar100-resnet56-resnet20-crd240"
ERRORS = {"scratch": (0.2101, 0.2115, 0.2098), "kd": (0.1702, 0.1711, 0.1694), "at": (0.1502, 0.1513, 0.1493)}
TEACHER = {"accuracy": 0.1234}
ONE = pack_scores([1.0]).model_dump()


@dataclass(frozen=True)
class Known:
    name: str
    path: str
    tasks: frozenset[str]
    leaf: str = "controls"
    title: str = "A method"
    paper: str | None = None
    extension: bool = False
    survey: Mapping[str, str] = field(default_factory=dict)

    def defaults(self, teacher: str | None, student: str) -> Mapping[str, Any]:
        return {}


def errors(n: int = 60, **overrides: Any) -> list[Record]:
    """Of depth; each example's error lies about its run's."""
    records = []
    for method, values in ERRORS.items():
        info = FEATURES if method == "at" else {"leaf": "controls"} if method == "scratch" else {}
        for seed, value in enumerate(values):
            spread = np.random.default_rng(seed).normal(0, 0.05, n)
            more = {"info": info, "teacher": TEACHER, **overrides}
            records.append(make_measured(method, seed, value, ABSREL, value + spread - spread.mean(), **more))
    return records


def rows(text: str) -> dict[str, dict[str, str]]:
    """A Markdown table's rows by method."""
    lines = [line[2:-2].split(" | ") for line in text.splitlines() if line.startswith("| ") and line.count("|") > 3]
    head, *found = [line for line in lines if not line[0].startswith("**")]
    return {row[0].replace("\\", ""): dict(zip(head, row, strict=True)) for row in found}


def shown(tables: list[Table]) -> str:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render_terminal(tables))
    return console.export_text()


# ---- records --------------------------------------------------------------------------------------------------------


def test_a_record_of_another_measure_comes_back_whole() -> None:
    scores = np.array([0.5, -1.25, 3e-8, math.nan], dtype=np.float32)
    teachers = [{"name": "wrn", "sha256": "b" * 64, "accuracy": 0.1}]
    record = make_measured("kd", 0, 0.15, ABSREL, scores, metrics={"others": {"RMSE": 0.5}}, others=teachers)
    again = parse(dump(record))
    assert dump(again) == dump(record)
    assert again.measure == ABSREL
    assert again.scores is not None
    np.testing.assert_array_equal(unpack_scores(again.scores), scores)
    assert again.examples is not None
    assert again.examples.dtype == np.float32
    assert again.others[0].name == "wrn"
    data = json.loads(dump(record))
    assert data["metrics"]["others"] == {"RMSE": 0.5}
    assert data["scores"]["n"] == 4
    assert np.frombuffer(base64.b64decode(data["scores"]["values"]), "<f4")[1] == -1.25


def test_records_of_top1_keep_their_text() -> None:
    """The fields came later: what was sealed without them must still be the same text."""
    data = json.loads(dump(make_record()))
    assert not {"scores", "measure", "others"} & data.keys()
    assert data["metrics"].keys() == {"primary", "last", "val_selected", "oracle"}
    assert make_record(measure={"name": "top1", "higher": True, "unit": "%"}) == make_record()


def test_a_measure_of_the_whole_has_no_examples_and_percent_alone_a_range() -> None:
    assert make_measured("kd", 0, 61.5, MIOU).examples is None
    assert make_measured("kd", 0, -463.2, RETURN, [1.0] * 7, teacher={"accuracy": 500.0}).measure == RETURN
    bits = make_record().correct
    assert bits is not None
    average = make_measured("kd", 0, 41.0, AVERAGE, correct=bits.model_dump(), metrics={"oracle": None})
    assert average.examples is not None
    assert average.examples.dtype == bool


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: make_measured("kd", 0, 101.0, MIOU), "101 is no percentage: mIoU lies between 0 and 100"),
        (lambda: make_measured("kd", 0, 60.0, MIOU, teacher={"accuracy": -1.0}), "-1 is no percentage"),
        (lambda: make_record(teacher={"as_fed": 100.5}), "100.5 is no percentage: top-1"),
        (lambda: make_record(correct=None), "a finished cell has metrics and correctness"),
        (lambda: make_record(scores=ONE), "not both"),
        (lambda: make_record(status="diverged", scores=ONE), "a diverged cell has a reason"),
        (lambda: make_measured("kd", 0, 60.0, MIOU, metrics={"primary": "top1"}), "of top1, but mIoU is measured"),
        (lambda: make_measured("kd", 0, 60.0, Measure("")), "a measure has a name"),
        (lambda: make_measured("kd", 0, 60.0, Measure("a", unit="\x1b[31m")), "without control characters"),
        (lambda: make_record(measure={"name": "top1", "colour": "red"}), "colour"),
        (lambda: make_record(scores={**ONE, "values": "###"}), "not base64"),
        (lambda: make_record(scores={**ONE, "values": "AAAA"}), "not those of 1 examples"),
        (lambda: make_record(others=[{"name": "a", "sha256": "b" * 64, "accuracy": 1.0}], teacher=None), "no first"),
        (lambda: pack_scores([[1.0]]), "one number per example"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(make: Any, problem: str) -> None:
    with pytest.raises((ValidationError, ValueError), match=re.escape(problem)):
        make()


def test_a_store_of_several_measures_is_one_frame(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for record in (make_record(), make_measured("at", 1, 0.15, ABSREL, [0.1, 0.2], metrics={"others": {"RMSE": 0.5}})):
        store.write(record)
    frame = load(tmp_path).set_index("cell.method")
    assert frame.loc["kd", "measure.name"] == "top1"
    assert (frame.loc["at", "measure.name"], frame.loc["at", "measure.higher"]) == ("AbsRel", False)
    assert frame.loc["at", "metrics.others.RMSE"] == 0.5
    assert math.isnan(frame.loc["kd", "metrics.others.RMSE"])
    assert "metrics.others" not in frame


# ---- made from what a meter says ------------------------------------------------------------------------------------


def test_the_best_epoch_is_the_lowest_of_errors() -> None:
    curves = {"test/AbsRel": [0.4, 0.1, None, 0.3, 0.2], "val/AbsRel": [0.5, 0.4, None, 0.2, 0.3]}
    metrics = metrics_of(curves, ABSREL, {"AbsRel": 0.25, "RMSE": 0.5, "log": math.inf})
    assert (metrics.last, metrics.val_selected, metrics.oracle) == (0.25, 0.3, 0.1)
    assert metrics.others == {"RMSE": 0.5}
    up = metrics_of({"test/top1": [0.4, 60.0, 50.0], "val/top1": [1.0, 3.0, 3.0]}, TOP1, {"top1": 61.0})
    assert (up.val_selected, up.oracle) == (50.0, 61.0)  # of equal epochs the latest


def test_nothing_is_selected_where_an_earlier_epoch_answers_another_question() -> None:
    curves = {"test/average": [100.0, 40.0], "val/average": [100.0, 40.0]}
    metrics = metrics_of(curves, AVERAGE, {"average": 40.0}, cumulative=True)
    assert (metrics.last, metrics.val_selected, metrics.oracle) == (40.0, None, None)


def test_a_cell_is_recorded_tabulated_and_compared_by_its_measure(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """From training to the terminal, as if a meter of depth had judged the digits."""
    made = run.make_record
    reached = {"scratch": 0.5, "kd": 0.25, "ls": math.nan}

    class Judged:
        """A method whose task is depth."""

        task = Depth()

        def __init__(self, method: Any) -> None:
            self._method = method

        def __getattr__(self, name: str) -> Any:
            return getattr(self._method, name)

    def judged(cell: Any, method: Any, data: Any, teachers: Any, fitted: Any, **given: Any) -> Record:
        value = reached.get(cell.named().method)
        if value is None:  # the teacher's own cell
            return made(cell, method, data, teachers, fitted, **given)
        teachers = [teacher.model_copy(update={"accuracy": 0.1}) for teacher in teachers]
        scores = torch.full((7,), value) + torch.arange(7) / 100
        fitted.curves["test/AbsRel"] = [0.125, value]
        values = {"AbsRel": value, "RMSE": 2 * value, "log": math.inf}
        return made(cell, Judged(method), data, teachers, replace(fitted, values=values, examples=scores), **given)

    monkeypatch.setattr(run, "make_record", judged)
    result = kd.run("method=[scratch,kd,ls]")
    record = kd.record("kd")
    assert record.measure == ABSREL
    assert record.metrics is not None
    assert (record.metrics.last, record.metrics.oracle, record.metrics.others) == (0.25, 0.125, {"RMSE": 0.5})
    assert record.correct is None
    np.testing.assert_allclose(record.examples, 0.25 + np.arange(7) / 100, rtol=1e-6)
    assert (kd.record("ls").status, kd.record("ls").reason) == (
        "diverged",
        "AbsRel was not finite after the last epoch",
    )
    assert "AbsRel last ↓" in result.out
    assert re.search(r"kd +1 +0\.2500 +-0\.2500 +reference", result.out)
    compared = kd("compare", "kd", "scratch")
    assert "kd won 1, lost 0." in compared.out
    assert "7 better by kd, 0 by scratch; p = 0.016" in compared.out  # 2 of 2⁷ signs


# ---- lower is better ------------------------------------------------------------------------------------------------


def test_errors_by_hand() -> None:
    (table,) = build_tables(errors())
    at = next(row for row in table.rows if row.method == "at")
    start, end = statistics.fmean(ERRORS["scratch"]), TEACHER["accuracy"]
    assert at.gap == pytest.approx((statistics.fmean(ERRORS["at"]) - start) / (end - start))
    assert 0.6 < at.gap < 0.8
    assert at.delta_kd is not None
    assert at.delta_kd.mean == pytest.approx(statistics.fmean(ERRORS["at"]) - statistics.fmean(ERRORS["kd"]))
    assert at.delta_kd.p == pytest.approx(ttest_rel(ERRORS["at"], ERRORS["kd"]).pvalue)
    scores = {r.cell.method: [] for r in errors()}
    for record in errors():
        scores[record.cell.method].append(record.examples)
    pairs = list(zip(scores["at"], scores["kd"], strict=True))
    assert at.delta_kd.p_examples == sign_flip_scores(pairs)
    total = np.sum([a.astype(float) - b for a, b in pairs], axis=0)
    z = abs(total.sum()) / math.sqrt((total**2).sum())
    assert at.delta_kd.p_examples == pytest.approx(math.erfc(z / math.sqrt(2)))


def test_errors_are_shown_with_four_digits_and_their_direction() -> None:
    texts = rendered(errors(), ["md", "csv", "tex"])
    text = texts[f"{NAME}.md"]
    at, kd = rows(text)["at"], rows(text)["kd"]
    assert at["AbsRel last ↓"].startswith("0.1503 ± ")
    assert kd["Δ KD"] == "reference"
    assert at["Δ KD"].startswith("**-0.0200 ± ")
    assert "- Teacher: resnet56, 0.1234 (sha256 aaaaaaaaaaaa)." in text
    assert "- Student: resnet20, from scratch 0.2105 ± 0.0023." in text
    assert "Selection: the last epoch, AbsRel, lower is better; the best test epoch is never ranked." in text
    assert "Best beside the controls: at, 0.1503; better than KD (Δ -0.0200 ± " in text
    assert "selection: last epoch, AbsRel, lower is better;" in text
    assert "%" not in at["AbsRel last ↓"] + text.split("Selection:")[1].splitlines()[0]
    assert r"\shortstack{AbsRel \\ $\downarrow$}" in texts[f"{NAME}.tex"]
    assert "AbsRel (lower is better) after the last epoch" in texts[f"{NAME}.tex"]
    (row,) = [row for row in csv.DictReader(io.StringIO(texts[f"{NAME}.csv"])) if row["method"] == "at"]
    assert "top1" not in row
    assert (row["measure"], row["higher_is_better"], row["unit"]) == ("AbsRel", "False", "")
    assert float(row["AbsRel"]) == pytest.approx(statistics.fmean(ERRORS["at"]))
    assert float(row["delta_kd_p_examples"]) < 0.001
    for line in ("AbsRel last ↓", "better than KD", "0.1503 ± "):
        assert line in shown(build_tables(errors()))


def test_a_method_with_larger_errors_is_worse() -> None:
    swap = {"kd": "at", "at": "kd"}
    records = []
    for method, values in ERRORS.items():
        name = swap.get(method, method)
        info = FEATURES if name == "at" else {"leaf": "controls"} if name == "scratch" else {}
        records += [make_measured(name, seed, v, ABSREL, info=info, teacher=TEACHER) for seed, v in enumerate(values)]
    (table,) = build_tables(records)
    text = rendered(records, ["md"])[f"{NAME}.md"]
    assert "worse than KD (Δ +0.0200 ± " in text
    assert rows(text)["at"]["Δ KD"].startswith("**+0.0200")
    assert table.weak is None


def test_the_best_of_several_has_the_lowest_error() -> None:
    records = errors() + [make_measured("sp", s, 0.3, ABSREL, info=FEATURES, teacher=TEACHER) for s in range(3)]
    assert "Best beside the controls: at, 0.1503" in rendered(records, ["md"])[f"{NAME}.md"]


def test_a_teacher_is_weak_where_its_error_is_not_below_the_students() -> None:
    records = errors(teacher={"accuracy": 0.25})
    (table,) = build_tables(records)
    assert table.weak == "not below the student from scratch (0.2105)"
    assert all(row.gap is None for row in table.rows)
    assert weakness(0.2, 100, 10, [0.3], ABSREL) is None
    assert weakness(5.0, 100, 10, [], MIOU) is None  # chance is known of top-1 alone
    assert from_scratch(records, {}, ABSREL) == list(ERRORS["scratch"])
    assert from_scratch(records, {}) == []


def test_errors_across_pairs() -> None:
    small = {"cell": {"student": "resnet8", "pair": "resnet56-resnet8"}, "config": {"pair": {"student": "resnet8"}}}
    texts = rendered([*errors(), *errors(**small)], ["md", "csv"])
    text = texts["tables/across-pairs/cifar100-crd240.md"]
    found = {
        row["method"]: row for row in csv.DictReader(io.StringIO(texts["tables/across-pairs/cifar100-crd240.csv"]))
    }
    assert [float(found[name]["average_rank"]) for name in ("at", "kd", "scratch")] == [1, 2, 3]
    assert float(found["at"]["p_better_than_kd"]) == 1.0
    assert float(found["scratch"]["p_better_than_kd"]) == 0.0
    assert 0.6 < float(found["at"]["gap_iqm"]) < 0.8
    assert "Ranked by AbsRel: lower is better." in text


def test_errors_compared_in_words() -> None:
    text = compare(errors(), "at", "kd")
    better = sum(
        int((a.examples < b.examples).sum())
        for a in errors()
        for b in errors()
        if (a.cell.method, b.cell.method) == ("at", "kd") and a.cell.seed == b.cell.seed
    )
    lines = text.splitlines()
    assert lines[1].startswith("  at: 0.1503 ± ")
    assert "69.1 % of the gap recovered" in lines[1]
    assert lines[3].startswith("  Difference of AbsRel (lower is better): -0.0200 ± ")
    assert lines[3].endswith("at won 3, lost 0.")
    assert lines[5].startswith(
        f"  Examples: {better} better by at, {180 - better} by kd; p < 0.001 (sign flips of the mean"
    )
    assert lines[6] == "  at is better than kd."
    assert compare(errors(), "kd", "at").splitlines()[-1] == "  at is better than kd."


def test_records_that_say_nothing_of_examples_are_compared_by_seed() -> None:
    records = [
        make_measured(m, s, v + s, MIOU, info=FEATURES) for m, v in (("at", 60.0), ("sp", 58.0)) for s in range(3)
    ]
    records.append(make_measured("pkt", 0, 59.0, MIOU, [1.0, 2.0], info=FEATURES))
    text = compare(records, "at", "sp")
    assert "Examples: the records say nothing of the same single ones, so no test." in text
    assert "Examples: the records say nothing" in compare(records, "at", "pkt")
    (row,) = [r for r in build_tables([*records, *kd_of(MIOU, 61.0)])[0].rows if r.method == "at"]
    assert row.delta_kd is not None
    assert row.delta_kd.p_examples is None


def kd_of(measure: Measure, value: float) -> list[Record]:
    return [make_measured("kd", seed, value - seed, measure) for seed in range(3)]


def test_the_page_knows_which_way_is_better() -> None:
    tables = build_tables(errors())
    payload = json.loads(re.findall(r'id="payload">(.*?)</script>', page(tables, []), re.DOTALL)[0])
    (table,) = payload["tables"]
    assert (table["measure"], table["unit"], table["higher"], table["accuracy"]) == ("AbsRel", "", False, "0.1234")
    place = payload["rows"]["method"].index("at")
    assert payload["rows"]["reached"][place] == pytest.approx(statistics.fmean(ERRORS["at"]))
    assert payload["shown"]["dkWhy"][place].startswith("better, p < 0.001 after Holm")
    assert payload["shown"]["sure"][place] == "dsdk"
    assert payload["rows"]["gapLow"][place] < payload["rows"]["gap"][place] < payload["rows"]["gapHigh"][place]
    run = payload["rows"]["records"][place][0]
    assert payload["records"]["last"][run] == "0.1502"


# ---- returns of episodes --------------------------------------------------------------------------------------------


def returns() -> list[Record]:
    data = {"n_train": 4000, "n_val": 0, "n_test": 20, "num_classes": 2}
    records = []
    for method, value in (("scratch", 22.0), ("kd", 463.25), ("at", 470.5)):
        info = FEATURES if method == "at" else {"leaf": "controls"} if method == "scratch" else {}
        for seed in range(2):
            scores = np.arange(20) + value + seed - 9.5
            more = {"info": info, "dataset": data, "teacher": {"accuracy": 500.0}}
            records.append(make_measured(method, seed, value + seed, RETURN, scores, **more))
    return records


def test_episodes_are_no_images_and_actions_no_classes() -> None:
    texts = rendered(returns(), ["md", "csv", "tex"])
    text = texts[f"{NAME}.md"]
    assert "4000 training, 0 validation samples and 20 test episodes" in text
    assert "- Teacher: resnet56, 500.00 (sha256" in text
    assert rows(text)["kd"]["return last"].startswith("463.75 ± ")
    assert rows(text)["kd"]["gap recovered %"] == "92.4"  # (463.75 - 22.5) / (500 - 22.5)
    words = text + texts[f"{NAME}.tex"] + shown(build_tables(returns())) + compare(returns(), "at", "kd")
    assert not re.search(r"image|\bimg|class", words.replace("sha256", ""))
    assert "Difference of return (higher is better): +7.25 ± 0.00 (seed 0 +7.25" in compare(returns(), "at", "kd")


def test_episodes_that_are_drawn_from_images_are_told_from_them() -> None:
    data = {"n_train": 650, "n_val": 0, "n_test": 896, "num_classes": 5}
    few = Measure("accuracy", examples="episodes")
    text = shown(build_tables([make_measured("scratch", 0, 60.0, few, [60.0] * 200, dataset=data)]))
    assert "650 training, 0 validation samples and 896 test images, in 200 episodes" in text


# ---- an average over experiences, with further measures -------------------------------------------------------------


def incremental(method: str, values: tuple[float, ...], **info: Any) -> list[Record]:
    return [
        make_measured(
            method,
            seed,
            value,
            AVERAGE,
            info={"leaf": "learning/incremental", "control": None, "cls": f"methods.learning.{method}.M", **info},
            teacher=None,
            cell={"teacher": None, "pair": "resnet20"},
            config={"dataset": {"scenario": {"_target_": "kdbench.data.scenarios.ClassIncremental", "tasks": 5}}},
            metrics={"oracle": None, "others": {"forgetting": 30.0 + seed, "top1": value / 2, "nll": 1.23456}},
        )
        for seed, value in enumerate(values)
    ]


FINETUNE = Known("scratch", "methods.learning.scratch.M", frozenset({"classification", "class-incremental"}))
REPLAY = Known("replay", "methods.learning.replay.M", frozenset({"class-incremental"}))


def sequences() -> list[Record]:
    return [
        *incremental("scratch", (40.1, 40.2, 40.3), control="scratch", leaf="controls"),
        *incremental("replay", (95.1, 95.4, 95.2), control="scratch", leaf="controls"),
        *incremental("icarl", (96.2, 96.6, 96.2)),
    ]


def test_the_control_of_a_table_is_the_one_made_for_its_task() -> None:
    (table,) = build_tables(sequences(), [FINETUNE, REPLAY])
    control = table.control("scratch")
    assert control is not None
    assert control.method == "replay"
    icarl = next(row for row in table.rows if row.method == "icarl")
    assert icarl.delta_scratch is not None
    assert icarl.delta_scratch.mean == pytest.approx(1.1)
    text = rendered(sequences(), ["md"], methods=[FINETUNE, REPLAY])[
        "tables/cifar100_ClassIncremental-resnet20-crd240.md"
    ]
    found = rows(text)
    assert found["replay"]["Δ replay"] == "reference"
    assert found["scratch"]["Δ replay"].startswith("**-55.03 ± ")
    assert "Δ replay is against replay, which" in text
    assert "posed as ClassIncremental (tasks=5)" in text
    (table,) = build_tables(sequences(), [FINETUNE, REPLAY], named=["scratch"])
    assert table.versus["scratch"] == "Δ scratch"


def test_further_measures_stand_behind_the_differences() -> None:
    texts = rendered(sequences(), ["md", "csv"])
    name = "tables/cifar100_ClassIncremental-resnet20-crd240"
    icarl = rows(texts[f"{name}.md"])["icarl"]
    heads = list(icarl)
    assert heads[heads.index("Δ KD") + 1 :][:4] == ["forgetting % ↓", "nll nats ↓", "top-1 %", "gap recovered %"]
    assert heads[:3] == ["Method", "n", "average % last"]
    # 1, 0, -1 about the mean: s = 1, and half the width is 4.3027 / √3
    assert icarl["forgetting % ↓"] == "31.00 ± 2.48"
    assert icarl["nll nats ↓"] == "1.2346 ± 0.0000"
    (row,) = [row for row in csv.DictReader(io.StringIO(texts[f"{name}.csv"])) if row["method"] == "icarl"]
    assert float(row["other_forgetting"]) == 31
    assert float(row["other_forgetting_low"]) == pytest.approx(31 - 4.30265 / math.sqrt(3), abs=1e-4)
    assert float(row["average"]) == pytest.approx((96.2 + 96.6 + 96.2) / 3)


def test_a_row_without_a_further_measure_shows_none() -> None:
    records = [*sequences(), *(r.model_copy() for r in incremental("lwf", (45.0,)))]
    bare = records[-1].model_copy(update={"metrics": records[-1].metrics.model_copy(update={"others": {}})})
    text = rendered([*records[:-1], bare], ["md"])["tables/cifar100_ClassIncremental-resnet20-crd240.md"]
    assert rows(text)["lwf"]["forgetting % ↓"] == "-"


# ---- stores of several measures -------------------------------------------------------------------------------------


def test_measures_are_never_mixed_in_a_table() -> None:
    top1 = [make_record("at", seed, 70.0 + seed, info=FEATURES) for seed in range(2)]
    robust = [make_measured("at", seed, 30.0 + seed, Measure("robust"), info=FEATURES) for seed in range(2)]
    lost = make_measured("sp", 0, 0.0, Measure("robust"), info=FEATURES, status="diverged")
    tables = build_tables([*top1, *robust, lost])
    assert {(table.measure.name, len(table.records)) for table in tables} == {("top1", 2), ("robust", 3)}
    assert len({table.name for table in tables}) == len({table.cohort for table in tables}) == 2
    texts = render([*top1, *robust, lost])
    index = texts["tables/README.md"]
    assert "| Table | Measure | Rows | Teacher | By chapter |" in index
    assert "| robust % |" in index
    assert not [name for name in texts if "across" in name]
    assert "| Table | Rows | Teacher | By chapter |" in render(top1)["tables/README.md"]


def test_names_of_measures_are_inert() -> None:
    evil = Measure("=cmd|' </script>`x", unit="|*")
    texts = rendered([make_measured("kd", seed, 2.0 + seed, evil) for seed in range(2)])
    assert ",'=cmd|' </script>`x," in texts[f"{NAME}.csv"].splitlines()[0]
    assert "\\`x \\|\\*" in texts[f"{NAME}.md"]
    assert texts["leaderboard.html"].count("</script>") == 9


# ---- teachers -------------------------------------------------------------------------------------------------------


def taught(classes: Any, own: Any = None, count: int = 10) -> list[Record]:
    config = {
        "dataset": {"name": "cifar100", "classes": own},
        "teacher": {"name": "resnet56", "dataset": {"name": "cifar100", "classes": classes}},
    }
    records = [make_record("scratch", s, 60.0 + s, info={"leaf": "controls"}, config=config) for s in range(2)]
    records += [make_record("kd", s, 65.0 + s, config=config) for s in range(2)]
    return [r.model_copy(update={"dataset": r.dataset.model_copy(update={"num_classes": count})}) for r in records]


@pytest.mark.parametrize(
    ("classes", "own", "count", "known"),
    [
        ([0, 1, 2, 3, 4], None, 10, 5),
        (5, None, 10, 5),
        ([0, 1, 2], [1, 2, 3], 3, 2),
        (["cat", "dog"], ["dog", "cow"], 2, 1),
        (None, None, 10, None),
        (None, 5, 5, None),
        (10, None, 10, None),
        ([4, 3, 2, 1, 0], 5, 5, None),
        (8, 5, 5, None),
    ],
)
def test_a_gap_needs_a_teacher_of_all_classes(classes: Any, own: Any, count: int, known: int | None) -> None:
    (table,) = build_tables(taught(classes, own, count))
    kd = next(row for row in table.rows if row.method == "kd")
    if known is None:
        assert kd.gap == pytest.approx((65.5 - 60.5) / (72.34 - 60.5))
        return
    assert kd.gap is table.goal is table.weak is None
    assert table.teacher == pytest.approx(72.34)
    why = f"knows {known} of the {count} classes, so no gap is shown"
    assert why in table.header[0]
    assert why in table.trust


def test_a_list_of_recipes_is_told_by_its_length() -> None:
    def pooled(*seeds: int, **more: Any) -> Record:
        recipes = [{"name": "resnet56", "seed": seed} for seed in seeds]
        others = [{"name": "resnet56", "sha256": f"{seed}" * 64, "accuracy": 71.5} for seed in seeds]
        return make_record("avg_kd", 0, 71.0, info=FEATURES, config={"teachers": recipes}, others=others, **more)

    (table,) = build_tables([pooled(1), pooled(1, 2)])
    assert [row.label for row in table.rows] == ["avg_kd (1 teacher)", "avg_kd (2 teachers)"]
    assert (
        "Several teachers: avg_kd had 2, beside the first resnet56 71.50 % (sha256 111111111111); avg_kd had 3, beside "
        "the first resnet56 71.50 % (sha256 111111111111), resnet56 71.50 % (sha256 222222222222)." in table.header
    )
    (table,) = build_tables([pooled(1, 2), pooled(1, 3)])
    labels = [row.label for row in table.rows]
    assert len({*labels}) == 2
    assert all(re.fullmatch(r"avg_kd \(2 teachers, [0-9a-f]{6}\)", label) for label in labels)


def card(name: str, reached: float, measure: Measure = TOP1) -> Card:
    recipe = {
        "name": name,
        "method": {"_target_": "a.B"},
        "dataset": {"name": "set"},
        "protocol": {"name": "lite", "epochs": 1},
        "seed": 0,
    }
    return make_card(recipe, accuracy=reached, measure=measure)


def test_cards_say_what_their_number_is_of() -> None:
    assert b"measure" not in card("one", 90.0).dump()
    assert Card.parse(card("one", 0.1234, ABSREL).dump()).measure == ABSREL
    with pytest.raises(ValidationError, match="101 is no percentage"):
        card("one", 101.0)


def test_teachers_are_listed_by_measure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "300")
    folder = tmp_path / "results" / "teachers"
    folder.mkdir(parents=True)
    (folder / "one.json").write_bytes(card("one", 0.1234, ABSREL).dump())
    assert main(["teacher", "list", "--results", str(tmp_path / "results")]) == 0
    listed = capsys.readouterr().out
    assert "AbsRel ↓" in listed
    assert "0.1234" in listed
    (folder / "two.json").write_bytes(card("two", 91.5).dump())
    assert main(["teacher", "list", "--results", str(tmp_path / "results")]) == 0
    listed = capsys.readouterr().out
    assert "AbsRel 0.1234 ↓" in listed
    assert "top-1 91.50 %" in listed
