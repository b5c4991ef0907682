"""Tables by chapter of the survey, across pairs, and in LaTeX."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from factories import HEADS, make_record

from kdbench.registry import methods
from kdbench.report import build_tables, render, render_terminal
from kdbench.report.latex import escape
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
    return render(records, [suffix], methods=methods())[f"{GROUP}/{name}.{suffix}"]


def lines_of(text: str, method: str) -> list[list[str]]:
    """The cells of a method's lines, one list for each table of the file."""
    return [line[2:-2].split(" | ") for line in text.splitlines() if line.startswith(f"| {method} |")]


# ---- chapters -------------------------------------------------------------------------------------------------------


def test_a_chapter_shows_what_methods_declare_beside_what_is_measured() -> None:
    text = chapter(sample())
    table = load_taxonomy().table_of("intermediate/features")
    assert table is not None
    assert f"| Method | {' | '.join((*table.columns.values(), *HEADS))} |" in text
    (line,) = lines_of(text, "at")
    assert line[1:7] == list(AT.survey.values())
    assert line[7:9] == ["3", "70.71 ± 1.34"]


def test_controls_stand_in_every_table_and_are_described_in_their_own() -> None:
    logits, features = lines_of(chapter(sample()), "kd")
    assert logits[1:3] == list(KD.survey.values())
    assert features[1:7] == ["-"] * 6
    assert len(lines_of(chapter(sample()), "scratch")) == 2


def test_rows_are_grouped_by_leaf_and_extensions_come_last() -> None:
    dkd = make_record("dkd", 0, 71.0, info={"extension": True, "cls": "methods.logits.dkd.DKD"})
    blocks = re.findall(r"^\| \*\*(.+?)\*\* \|", chapter([*sample(), dkd]), re.MULTILINE)
    assert blocks == [
        "Controls",
        "4.1.3 Imposing strictness in distillation",
        "Extensions",
        "Controls",
        "4.2 Knowledge from the intermediate layers",
    ]


def test_leaves_without_rows_say_why() -> None:
    text = chapter(sample())
    assert "- 4.1.2 Learning from noisy labels: no records here." in text
    assert "- 4.1.1 Softened labels and regularization: among the controls alone." in text
    assert "- 4.2 Knowledge from the intermediate layers: no records here." in chapter(controls())


def test_only_chapters_with_methods_have_files() -> None:
    assert {Path(name).name for name in render(sample()) if name.startswith(f"{GROUP}/")} == {
        "04-one-teacher.md",
        "04-one-teacher.csv",
        "04-one-teacher.tex",
    }
    assert not any(name.startswith(f"{GROUP}/") for name in render([scratch(0, 69.0)]))
    dml = make_record("dml", 0, info={"leaf": "online/individual-students", "cls": "methods.online.dml.DML"}, **ALONE)
    assert f"{GROUP}/07-online-teacher-free.md" in render([*sample(), dml])


def test_third_parties_are_shown_as_such() -> None:
    mine = make_record("mine", 0, info={"leaf": "lab/mine", "cls": "lab.mine.Mine", "control": None})
    also = make_record("also", 0, info={**AT_INFO, "cls": "lab.also.Also"})
    text = chapter([*sample(), mine, also], "third-party")
    assert "| **Third-party: lab/mine** |" in text
    assert "- Without entries for the survey's columns: mine (lab.mine.Mine)." in text
    text = chapter([*sample(), mine, also])
    assert "| **Third-party: 4.2 Knowledge from the intermediate layers** |" in text
    assert lines_of(text, "also")[0][1:7] == ["-"] * 6
    assert "- Without entries for the survey's columns: also (lab.also.Also)." in text


def test_a_third_partys_record_fills_its_columns() -> None:
    said = {**AT_INFO, "cls": "outsider.Mine", "survey": {"distance": "cosine", "unheard": "of"}}
    text = chapter([*controls(), make_record("mine", 0, info=said)])
    (line,) = lines_of(text, "mine")
    assert line[1:7] == ["-", "-", "-", "-", "cosine", "-"]
    assert "Without entries" not in text


def test_every_table_ends_with_its_trust_line() -> None:
    records = sample()
    for name, text in render(records, ["md"]).items():
        tables = len(re.findall(r"^\|-", text, re.MULTILINE))
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
    assert text.splitlines()[-1] == trust[-1]


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
    (at,), (rkd,) = lines_of(text, "at"), lines_of(text, "rkd")
    assert at[-7] == "**+0.11 ± 0.02**"
    assert rkd[-7].startswith("+0.37 ± ")
    row = next(r for r in csv.DictReader(io.StringIO(chapter(sample(), suffix="csv"))) if r["method"] == "at")
    assert float(row["delta_kd_p"]) == pytest.approx(0.00274, abs=1e-5)
    assert float(row["delta_kd_p_holm"]) == pytest.approx(3 * 0.00274, abs=3e-5)  # of scratch, at and rkd


