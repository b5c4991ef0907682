"""The bibliography that ships: every work that methods and the survey's tree name, once, and whole."""

from __future__ import annotations

import re
from pathlib import Path

import bibtexparser
import pytest

from kdbench.docs import Work
from kdbench.registry import methods
from kdbench.report.bibliography import FILE, cited, entries, work
from kdbench.taxonomy import load_taxonomy

SOURCE = Path(__file__).parents[1] / "kdbench" / "report" / FILE
WHERE = {"article": "journal", "inproceedings": "booktitle", "mastersthesis": "school", "misc": "howpublished"}


@pytest.fixture(scope="module")
def library() -> bibtexparser.Library:
    return bibtexparser.parse_file(str(SOURCE))


def test_every_work_that_is_named_is_in_it() -> None:
    named = {entry.paper for entry in methods() if entry.paper} | load_taxonomy().cited
    assert sorted(named - entries().keys()) == []


def test_a_parser_finds_what_we_find_and_nothing_twice(library: bibtexparser.Library) -> None:
    assert library.failed_blocks == []  # of duplicate keys, too
    assert [entry.key for entry in library.entries] == list(entries())
    titles = [re.sub(r"\W", "", entry["title"]).lower() for entry in library.entries]
    assert len(titles) == len(set(titles))


def test_every_entry_says_who_what_where_and_when(library: bibtexparser.Library) -> None:
    for entry in library.entries:
        assert entry["author"], entry.key
        assert entry["title"], entry.key
        assert entry[WHERE[entry.entry_type]], entry.key
        assert re.fullmatch(r"(19|20)\d\d", entry["year"]), entry.key
        assert all(field.value.isascii() for field in entry.fields), entry.key


def test_numbers_of_preprints_and_dois_have_their_form(library: bibtexparser.Library) -> None:
    seen: dict[str, str] = {}
    for entry in library.entries:
        fields = entry.fields_dict
        if "eprint" in fields:
            number = str(entry["eprint"])
            assert re.fullmatch(r"\d{4}\.\d{4,5}", number), entry.key
            assert entry["archiveprefix"] == "arXiv"
            assert 2000 + int(number[:2]) <= int(entry["year"]) + 1, entry.key
            assert seen.setdefault(number, entry.key) == entry.key
        if "journal" in fields and "arXiv" in entry["journal"]:
            assert entry["journal"] == f"arXiv preprint arXiv:{entry['eprint']}"
        if "doi" in fields:
            assert re.fullmatch(r"10\.\d{4,}/\S+", entry["doi"]), entry.key


def test_preprints_that_methods_name_are_those_of_their_entries(library: bibtexparser.Library) -> None:
    """The first number in a method's own file is that of its paper."""
    known = {entry.key: entry.fields_dict for entry in library.entries}
    compared = 0
    for method in methods():
        module = Path(__file__).parents[1].joinpath(*method.path.split(".")[:-1]).with_suffix(".py")
        first = module.read_text(encoding="utf-8").split('"""')[1]
        number = re.search(r"arXiv:(\d{4}\.\d{4,5})", first)
        if number and method.paper and "eprint" in known[method.paper]:
            assert known[method.paper]["eprint"].value == number[1], method.name
            compared += 1
    assert compared > 30


def test_works_are_named_in_a_line() -> None:
    assert work("romero2014fitnets") == Work(
        "FitNets: Hints for Thin Deep Nets", "Romero et al.", "ICLR 2015", "2015", "https://arxiv.org/abs/1412.6550"
    )
    assert (found := work("ruiz2020distilled"))
    assert found.authors == "Ruiz & Verbeek"
    assert work("no2030where") is work(None) is None
    names = {key: work(key) for key in entries()}
    assert not [key for key, each in names.items() if each and re.search(r"[{}\\]", each.authors + each.title)]


def test_what_tables_cite_is_written_beside_them() -> None:
    text = cited(["hinton2015distilling", None, "park2019relational", "hinton2015distilling", "no2030where"])
    assert [entry.key for entry in bibtexparser.parse_string(text).entries] == [
        "hinton2015distilling",
        "park2019relational",
    ]
