"""The survey's tree as data."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

import pytest
from conftest import Kdbench
from pydantic import ValidationError

from kdbench.registry import Entry, methods
from kdbench.taxonomy import Taxonomy, load_taxonomy, tree


@dataclass
class Idea:
    name: str
    leaf: str
    title: str = "An idea"
    paper: str | None = "someone2020idea"
    extension: bool = False


def test_the_tree_has_the_surveys_chapters_and_leaves() -> None:
    taxonomy = load_taxonomy()
    assert [chapter.number for chapter in taxonomy.chapters] == [None, 3, 4, 5, 6, 7, 8, 9, 10]
    assert [len(chapter.leaves) for chapter in taxonomy.chapters] == [1, 1, 5, 6, 9, 7, 2, 6, 7]
    assert taxonomy.leaves[0].id == "controls"


def test_sections_rise_and_begin_with_their_chapter() -> None:
    numbers = []
    for chapter in load_taxonomy().chapters[1:]:
        for leaf in chapter.leaves:
            assert leaf.section is not None
            assert re.fullmatch(r"\d+(\.\d+)*", leaf.section)
            numbers.append(tuple(int(part) for part in leaf.section.split(".")))
            assert numbers[-1][0] == chapter.number
    assert numbers == sorted(set(numbers))


def test_ids_and_questions_are_well_formed() -> None:
    for leaf in load_taxonomy().leaves:
        assert re.fullmatch(r"[a-z-]+(/[a-z-]+)?", leaf.id)
        assert re.fullmatch(r"[A-Z][^?.]+\?", leaf.question), leaf.id
        assert all(re.fullmatch(r"[A-Za-z0-9_]+", work) for work in leaf.cited)


def test_each_work_of_the_survey_stands_on_one_leaf() -> None:
    """305 references, of which 3 are entered twice, 36 are background and 9 belong to the outlook."""
    works = [work for leaf in load_taxonomy().leaves for work in leaf.cited]
    assert len(works) == len(set(works)) == 305 - 3 - 36 - 9
    cited = {work: leaf.id for leaf in load_taxonomy().leaves for work in leaf.cited}
    assert cited["hinton2015distilling"] == "logits/softened-labels"
    assert cited["romero2014fitnets"] == "intermediate/features"
    assert cited["tian2019contrastive"] == "theory"
    assert cited["hou2019learning"] == "learning/incremental"
    assert "zhao2022decoupled" not in cited


def test_an_id_or_a_work_that_stands_twice_is_refused() -> None:
    data = load_taxonomy().model_dump()
    data["chapters"][2]["tables"][0]["leaves"][0]["id"] = "theory"
    with pytest.raises(ValidationError, match="stands twice in the taxonomy: theory"):
        Taxonomy.model_validate(data)
    data = load_taxonomy().model_dump()
    data["chapters"][0]["tables"][0]["leaves"][0]["cited"] = ["hinton2015distilling"]
    with pytest.raises(ValidationError, match="stands twice in the taxonomy: hinton2015distilling"):
        Taxonomy.model_validate(data)


def test_order_follows_the_survey_and_puts_strangers_last() -> None:
    ids = ["zoo/mine", "applications/segmentation", "logits/strictness", "a/b", "controls", "intermediate/features"]
    assert sorted(ids, key=load_taxonomy().order) == [
        "controls",
        "logits/strictness",
        "intermediate/features",
        "applications/segmentation",
        "a/b",
        "zoo/mine",
    ]


def test_find() -> None:
    leaf = load_taxonomy().find("learning/graph")
    assert leaf is not None
    assert (leaf.section, leaf.title) == ("9.2", "Graph representations")
    assert load_taxonomy().find("learning/unheard-of") is None


def test_the_tree_of_no_methods_is_all_open() -> None:
    chapters = tree([])
    assert [leaf.id for chapter in chapters for leaf in chapter.leaves] == [leaf.id for leaf in load_taxonomy().leaves]
    assert not any(leaf.methods for chapter in chapters for leaf in chapter.leaves)


def test_methods_stand_on_their_leaves_by_name() -> None:
    kd = Idea("kd", "logits/softened-labels", "Knowledge distillation", "hinton2015distilling")
    dkd = Idea("dkd", "logits/softened-labels", extension=True)
    scratch = Idea("scratch", "controls", paper=None)
    leaves = {leaf.id: leaf for chapter in tree(iter([kd, scratch, dkd])) for leaf in chapter.leaves}
    assert [method.name for method in leaves["logits/softened-labels"].methods] == ["dkd", "kd"]
    assert [method.extension for method in leaves["logits/softened-labels"].methods] == [True, False]
    assert leaves["logits/softened-labels"].methods[1].paper == "hinton2015distilling"
    assert [method.paper for method in leaves["controls"].methods] == [None]
    assert sum(len(leaf.methods) for leaf in leaves.values()) == 3


def test_unknown_leaves_make_a_chapter_of_third_parties() -> None:
    chapters = tree([Idea("b", "Lab X/ideas!"), Idea("a", "acme"), Idea("kd", "theory")])
    assert [chapter.title for chapter in chapters].count("third-party") == 1
    last = chapters[-1]
    assert (last.number, last.title) == (None, "third-party")
    assert [(leaf.id, [m.name for m in leaf.methods]) for leaf in last.leaves] == [
        ("Lab X/ideas!", ["b"]),
        ("acme", ["a"]),
    ]
    assert len(chapters[:-1]) == len(load_taxonomy().chapters)


# ---- the tree and the methods that ship with it ---------------------------------------------------------------------


def test_every_leaf_has_methods_or_a_reason_why_it_is_open() -> None:
    leaves = {leaf.id: leaf for chapter in tree(methods()) for leaf in chapter.leaves}
    assert leaves.keys() == {leaf.id for leaf in load_taxonomy().leaves}
    both = sorted(leaf.id for leaf in leaves.values() if leaf.methods and leaf.open)
    neither = sorted(leaf.id for leaf in leaves.values() if not leaf.methods and not leaf.open)
    assert not both, f"take the reason from these leaves, they have a method now: {both}"
    assert not neither, f"these leaves have no method: say why ('open:' in taxonomy.yaml): {neither}"


@pytest.mark.parametrize("entry", methods(), ids=lambda entry: entry.name)
def test_methods_fill_the_columns_of_their_table(entry: Entry) -> None:
    table = load_taxonomy().table_of(entry.leaf)
    assert table is not None
    assert list(entry.cls.survey) == list(table.columns)
    for text in entry.cls.survey.values():
        assert 0 < len(text) <= 80
        assert text == " ".join(text.split())


def test_tables_have_the_surveys_numbers() -> None:
    tables = [table for chapter in load_taxonomy().chapters for table in chapter.tables]
    assert [table.survey for table in tables if table.survey and table.survey.isdigit()] == list("1234567")
    by_leaf = {leaf: load_taxonomy().table_of(leaf) for leaf in ("intermediate/features", "learning/graph")}
    assert [table and table.survey for table in by_leaf.values()] == ["2", "unnumbered"]
    assert load_taxonomy().table_of("a/b") is None
    assert load_taxonomy().chapter_of("a/b") is None
    for table in tables:
        assert all(re.fullmatch(r"[a-z_]+", key) for key in table.columns)
        assert all(re.fullmatch(r"[A-Z][\w();, -]+", heading) for heading in table.columns.values())


def test_reasons_are_plain_clauses() -> None:
    for leaf in load_taxonomy().leaves:
        for why in ([leaf.open] if leaf.open else []) + list(leaf.absent.values()):
            assert re.fullmatch(r"[a-z].+[^.\s]", why), leaf.id


def test_what_is_absent_is_cited_and_has_no_method() -> None:
    here = {entry.paper for entry in methods()}
    for leaf in load_taxonomy().leaves:
        assert leaf.absent.keys() <= set(leaf.cited) - here, leaf.id


def test_the_tree_is_json() -> None:
    data = json.loads(json.dumps([chapter.model_dump() for chapter in tree([Idea("kd", "theory")])]))
    assert data[1]["leaves"][0]["methods"][0]["name"] == "kd"


def test_the_command_says_what_is_open_and_why(kd: Kdbench) -> None:
    told = json.loads(kd("methods", "--json").out)
    leaves = {leaf["id"]: leaf for chapter in told["chapters"] for leaf in chapter["leaves"]}
    assert told["methods"].keys() == {method["name"] for leaf in leaves.values() for method in leaf["methods"]}
    assert told["open"] == [name for name, leaf in leaves.items() if not leaf["methods"]]
    assert all(leaves[name]["open"] for name in told["open"])
