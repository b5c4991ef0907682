"""Tables by chapter of the survey, and across pairs."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import pytest
from factories import HEADS, known, make_record, rendered

from kdbench.report import build_tables, render, render_terminal
from kdbench.results.record import Record
from kdbench.results.stats import average_ranks, improvement_probability, iqm
from kdbench.taxonomy import load_taxonomy
from methods.intermediate.at import AT
from methods.logits.kd import KD

GROUP = "tables/cifar100-resnet56-resnet20-crd240"
AT_INFO = {"leaf": "intermediate/features", "control": None, "cls": "methods.intermediate.at.AT"}
RKD_INFO = {"leaf": "logits/strictness", "cls": "methods.logits.rkd.RKD"}
ALONE: dict[str, Any] = {"teacher": None, "cell": {"teacher": None, "pair": "resnet20"}, "config": {"pair": None}}


def scratch(seed: int, top1: float) -> Record:
    return make_record(
        "scratch", seed, top1, info={"leaf": "controls", "cls": "methods.controls.scratch.Scratch"}, **ALONE
    )


def controls() -> list[Record]:
    return [
        *(scratch(seed, top1) for seed, top1 in enumerate((69.0, 69.2, 69.4))),
        *(
            make_record("kd", seed, top1, info={"cls": "methods.logits.kd.KD"})
            for seed, top1 in enumerate((70.0, 70.8, 71.0))
        ),
    ]


def sample() -> list[Record]:
    """AT gains 0.10, 0.11, 0.12 over KD; RKD gains and loses."""
    return [
        *controls(),
        *(make_record("at", s, top1, info=AT_INFO) for s, top1 in enumerate((70.10, 70.91, 71.12))),
        *(make_record("rkd", s, top1, info=RKD_INFO) for s, top1 in enumerate((70.5, 70.5, 71.9))),
    ]


def other_pair(method: str, seed: int, top1: float, **overrides: Any) -> Record:
    cell = {"student": "resnet8", "pair": "resnet56-resnet8"}
    return make_record(method, seed, top1, cell=cell, config={"pair": {"student": "resnet8"}}, **overrides)


def chapter(records: list[Record], name: str = "04-one-teacher", suffix: str = "md") -> str:
    return rendered(records, [suffix], methods=known())[f"{GROUP}/{name}.{suffix}"]


def lines_of(text: str, method: str) -> list[list[str]]:
    """The cells of a method's lines, one list for each table of the file."""
    return [line[2:-2].split(" | ") for line in text.splitlines() if line.startswith(f"| {method} |")]


# ---- chapters -------------------------------------------------------------------------------------------------------


def test_a_chapter_shows_what_methods_declare_beside_what_is_measured() -> None:
    text = chapter(sample())
    table = load_taxonomy().table_of("intermediate/features")
    assert table is not None
    assert f"| Method | {' | '.join(table.columns.values())} |" in text
    assert f"| Method | {' | '.join(HEADS)} |" in text
    measured, described = lines_of(text, "at")
    assert described[1:] == list(AT.survey.values())
    assert measured[1:3] == ["3", "70.71 ± 1.34"]


def test_controls_stand_in_every_table_and_are_described_in_their_own() -> None:
    logits, described, features = lines_of(chapter(sample()), "kd")
    assert described[1:] == list(KD.survey.values())
    assert logits == features
    assert len(lines_of(chapter(sample()), "scratch")) == 2


def test_rows_are_grouped_by_leaf_and_extensions_come_last() -> None:
    dkd = make_record("dkd", 0, 71.0, info={"extension": True, "cls": "methods.logits.dkd.DKD"})
    blocks = re.findall(r"^\| \*\*(.+?)\*\* \|", chapter([*sample(), dkd]), re.MULTILINE)
    assert blocks == [
        *("Controls", "4.1.3 Imposing strictness in distillation", "Extensions") * 2,
        "Controls",
        *["4.2 Knowledge from the intermediate layers"] * 2,
    ]


def test_leaves_without_rows_say_why() -> None:
    text = chapter(sample())
    assert "- 4.1.2 Learning from noisy labels: no records here." in text
    assert "- 4.1.1 Softened labels and regularization: among the controls alone." in text
    assert "- 4.2 Knowledge from the intermediate layers: no records here." in chapter(controls())


