"""What is read of the docstrings of methods: the work, the idea, the equations."""

from __future__ import annotations

import pytest

from kdbench.docs import Docs, Work, read_docs, spans
from kdbench.registry import Entry, methods

UNPUBLISHED = {"scratch", "replay", "actor_critic"}
"""Controls of which the file names no single work in its first sentence."""


@pytest.fixture(scope="module")
def entries() -> list[Entry]:
    return methods()


def test_every_method_names_its_work_with_a_link(entries: list[Entry]) -> None:
    works = {entry.name: entry.docs.work for entry in entries}
    assert {name for name, work in works.items() if work is None} == UNPUBLISHED
    for name, work in works.items():
        if work is None:
            continue
        assert work.url, name
        known = ("arxiv.org/abs/", "doi.org/10.", "openreview.net/forum?id=", "proceedings.")
        assert work.url.startswith(tuple(f"https://{place}" for place in known)), name
        assert work.title, name
        assert work.authors, name
        assert 2000 < int(work.year) < 2030, name


def test_every_method_has_an_idea_or_an_equation(entries: list[Entry]) -> None:
    empty = {entry.name for entry in entries if not entry.docs.idea and not entry.docs.equations}
    assert empty == set()
    stuck = {e.name for e in entries for line in e.docs.equations if not line.strip() or line.endswith(".")}
    assert stuck == set()


def test_docstrings_of_two_stages() -> None:
    class FitNet:
        """Two stages: the student learns the hint; then it is distilled.

        Stage ``hint``:     L = `hint_loss`( r(s), t )
        Stage ``distil``:   L = CE(y, s)
                                + λ · KL

        With ``share = 0`` both merge into L = CE(y, s) + β.

        Args:
            hint: L = not an equation of the method.
        """

    assert read_docs("", FitNet.__doc__ or "") == Docs(
        None,
        "Two stages: the student learns the hint; then it is distilled.",
        (
            "Stage ``hint``:     L = `hint_loss`( r(s), t )",
            "Stage ``distil``:   L = CE(y, s)",
            "                        + λ · KL",
        ),
    )


@pytest.mark.parametrize(
    ("text", "idea", "equations"),
    [
        ("L = CE(y, s) + β · Σ_stages `at_loss`.", "", ("L = CE(y, s) + β · Σ_stages `at_loss`",)),
        ("L = CE + α · TCKD; see `dkd_loss`.", "", ("L = CE + α · TCKD",)),
        ("L = `uhc_loss`: one student for all; no labels.", "one student for all; no labels.", ("L = `uhc_loss`",)),
        ("See `loss`; no labels.", "See `loss`; no labels.", ()),
        ("Peers.\n\nL_k = CE(y, z_k), one step. ``mode`` is told.", "Peers.", ("L_k = CE(y, z_k), one step",)),
        ("Steps.\n\n1. Draw.\n2. L = KL( s || t )", "Steps.", ("L = KL( s || t )",)),
        ("", "", ()),
    ],
)
def test_ideas_and_equations(text: str, idea: str, equations: tuple[str, ...]) -> None:
    assert read_docs("", text) == Docs(None, idea, equations)


@pytest.mark.parametrize(
    ("text", "work"),
    [
        (
            "Attention transfer (Zagoruyko & Komodakis, ICLR 2017, arXiv:1612.03928).",
            Work("Attention transfer", "Zagoruyko & Komodakis", "ICLR 2017", "2017", "https://arxiv.org/abs/1612.03928"),
        ),
        (
            "LUCIR: a classifier, learned (Hou et al.,\nCVPR 2019). More.\n\nDOI 10.1109/CVPR.2019.00092.",
            Work("LUCIR: a classifier, learned", "Hou et al.", "CVPR 2019", "2019", "https://doi.org/10.1109/CVPR.2019.00092"),
        ),
        (
            "Printed (A, NeurIPS 2020).\n\nhttps://proceedings.neurips.cc/paper/2020/hash/9-Abstract.html.",
            Work("Printed", "A", "NeurIPS 2020", "2020", "https://proceedings.neurips.cc/paper/2020/hash/9-Abstract.html"),
        ),
        ("A title (A, B, 2016).", Work("A title", "A, B", "2016", "2016", None)),
        ("No work (of anyone).", None),
        ("Nothing in parentheses.", None),
    ],
)  # fmt: skip
def test_works(text: str, work: Work | None) -> None:
    assert read_docs(text, "").work == work


def test_lines_in_pieces() -> None:
    assert spans("L_k = `methods.at.at_loss`(s_{k-1}) in ``weights``.") == [
        ("text", "L"),
        ("sub", "k"),
        ("text", " = "),
        ("code", "at_loss"),
        ("text", "(s"),
        ("sub", "k-1"),
        ("text", ") in "),
        ("code", "weights"),
        ("text", "."),
    ]
    assert spans("") == []
