"""What commands print at the width of a terminal, and in a file: whole words, no empty columns, no more than needed."""

from __future__ import annotations

import io
import re

import pytest
from conftest import Kdbench
from rich.console import Console

from kdbench.cli import console
from kdbench.text import broken, print_whole

SENTENCE = (
    "  Examples: 879 right by fitnet alone, 320 by kd alone; p < 0.001 (exact sign flips; McNemar: seed 0 p < 0.001)."
)
PATH = "/a/" + "long-name/" * 12 + "teacher.safetensors"


def printed(width: int, terminal: bool, text: str) -> str:
    screen = Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)
    print_whole(screen, text)
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


@pytest.mark.parametrize("width", [40, 80, 120])
def test_text_is_broken_between_words(width: int) -> None:
    lines = printed(width, True, f"{SENTENCE}\n\n{PATH} is there.").splitlines()
    assert " ".join(" ".join(lines).split()) == " ".join(f"{SENTENCE} {PATH} is there.".split())
    assert PATH in lines  # or in one with what follows: never in two
    assert all(len(line) <= width for line in lines if PATH not in line)
    sentence = lines[: lines.index("")]
    assert all(re.match(r"  \S", line) for line in sentence)  # as far in as it begins
    assert "" in lines


def test_a_file_has_whole_lines() -> None:
    assert printed(40, False, f"{SENTENCE}\n{PATH}") == f"{SENTENCE}\n{PATH}\n"


def test_what_fits_stays() -> None:
    assert broken("a  b - c", 80) == "a  b - c"
    assert broken("", 80) == ""
    assert broken("one two", 4) == "one\ntwo"
    assert broken("mutual-information bound", 12) == "mutual-information\nbound"


def table(monkeypatch: pytest.MonkeyPatch, width: int, terminal: bool) -> str:
    screen = Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)
    monkeypatch.setattr(console, "out", screen)
    rows = [["resnet20", "cifar100", "x" * 30, "y" * 20], ["vgg8", "digits", "-", "-"]]
    console.show_table(["teacher", "data set", "licence", "sha256"], rows, spare=("licence", "sha256"))
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def test_a_narrow_terminal_spares_whole_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = table(monkeypatch, 80, True)
    assert "y" * 20 in wide
    assert "left out" not in wide
    narrow = table(monkeypatch, 60, True)
    assert "x" * 30 in narrow
    assert "y" not in narrow.partition("left out")[0].replace("resnet20", "")
    assert "left out, as the terminal is too narrow: sha256." in narrow
    narrowest = table(monkeypatch, 50, True)
    assert "too narrow: licence, sha256." in " ".join(narrowest.split())
    assert max(map(len, narrowest.splitlines()[:-1])) <= 50


def test_a_file_spares_none(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    table(monkeypatch, 30, False)
    shown = capsys.readouterr().out
    assert "x" * 30 in shown
    assert "y" * 20 in shown


def test_a_table_says_what_is_needed_and_where_the_rest_is(kd: Kdbench) -> None:
    short = kd.run("method=[scratch,kd]")
    below = short.out.partition("Teacher: ")[2].splitlines()
    (file,) = (kd.results / "tables").glob("digits-resnet20*.md")
    assert below[1] == f"Full table: {file.relative_to(kd.root)}"
    assert "Protocol: " not in short.out
    whole = kd.run("method=[scratch,kd]", "verbose=true")
    for fact in ("Teacher: ", "Protocol: lite, epochs=2 (batch_size=64", "Selection: ", "Made on "):
        assert fact in whole.out
    assert "0 trained, 2 already done" in whole.out  # it is no other cell