def test_only_chapters_with_methods_have_files() -> None:
    assert {Path(name).name for name in rendered(sample()) if name.startswith(f"{GROUP}/")} == {
        "04-one-teacher.md",
        "04-one-teacher.csv",
        "04-one-teacher.tex",
    }
    assert not any(name.startswith(f"{GROUP}/") for name in rendered([scratch(0, 69.0)]))
    dml = make_record("dml", 0, info={"leaf": "online/individual-students", "cls": "methods.online.dml.DML"}, **ALONE)
    assert f"{GROUP}/07-online-teacher-free.md" in rendered([*sample(), dml])


def test_third_parties_are_shown_as_such() -> None:
    mine = make_record("mine", 0, info={"leaf": "lab/mine", "cls": "lab.mine.Mine", "control": None})
    also = make_record("also", 0, info={**AT_INFO, "cls": "lab.also.Also"})
    text = chapter([*sample(), mine, also], "third-party")
    assert "| **Third-party: lab/mine** |" in text
    text = chapter([*sample(), mine, also])
    assert "| **Third-party: 4.2 Knowledge from the intermediate layers** |" in text
    assert lines_of(text, "also")[1][1:] == ["-"] * 6
    assert "- Without entries for the survey's columns: also (lab.also.Also)." in text


def test_a_third_partys_record_fills_its_columns() -> None:
    said = {**AT_INFO, "cls": "outsider.Mine", "survey": {"distance": "cosine", "unheard": "of"}}
    text = chapter([*controls(), make_record("mine", 0, info=said)])
    _, line = lines_of(text, "mine")
    assert line[1:] == ["-", "-", "-", "-", "cosine", "-"]
    assert "Without entries" not in text


def test_every_table_ends_with_its_trust_line() -> None:
    records = sample()
    for name, text in rendered(records, ["md"]).items():
        tables = len(re.findall(r"^\|.*-:\|", text, re.MULTILINE))  # with numbers
        if "README" not in name:
            trust = [line for line in text.splitlines() if line.startswith("- Trust: ")]
            assert len(trust) == tables > 0
    for fact in (
        "protocol crd240 (",
        "selection: last epoch",
        "seeds 0, 1, 2",
        "95 % t-interval",
        "after Holm (3 + 3 tests)",
        "teacher resnet56, 72.34 % (sha256 aaaaaaaaaaaa)",
        "; cpu; ",
        "kdbench 0.1.0, torch 2.6.0, lightning 2.5.0",
        "12 records, 0 diverged",
    ):
        assert fact in trust[0]


def test_the_csv_of_a_chapter_holds_both_of_its_tables() -> None:
    rows = list(csv.DictReader(io.StringIO(chapter(sample(), suffix="csv"))))
    assert [(row["table"], row["method"]) for row in rows] == [
        *(("logits", method) for method in ("scratch", "kd", "rkd")),
        *(("intermediate", method) for method in ("scratch", "kd", "at")),
    ]
    assert rows[-1]["survey_distance"] == AT.survey["distance"]
    assert rows[-1]["survey_description"] == ""
    assert all("12 records" in row["trust"] for row in rows)
    assert len({len(row) for row in rows}) == 1


# ---- significance ---------------------------------------------------------------------------------------------------


def test_bold_is_significant_after_holm() -> None:
    """AT - KD = 0.10, 0.11, 0.12: mean 0.11, t = 0.11 / (0.01 / sqrt 3) = 19.05, so p = 0.00274 with 2 degrees."""
    text = chapter(sample())
    at, rkd = lines_of(text, "at")[0], lines_of(text, "rkd")[0]
    assert at[4] == "**+0.11 ± 0.02**"
    assert rkd[4].startswith("+0.37 ± ")
    row = next(r for r in csv.DictReader(io.StringIO(chapter(sample(), suffix="csv"))) if r["method"] == "at")
    assert float(row["delta_kd_p"]) == pytest.approx(0.00274, abs=1e-5)
    assert float(row["delta_kd_p_holm"]) == pytest.approx(3 * 0.00274, abs=3e-5)  # of scratch, at and rkd


