"""The survey's tree of ideas (``taxonomy.yaml``), the columns of its tables, and where methods stand in it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache, cached_property
from importlib.resources import files
from typing import Protocol

import yaml
from pydantic import BaseModel, ConfigDict, model_validator

from kdbench.errors import UserError
from kdbench.files import load_yaml


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Leaf(_Strict):
    """A place in the tree.

    Attributes:
        id: stable; what a method declares.
        section: number in the survey, null outside it.
        question: what an experiment on this leaf should answer.
        cited: bibliography keys of the works that the survey cites and whose primary leaf this is.
        open: why no method stands here yet; null where one does.
        absent: why a cited work is no method here, by its key, where somebody looked into it.
    """

    id: str
    section: str | None
    title: str
    question: str
    cited: tuple[str, ...]
    open: str | None = None
    absent: Mapping[str, str] = {}

    @property
    def heading(self) -> str:
        """Section and title."""
        return f"{self.section or ''} {self.title}".strip()


class SurveyTable(_Strict):
    """Leaves whose methods are described by the same columns.

    Attributes:
        survey: number of the survey's table, ``unnumbered`` where only its existence is known, null where it has none.
        columns: heading of each column, in order, by the key that a method declares (`kdbench.method.Method.survey`).
    """

    id: str
    title: str
    survey: str | None
    columns: Mapping[str, str]
    leaves: tuple[Leaf, ...]


class Chapter(_Strict):
    """A chapter of the survey, or (`number` null) what the bench adds to it."""

    id: str
    number: int | None
    title: str
    tables: tuple[SurveyTable, ...]

    @property
    def leaves(self) -> list[Leaf]:
        return [leaf for table in self.tables for leaf in table.leaves]


class Taxonomy(_Strict):
    """All chapters, in the survey's order; the controls come first."""

    chapters: tuple[Chapter, ...]

    @model_validator(mode="after")
    def _each_once(self) -> Taxonomy:
        tables = [table for chapter in self.chapters for table in chapter.tables]
        for what in (
            [chapter.id for chapter in self.chapters],
            [table.id for table in tables],
            [leaf.id for leaf in self.leaves],
            [work for leaf in self.leaves for work in leaf.cited],
        ):
            twice = sorted({item for item in what if what.count(item) > 1})
            if twice:
                raise ValueError(f"stands twice in the taxonomy: {', '.join(twice)}")
        return self

    @property
    def leaves(self) -> list[Leaf]:
        return [leaf for chapter in self.chapters for leaf in chapter.leaves]

    @cached_property
    def _places(self) -> dict[str, tuple[int, Chapter, SurveyTable, Leaf]]:
        places = [
            (chapter, table, leaf) for chapter in self.chapters for table in chapter.tables for leaf in table.leaves
        ]
        return {leaf.id: (index, chapter, table, leaf) for index, (chapter, table, leaf) in enumerate(places)}

    @cached_property
    def cited(self) -> frozenset[str]:
        """Bibliography keys of all works on the leaves."""
        return frozenset(work for leaf in self.leaves for work in leaf.cited)

    def find(self, leaf_id: str) -> Leaf | None:
        """The leaf, or None for an id that is not in the tree (a third party's)."""
        return self._places[leaf_id][3] if leaf_id in self._places else None

    def chapter_of(self, leaf_id: str) -> Chapter | None:
        """The chapter of a leaf, or None for a third party's leaf."""
        return self._places[leaf_id][1] if leaf_id in self._places else None

    def table_of(self, leaf_id: str) -> SurveyTable | None:
        """The table whose columns describe the methods of a leaf, or None for a third party's leaf."""
        return self._places[leaf_id][2] if leaf_id in self._places else None

    def order(self, leaf_id: str) -> tuple[int, str]:
        """Sort key: the order of the tree, then ids that are not in it, by name."""
        return (self._places[leaf_id][0], "") if leaf_id in self._places else (len(self._places), leaf_id)


@cache
def load_taxonomy() -> Taxonomy:
    """The tree that ships with the package.

    Raises:
        UserError: its file is damaged.
    """
    file = files("kdbench").joinpath("taxonomy.yaml")
    try:
        return Taxonomy.model_validate(load_yaml(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        what = " ".join(str(error).split())
        raise UserError(f"{file} is damaged ({what[:200]}): install kdbench anew, or restore that file.") from None


class MethodLike(Protocol):
    """What a method says of itself: a method's class, or any object with these attributes."""

    @property
    def name(self) -> str: ...
    @property
    def leaf(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def paper(self) -> str | None: ...
    @property
    def extension(self) -> bool: ...


class MethodEntry(_Strict):
    """A method in the tree; `extension` marks one that the survey does not cite."""

    name: str
    title: str
    paper: str | None
    extension: bool


class LeafEntry(Leaf):
    """A leaf and its methods; without any it is still open."""

    methods: tuple[MethodEntry, ...]


class ChapterEntry(_Strict):
    """A chapter and its leaves, open ones included."""

    number: int | None
    title: str
    leaves: tuple[LeafEntry, ...]


def tree(methods: Iterable[MethodLike]) -> list[ChapterEntry]:
    """The whole tree with each method on its leaf, by name; unknown leaves come last, as chapter "third-party"."""
    by_leaf: dict[str, list[MethodEntry]] = defaultdict(list)
    for m in sorted(methods, key=lambda m: m.name):
        by_leaf[m.leaf].append(MethodEntry(name=m.name, title=m.title, paper=m.paper, extension=m.extension))
    chapters = [
        ChapterEntry(
            number=chapter.number,
            title=chapter.title,
            leaves=tuple(_entry(leaf, by_leaf.pop(leaf.id, [])) for leaf in chapter.leaves),
        )
        for chapter in load_taxonomy().chapters
    ]
    if by_leaf:
        others = (Leaf(id=leaf, section=None, title=leaf, question="", cited=()) for leaf in sorted(by_leaf))
        leaves = tuple(_entry(leaf, by_leaf[leaf.id]) for leaf in others)
        chapters.append(ChapterEntry(number=None, title="third-party", leaves=leaves))
    return chapters


def _entry(leaf: Leaf, methods: list[MethodEntry]) -> LeafEntry:
    return LeafEntry(**leaf.model_dump(), methods=tuple(methods))
