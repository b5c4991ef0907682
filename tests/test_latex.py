"""Tables in LaTeX: text that TeX takes, at its natural size, as wide as a column or a page."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from factories import known, make_measured, make_record, rendered
from papers import typeset

from kdbench.errors import UserError
from kdbench.measures import Measure
from kdbench.report import Look, load_records, render
from kdbench.report.latex import Width, escape
from kdbench.report.sheet import COLUMNS
from kdbench.results.record import Record

NAME = "tables/cifar100-resnet56-resnet20-crd240"
RESULTS = Path(__file__).parents[1] / "results"
AT_INFO = {"leaf": "intermediate/features", "control": None, "cls": "methods.intermediate.at.AT"}
AT_INFO |= {"paper": "zagoruyko2016paying"}
ALONE: dict[str, Any] = {"teacher": None, "cell": {"teacher": None, "pair": "resnet20"}, "config": {"pair": None}}


def sample(**config: Any) -> list[Record]:
    """AT gains 0.10, 0.11, 0.12 over KD, by which it can be told from it."""
    scratch = {"leaf": "controls", "cls": "methods.controls.scratch.Scratch", "paper": None}
    kd = {"cls": "methods.logits.kd.KD"}
    same: dict[str, Any] = {"config": config} if config else {}
    alone = {**ALONE, "config": {**ALONE["config"], **config}}
    return [
        *(make_record("scratch", s, top1, info=scratch, **alone) for s, top1 in enumerate((69.0, 69.2, 69.4))),
        *(make_record("kd", s, top1, info=kd, **same) for s, top1 in enumerate((70.0, 70.8, 71.0))),
        *(make_record("at", s, top1, info=AT_INFO, **same) for s, top1 in enumerate((70.10, 70.91, 71.12))),
    ]


NASTY = [
    r"\input{/etc/passwd}", "100% & $x_1^2$ #1 {~}", r"\\[2cm]", "*starred", "[opt]", "a--b---c", "<b>`x`|",
    "naïve Ångström", "中文", "\u202ebell", "Δ ± ½", "\\end{tabular}", "^^M", "averyveryverylongnamethatnothingbreaks",
]  # fmt: skip


def nasty() -> list[Record]:
    info = {**AT_INFO, "cls": "lab.x.X", "paper": "no}such key%", "survey": {"distance": "\\\\ & %"}}
    return [*sample(), *(make_record(name, 0, 70.0, info=info) for name in NASTY)]


def overview(records: list[Record], columns: list[str] | None = None, width: Width = "column") -> str:
    return rendered(records, ["tex"], methods=known(), look=Look(columns, width))[f"{NAME}.tex"]


def caption(text: str) -> str:
    (found,) = re.findall(r"\\caption\{(.*)\}$", text, re.MULTILINE)
    return str(found)


def heads(text: str) -> list[str]:
    """The head of each column, on one line and without markup."""
    head = text.split("\\toprule\n")[1].splitlines()[0]
    cells = re.split(r"(?<!\\) & ", head.removesuffix(r" \\"))
    plain = [re.sub(r"\\multicolumn\{2\}\{c\}|\\shortstack|[{}$]", "", cell) for cell in cells]
    return [cell.replace(" \\\\ ", " ").replace("\\Delta", "Δ").replace("\\%", "%") for cell in plain]


# ---- the text -------------------------------------------------------------------------------------------------------


def check_structure(text: str) -> None:
    """What TeX would complain of: unbalanced environments and braces, rows of the wrong length, raw specials."""
    stack: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{([\w*]+)\}", text):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert not stack
    bare = re.sub(r"\\[\\{}&%$#_]", "", text)
    body = "\n".join(re.sub(r"%.*", "", line) for line in bare.splitlines())
    assert body.count("{") == body.count("}")
    assert body.count("$") % 2 == 0
    assert "#" not in body
    assert all(line.isascii() for line in text.splitlines() if not line.startswith("%"))
    for spec, table in re.findall(r"\\begin\{tabularx?\}([^\n]*)\n(.*?)\\bottomrule", text, re.DOTALL):
        rows = [line for line in table.splitlines() if re.search(r"\\\\( %.*)?$", line) and "itshape" not in line]
        columns = len(re.findall(r"S\[|(?<=,\})l|(?<=@\{\})l|X|p\{\\dimexpr|(?<=\])c|(?<=l)c|(?<=c)c", spec))
        assert rows
        for row in rows:
            doubled = len(re.findall(r"\\multicolumn\{2\}", row))
            assert len(re.findall(r"(?<!\\)&", row)) + doubled == columns - 1, row


@pytest.mark.parametrize("width", ["column", "text"])
@pytest.mark.parametrize("records", [sample(), nasty()], ids=["plain", "nasty"])
def test_it_is_well_formed(records: list[Record], width: Width) -> None:
    for name, text in rendered(records, ["tex"], methods=known(), look=Look(COLUMNS, width)).items():
        if name.endswith(".tex"):
            check_structure(text)
            assert "resizebox" not in text
            assert text.count("\\caption{") == text.count("\\toprule") == text.count("\\label{tab:") > 0
            assert text.count("\n% Trust: ") == 1


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
def test_escapes(text: str, expected: str) -> None:
    assert escape(text) == expected


def test_a_row_has_title_citation_and_numbers_in_columns_of_their_own() -> None:
    text = overview(sample())
    assert (
        r"AT~\cite{zagoruyko2016paying} & 70.71 & $\pm$\,1.34 & \bfseries +0.11 & \bfseries\boldmath $\pm$\,0.02"
        in text
    )
    assert r"Scratch & 69.20 & $\pm$\,0.50 & \bfseries -1.40 & \bfseries\boldmath $\pm$\,0.86 & {--} \\" in text
    assert r"KD~\cite{hinton2015distilling} & 70.60 & $\pm$\,1.31 & \multicolumn{2}{c}{reference} &" in text
    assert "S[table-format=2.2]@{\\,}lS[table-format=+1.2]@{\\,}lS[table-format=2.1]" in text
    assert re.search(r"\\label\{tab:cifar100-resnet56-resnet20-crd240-[0-9a-f]{8}\}", text)


def test_numbers_behind_the_sign_of_spread_are_aligned() -> None:
    wide = [make_record("sp", s, top1, info=AT_INFO) for s, top1 in enumerate((60.0, 70.0, 80.0))]
    text = overview([*sample(), *wide], ["score"])
    assert r"70.00 & $\pm$\,24.84" in text  # 4.3027 x 10 / √3
    assert r"69.20 & $\pm$\,\phantom{0}0.50" in text


def test_one_seed_has_no_spread() -> None:
    text = overview([*sample(), make_record("sp", 0, 70.0, info={**AT_INFO, "cls": "lab.Sp"})])
    assert re.search(r"^sp~\S+ & 70\.00 &  & \+0\.00 &  & ", text, re.MULTILINE)


def test_two_methods_that_people_call_the_same_are_told_apart() -> None:
    info = {**AT_INFO, "cls": "methods.intermediate.fitnet.FitNet", "paper": "romero2014fitnets"}
    text = overview([*sample(), *(make_record(name, 0, 70.0, info=info) for name in ("fitnet", "fitnet_joint"))])
    assert re.search(r"^FitNet~\\cite", text, re.MULTILINE)
    assert re.search(r"^FitNet \(fitnet\\_\\allowbreak\\hspace\{0pt\}joint\)~\\cite", text, re.MULTILINE)


def test_a_work_that_is_not_in_the_bibliography_is_not_cited() -> None:
    mine = make_record("mine", 0, 70.0, info={**AT_INFO, "cls": "lab.mine.Mine", "paper": "me2031mine"})
    text = overview([*sample(), mine])
    (line,) = [line for line in text.splitlines() if line.startswith("mine &")]
    assert line.endswith(r"\\ % me2031mine is not in the bibliography")


def test_the_caption_is_in_words() -> None:
    part = {"dataset": {"name": "cifar100", "classes": 20, "per_class": 200}}
    text = overview(sample(**part))
    assert caption(text) == (
        "CIFAR-100 (100 classes, 200 images each), ResNet-56 to ResNet-20, 240 epochs (protocol crd240). Top-1 in \\% "
        "after the last epoch, mean $\\pm$ 95 \\% t-interval over 3 seeds; bold: p \\textless{} 0.05 (paired t-test, "
        "Holm). $\\Delta$ KD: difference to KD between runs of the same seed; gap: share of the way from scratch to "
        "the teacher's 72.34 \\%."
    )
    assert "$\\Delta$ KD:" not in caption(overview(sample(), ["n", "score"]))


def test_what_made_the_numbers_stands_in_comments() -> None:
    text = overview(sample())
    shown = re.sub(r"^%.*", "", text, flags=re.MULTILINE)
    for fact in ("torch", "sha256", "Best beside the controls: at"):
        assert fact in text
        assert fact not in shown


# ---- columns and width ----------------------------------------------------------------------------------------------


def test_columns_are_chosen_by_name_and_stand_in_that_order() -> None:
    assert heads(overview(sample())) == ["Method", "top-1 (%)", "Δ KD", "gap (%)"]
    text = overview(sample(), ["gap", "method", "n", "delta_scratch"])
    assert heads(text) == ["Method", "gap (%)", "n", "Δ scratch"]
    assert heads(overview(sample(), width="text"))[-2:] == ["teacher fwd/img", "extra params"]


def test_columns_of_markdown_too() -> None:
    text = rendered(sample(), ["md"], look=Look(["score", "gap"]))[f"{NAME}.md"]
    assert "| Method | top-1 last | gap recovered % |" in text


@pytest.mark.parametrize(
    ("columns", "message"),
    [(["accuracy"], "there is no column 'accuracy': use method, n, score"), (["method"], "beside")],
)
def test_columns_that_are_not_there(columns: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Look(columns)


def test_what_is_too_wide_for_a_column_takes_the_page_and_then_another() -> None:
    assert r"\begin{table}" in overview(sample())
    several = overview(sample(), [*COLUMNS])
    assert r"\begin{table*}" in several
    loud = Measure("return", unit="", examples="episodes")
    records = [make_measured("kd", s, 123456.0 + s, loud, [1.0, 2.0]) for s in range(3)]
    records += [
        make_measured("at", s, -123456.0 * s, loud, [1.0, 2.0], info=AT_INFO, metrics={"others": others})
        for s in range(3)
        for others in [{f"measure{number}": 12345.678 * s for number in range(6)}]
    ]
    split = overview(records, [*COLUMNS], "text")
    assert split.count(r"\begin{table*}") == 3
    assert "Part 2 of 3." in split
    labels = re.findall(r"\\label\{(.*)\}", split)
    assert labels[1:] == [f"{labels[0]}-2", f"{labels[0]}-3"]
    assert len(re.findall("^AT~", split, re.MULTILINE)) == 3


def test_the_surveys_columns_are_a_table_of_their_own() -> None:
    text = rendered(sample(), ["tex"], methods=known())[f"{NAME}/04-one-teacher.tex"]
    measured, described = (part for part in text.split(r"\toprule")[-2:])
    assert "S[table-format" in text.split(r"\toprule")[-3] + measured
    assert "\\caption{Knowledge from the intermediate layers: CIFAR-100, ResNet-56 to ResNet-20, 240 epochs" in text
    assert "Distance" in described
    assert "L2 of normalised maps" in described
    assert "70.71" not in described
    assert re.search(r"p\{\\dimexpr 0\.\d+\\linewidth-", text)


# ---- set by TeX -----------------------------------------------------------------------------------------------------


def inputs(texts: dict[str, str]) -> tuple[str, dict[str, str]]:
    """A body that includes every table, and the files."""
    tables = [text for name, text in texts.items() if name.endswith(".tex")]
    files = {f"table{number}.tex": text for number, text in enumerate(tables)}
    return "\n".join(rf"\input{{{name[:-4]}}}\clearpage" for name in files), files


def test_hostile_names_compile_and_fit(tmp_path: Path) -> None:
    body, files = inputs(rendered(nasty(), ["tex"], methods=known()))
    assert typeset(tmp_path, body, files).overfull == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("look", "options"),
    [
        (Look(), "10pt,twocolumn"),
        (Look(), "10pt,a4paper"),
        (Look(), "11pt"),
        (Look(), "11pt,twocolumn"),
        (Look(("score", "delta_scratch", "delta_kd", "gap")), "10pt,twocolumn"),
        (Look(("score", "delta_scratch", "delta_kd", "gap")), "10pt,a4paper"),
        (Look(width="text"), "10pt,twocolumn"),
        (Look(COLUMNS), "10pt,twocolumn"),
    ],
)
def test_the_committed_tables_fit(tmp_path: Path, look: Look, options: str) -> None:
    body, files = inputs(render(load_records(RESULTS), ["tex"], methods=known(), look=look))
    assert typeset(tmp_path, body, files, options).overfull == []


@pytest.mark.slow
def test_a_paper_with_three_tables(tmp_path: Path) -> None:
    texts = render(load_records(RESULTS), ["tex"], methods=known())

    def one(part: str) -> str:
        return next(text for name, text in texts.items() if re.search(part, name))

    files = {
        "main.tex": one(r"/cifar100-resnet20-resnet8-lite-\w+\.tex"),
        "pairs.tex": one(r"across-pairs/cifar100-lite-\w+\.tex"),
        "chapter.tex": one(r"/cifar100-resnet20-resnet8-lite-\w+/04-one-teacher\.tex"),
        "kdbench.bib": texts["tables/kdbench.bib"],
    }
    labels = [re.findall(r"\\label\{(.*)\}", text)[0] for name, text in files.items() if name.endswith(".tex")]
    references = ", ".join(rf"\ref{{{label}}}" for label in labels)
    body = (
        "\\title{Which knowledge?}\\author{A. Student}\\maketitle\n"
        f"\\section{{Results}} See Tables {references}, after \\cite{{hinton2015distilling}}.\n"
        "\\input{main}\n\\input{pairs}\n\\input{chapter}\n"
        "\\bibliographystyle{plain}\\bibliography{kdbench}"
    )
    paper = typeset(tmp_path, body, files)
    assert paper.overfull == []
    assert paper.undefined == []
    assert paper.pages >= 2