def test_what_cannot_be_told_apart_is_said() -> None:
    logits, features = chapter(sample()).split("## Knowledge from the intermediate layers\n")
    features = features.split("\n## ")[0]
    # RKD - KD = 0.5, -0.3, 0.9: s = 0.611, t = 1.04
    assert (
        "Best beside the controls: rkd, 70.97 %; not distinguishable from KD (Δ +0.37 ± 1.52, p = 0.408 after Holm, "
        "n = 3)." in logits
    )
    (answer,) = [line for line in features.splitlines() if line.startswith("- 4.2 Knowledge")]
    assert answer.endswith(
        "at what distance? Best beside the controls: at, 70.71 %; better than KD (Δ +0.11 ± 0.02, p = 0.008 after "
        "Holm, n = 3)."
    )
    worse = [make_record("at", s, top1, info=AT_INFO) for s, top1 in enumerate((69.0, 69.79, 70.01))]
    assert "Best beside the controls: at, 69.60 %; worse than KD (Δ -1.00 ± 0.02" in chapter([*controls(), *worse])


def test_the_answer_counts_who_is_better_and_worse() -> None:
    """Of AT +0.11 ± 0.02 and RKD +0.37 ± 1.52 beside KD, whose gain over scratch is about 1."""
    markdown = rendered(sample(), ["md"])[f"{GROUP}.md"]
    assert (
        "- Of 2 methods that are no controls: beside KD 1 better (at), 0 worse, 1 not distinguishable; beside scratch "
    ) in markdown
    alone = [record for record in sample() if record.cell.method != "rkd"]
    assert not any("that are no controls" in file for file in rendered(alone, ["md"]).values())


def test_one_seed_is_no_evidence() -> None:
    records = [scratch(0, 69.0), make_record("kd", 0, 70.0), make_record("at", 0, 75.0, info=AT_INFO)]
    text = chapter(records)
    assert (
        "Best beside the controls: at, 75.00 %; on one seed not distinguishable from KD "
        "(Δ +5.00, no interval and no test)."
    ) in text
    assert "one seed: no interval and no test" in text
    assert "**+" not in text
    elsewhere = [make_record("kd", 1, 70.0), make_record("at", 0, 75.0, info=AT_INFO)]
    assert "shares no seed with kd" in chapter(elsewhere)
    assert "no run of a control to compare it with" in chapter([make_record("at", 0, 75.0, info=AT_INFO)])


def test_without_kd_the_best_is_compared_with_the_reference_that_there_is() -> None:
    """AT - scratch = 1.10, 1.11, 1.12: t = 1.11 / (0.01 / sqrt 3) = 192.3, p = 1 / 192.3² with 2 degrees."""
    records = [scratch(seed, 69.0 + seed) for seed in range(3)]
    records += [make_record("at", s, top1, info=AT_INFO) for s, top1 in enumerate((70.10, 71.11, 72.12))]
    assert "; better than scratch (Δ +1.11 ± 0.02, p < 0.001 after Holm, n = 3)." in chapter(records)


def test_the_terminal_says_it_too() -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=200)
    console.print(render_terminal(build_tables(sample())))
    assert "not distinguishable from KD" in console.file.getvalue()  # type: ignore[attr-defined]


# ---- across pairs ---------------------------------------------------------------------------------------------------