def test_what_cannot_be_told_apart_is_said() -> None:
    logits, features = chapter(sample()).split("## Knowledge from the intermediate layers")
    # RKD - KD = 0.5, -0.3, 0.9: s = 0.611, t = 1.04
    assert (
        "Best beside the controls: rkd, 70.97 %; not distinguishable from KD (Δ +0.37 ± 1.52, p = 0.408 after Holm, "
        "n = 3)." in logits
    )
    assert (
        "- Best beside the controls: at, 70.71 %; better than KD (Δ +0.11 ± 0.02, p = 0.008 after Holm, n = 3)."
        in features
    )
    worse = [make_record("at", s, top1, info=AT_INFO) for s, top1 in enumerate((69.0, 69.79, 70.01))]
    assert "Best beside the controls: at, 69.60 %; worse than KD (Δ -1.00 ± 0.02" in chapter([*controls(), *worse])


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
    assert "there is no KD run" in chapter([make_record("at", 0, 75.0, info=AT_INFO)])


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
    texts = render(records)
    rows = {r["method"]: r for r in csv.DictReader(io.StringIO(texts["tables/across-pairs/cifar100-crd240.csv"]))}
    gaps = [[(x - 69.2) / (72.34 - 69.2) for x in (70.5, 70.5, 71.9)], [(x - 60) / 12.34 for x in (60.5, 61.5, 62.5)]]
    expected = iqm(gaps)
    assert float(rows["rkd"]["gap_iqm"]) == pytest.approx(expected.value)
    assert float(rows["rkd"]["gap_iqm_low"]) == pytest.approx(expected.low)
    pairs = [([70.5, 70.5, 71.9], [70.0, 70.8, 71.0]), ([60.5, 61.5, 62.5], [61.0, 61.1, 61.2])]
    assert float(rows["rkd"]["p_better_than_kd"]) == pytest.approx(improvement_probability(pairs).value)
    ranks = average_ranks({"kd": [70.6, 61.1], "rkd": [70.97, 61.5], "scratch": [69.2, 60.0]})
    assert {name: float(row["average_rank"]) for name, row in rows.items()} == ranks
    text = texts["tables/across-pairs/cifar100-crd240.md"]
    assert "- Without a finished run on some pair, and so not compared here: at." in text
    assert "- Trust: 2 pairs: cifar100-resnet56-resnet20-crd240, cifar100-resnet56-resnet8-crd240;" in text


def test_one_pair_alone_has_no_table_across() -> None:
    assert not any("across" in name for name in render(sample()))
    other = [other_pair("kd", 0, 61.0, dataset={"sha256": "e" * 64})]
    assert not any("across" in name for name in render([*sample(), *other]))


# ---- LaTeX ----------------------------------------------------------------------------------------------------------

NASTY = [
    r"\input{/etc/passwd}", "100% & $x_1^2$ #1 {~}", r"\\[2cm]", "*starred", "[opt]", "a--b---c", "<b>`x`|",
    "naïve Ångström", "中文", "\u202ebell", "Δ ± ½", "\\end{tabular}", "^^M",
]  # fmt: skip


def nasty() -> list[Record]:
    info = {**AT_INFO, "cls": "lab.x.X"}
    return [*sample(), *(make_record(name, 0, 70.0, info=info) for name in NASTY)]


def check_structure(text: str) -> None:
    """What TeX would complain of: unbalanced environments and braces, rows of the wrong length, raw specials."""
    stack: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    bare = re.sub(r"\\[\\{}&%$#_]", "", text)
    body = "\n".join(re.sub(r"%.*", "", line) for line in bare.splitlines())
    assert body.count("{") == body.count("}")
    assert body.count("$") % 2 == 0
    assert not re.search(r"[#~]", body)
    assert text.isascii() or all(line.isascii() for line in text.splitlines() if not line.startswith("%"))
    for table in re.findall(r"\\begin\{tabular\}\{(\w+)\}\n(.*?)\\bottomrule", text, re.DOTALL):
        rows = [line for line in table[1].splitlines() if line.endswith(r"\\") and not line.startswith(r"\multicolumn")]
        assert rows
        for row in rows:
            assert len(re.findall(r"(?<!\\)&", row)) == len(table[0]) - 1


@pytest.mark.parametrize("records", [sample(), nasty()], ids=["plain", "nasty"])
def test_latex_is_well_formed(records: list[Record]) -> None:
    for text in render(records, ["tex"]).values():
        check_structure(text)
        assert text.count(r"\begin{table}") == text.count(r"\toprule") == text.count("Trust: ") > 0
    text = chapter(records, suffix="tex")
    assert r"\textbf{+0.11 $\pm$ 0.02}" in text
    assert r"\multicolumn{17}{l}{\textbf{4.2 Knowledge from the intermediate layers}} \\" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50% & $5_a", r"50\% \& \$5\_a"),
        (r"\a{b}^~", r"\textbackslash{}a\{b\}\textasciicircum{}\textasciitilde{}"),
        ("é ç", r"\'{e} \c{c}"),
        ("a--b", "a-{}-b"),
        ("λ ± 中", r"$\lambda$ $\pm$ {[}U+4E2D{]}"),
        ("x\ny", "x y"),
    ],
)
def test_latex_escapes(text: str, expected: str) -> None:
    assert escape(text) == expected


def test_latex_compiles(tmp_path: Path) -> None:
    tectonic, pdflatex = shutil.which("tectonic"), shutil.which("pdflatex")
    if not (tectonic or pdflatex):
        pytest.skip("neither tectonic nor pdflatex is installed; test_latex_is_well_formed checks the structure")
    texts = render(nasty(), ["tex"])
    for number, text in enumerate(texts.values()):
        (tmp_path / f"table{number}.tex").write_text(text, encoding="utf-8")
    inputs = "\n".join(rf"\input{{table{number}}}" for number in range(len(texts)))
    preamble = "\\documentclass{article}\n\\usepackage{booktabs,graphicx}\n\\begin{document}\n"
    (tmp_path / "paper.tex").write_text(f"{preamble}{inputs}\n\\end{{document}}\n", encoding="utf-8")
    command = [tectonic, "-C"] if tectonic else [str(pdflatex), "-halt-on-error", "-interaction=nonstopmode"]
    done = subprocess.run([*command, "paper.tex"], cwd=tmp_path, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert (tmp_path / "paper.pdf").stat().st_size > 0
