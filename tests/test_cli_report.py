"""``kdbench report`` and ``kdbench compare`` from the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from factories import make_record

from kdbench.cli import main
from kdbench.results.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for seed in range(3):
        scratch = make_record("scratch", seed, 69.0 + seed / 5, info={"control": "scratch"}, teacher=None)
        Store(tmp_path).write(scratch)
        Store(tmp_path).write(make_record("kd", seed, 71.0 + seed / 4, info={"control": "kd"}))
    return tmp_path


def kdbench(*args: object) -> int:
    return main([str(arg) for arg in args])


def test_report_then_check(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kdbench("report", "--results", store) == 0
    written = [Path(line) for line in capsys.readouterr().out.split()]
    assert store / "tables" / "README.md" in written
    assert {path.suffix for path in written} == {".md", ".csv", ".tex", ".bib", ".html"}
    before = {path: path.read_bytes() for path in written}
    assert kdbench("report", "--results", store, "--check") == 0
    assert kdbench("report", "--results", store) == 0
    assert before == {path: path.read_bytes() for path in written}


def test_check_names_what_is_stale_missing_and_extra(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kdbench("report", "--results", store) == 0
    index, *others = sorted((store / "tables").rglob("*.md"))
    text = index.read_text()
    index.write_text(text + "\nedited by hand\n")
    others[0].unlink()
    extra = store / "tables" / "old.md"
    extra.write_text(text)
    capsys.readouterr()
    assert kdbench("report", "--results", store, "--check") == 1
    shown = capsys.readouterr()
    assert {f"stale: {index}", f"missing: {others[0]}", f"extra: {extra}"} <= set(shown.out.splitlines())
    assert shown.err == "kdbench: 3 file(s) do not follow from the store: run kdbench report.\n"


def test_new_record_makes_the_report_stale(store: Path) -> None:
    assert kdbench("report", "--results", store) == 0
    Store(store).write(make_record("kd", 3, 70.0, info={"control": "kd"}))
    assert kdbench("report", "--results", store, "--check") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--out", "part", "--filter", "dataset=imagenet"], "No record has dataset 'imagenet'"),
        (["--out", "part", "--filter", "colour=red"], "There is no filter 'colour'"),
        (["--format", "docx"], "There is no format 'docx'"),
        (["--filter", "protocol=crd240"], "another folder (--out)"),
        (["--columns", "n,score"], "another folder (--out)"),
        (["--width", "text"], "another folder (--out)"),
        (["--out", "part", "--columns", "n,accuracy"], "there is no column 'accuracy': use method, n, score"),
        (["--out", "part", "--columns", ""], "there is no column ''"),
    ],
)
def test_one_sentence_for_what_cannot_be_reported(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, args: list[str], message: str
) -> None:
    monkeypatch.chdir(store)
    assert kdbench("report", "--results", store, *args) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not list(store.rglob("*.md"))


def test_part_of_a_store_elsewhere_in_one_format(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "part"
    assert kdbench("report", "--results", store, "--filter", "dataset=cifar100", "--format", "csv", "--out", out) == 0
    assert {path.suffix for path in out.rglob("*") if path.is_file()} == {".csv"}


def test_tables_for_a_paper(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "paper"
    args = ("--format", "tex", "--columns", "method,score,delta_kd", "--width", "text", "--out", out)
    assert kdbench("report", "--results", store, *args) == 0
    (table,) = (out / "tables").glob("*.tex")
    text = table.read_text(encoding="utf-8")
    assert r"\begin{table*}" in text
    assert text.count(r"\multicolumn{2}{c}{") == 3  # two heads, and the reference
    assert "{hinton2015distilling,\n" in (out / "tables" / "kdbench.bib").read_text(encoding="utf-8")
    assert kdbench("report", "--results", store, *args, "--check") == 0


def test_compare_in_words_and_numbers(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kdbench("compare", "kd", "scratch", "--results", store) == 0
    text = capsys.readouterr().out
    assert "kd is better than scratch" in text
    assert "+2.05" in text  # the mean of 2, 2.05 and 2.1
    assert kdbench("compare", "kd", "dkd", "--results", store) == 1
    assert "No record is of a method 'dkd'" in capsys.readouterr().err


def test_empty_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kdbench("report", "--results", tmp_path) == 1
    assert "has no records" in capsys.readouterr().err