def test_across_pairs() -> None:
    records = sample()
    for seed in range(3):
        records += [
            other_pair("scratch", seed, 60.0, info={"leaf": "controls"}),
            other_pair("kd", seed, 61.0 + seed / 10),
            other_pair("rkd", seed, 60.5 + seed, info=RKD_INFO),
        ]
    texts = rendered(records)
    rows = {r["method"]: r for r in csv.DictReader(io.StringIO(texts["tables/across-pairs/cifar100-crd240.csv"]))}
    gaps = [[(x - 69.2) / (72.34 - 69.2) for x in (70.5, 70.5, 71.9)], [(x - 60) / 12.34 for x in (60.5, 61.5, 62.5)]]
    expected = iqm(gaps)
    assert float(rows["rkd"]["gap_iqm"]) == pytest.approx(expected.value)
    assert float(rows["rkd"]["gap_iqm_low"]) == pytest.approx(expected.low)
    pairs = [([70.5, 70.5, 71.9], [70.0, 70.8, 71.0]), ([60.5, 61.5, 62.5], [61.0, 61.1, 61.2])]
    assert float(rows["rkd"]["p_better_than_kd"]) == pytest.approx(improvement_probability(pairs).value)
    ranks = average_ranks({"kd": [70.6, 61.1], "rkd": [70.97, 61.5], "scratch": [69.2, 60.0]})
    assert {name: float(row["average_rank"]) for name, row in rows.items() if name != "at"} == ranks
    assert rows["at"]["average_rank"] == ""  # it ran on one pair alone
    text = texts["tables/across-pairs/cifar100-crd240.md"]
    assert "- Without a finished run on some pair, and so not compared here: at." in text
    assert f"- Trust: 2 pairs: {', '.join(table.name for table in build_tables(records))};" in text


def two_pairs() -> list[Record]:
    """AT is better than KD on the first pair, and did not run on the second, where RKD is worse."""
    small = [other_pair("kd", seed, top1) for seed, top1 in enumerate((61.0, 61.1, 61.2))]
    small += [other_pair("rkd", seed, top1, info=RKD_INFO) for seed, top1 in enumerate((60.0, 60.11, 60.22))]
    return [*sample(), *small]


def test_methods_by_pairs() -> None:
    text = rendered(two_pairs(), methods=known())["tables/across-pairs/cifar100-crd240.md"].split("## ")[0]
    assert "| Method | resnet56 → resnet20 | resnet56 → resnet8 |" in text
    found = {
        line[0]: line[1:] for line in (row[2:-2].split(" | ") for row in text.splitlines() if row.startswith("| "))
    }
    assert found["Teacher"] == ["72.34", "72.34"]
    assert found["kd"] == ["70.60 ± 0.53", "61.10 ± 0.10"]  # standard deviations: √.28 and .1
    assert found["scratch"] == ["69.20 ± 0.20", "-"]
    assert found["at"] == ["**70.71 ± 0.54**", "-"]
    assert found["rkd"] == ["70.97 ± 0.81", "60.11 ± 0.11"]  # significantly worse is not bold
    assert "Bold: better than KD on that pair, p < 0.05" in text
    assert "mean ± standard deviation over seeds" in text


def test_methods_by_pairs_in_csv_and_latex() -> None:
    texts = rendered(two_pairs(), methods=known())
    rows = {r["method"]: r for r in csv.DictReader(io.StringIO(texts["tables/across-pairs/cifar100-crd240.csv"]))}
    first, second = (table.name for table in build_tables(two_pairs()))
    assert float(rows["rkd"][first]) == pytest.approx(70.0 + 2.9 / 3)
    assert float(rows["rkd"][f"{second}_std"]) == pytest.approx(0.11)
    assert (rows["at"][second], rows["at"][f"{second}_std"], rows["at"][f"{second}_n"]) == ("", "", "0")
    text = texts["tables/across-pairs/cifar100-crd240.tex"]
    assert r"\multicolumn{2}{c}{\shortstack{ResNet-56 \\ ResNet-20}}" in text
    assert r"Teacher & 72.34 &  & 72.34 &  \\" in text
    assert r" & \bfseries 70.71 & \bfseries\boldmath $\pm$\,0.54 & \multicolumn{2}{c}{--} \\" in text


def test_teachers_of_one_architecture_are_columns_of_their_own() -> None:
    again = [make_record("kd", seed, 72.0, teacher={"sha256": "b" * 64, "accuracy": 74.0}) for seed in (3, 4)]
    text = render([*sample(), *again], ["md"])
    (name,) = [name for name in text if "across" in name]
    assert "| Method | resnet56 aaaaaa → resnet20 | resnet56 bbbbbb → resnet20 |" in text[name]
    assert "| Teacher | 72.34 | 74.00 |" in text[name]


def test_one_pair_alone_has_no_table_across() -> None:
    assert not any("across" in name for name in rendered(sample()))
    other = [other_pair("kd", 0, 61.0, dataset={"sha256": "e" * 64})]
    assert not any("across" in name for name in rendered([*sample(), *other]))
