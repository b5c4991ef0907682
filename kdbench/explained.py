"""What a method's docstrings say, taken apart for people to read beside each other: reference, idea, equation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Protocol


class Documented(Protocol):
    """A method as `kdbench.registry.Entry` knows it."""

    @property
    def doc(self) -> str: ...
    @property
    def about(self) -> str: ...
    @property
    def beside(self) -> Mapping[str, str]: ...


_FORMULA = re.compile(r"^ *(?:[^.:=]{1,40}: +)?\S+ = |^\S[^.:=]{0,30}:  +\S|^\d\. ", re.MULTILINE)
"""A line of a formula (perhaps behind what it is of), a formula of what stands in front, or a numbered step."""


def explained(entry: Documented) -> tuple[str, str]:
    """What a method's docstring says of its idea, in a sentence or two, and of its equation, line by line.

    A loss that the equation only names is explained below it, by what its own docstring says first. Either is empty
    where nothing is said.
    """
    paragraphs = re.split(r"\n\s*\n", entry.doc.partition("\nArgs:")[0].strip())
    formulas = [part for part in paragraphs if _FORMULA.search(part)]
    prose = paragraphs[0] if paragraphs and paragraphs[0] not in formulas else ""
    lines = [line for part in formulas for line in _unwrapped(part)]
    for name in dict.fromkeys(re.findall(r"`(?:[\w.]+\.)?(\w+)`", "\n".join([*formulas, prose]))):
        if said := entry.beside.get(name):
            lines.append(f"{name}: {_joined(said)}")
    return " ".join(prose.split()).replace("``", ""), "\n".join(lines).replace("``", "")


def _unwrapped(paragraph: str) -> list[str]:
    """The lines of a paragraph of formulas; of one formula, with what is said of it, a single line."""
    lines = paragraph.splitlines()
    one = len(_FORMULA.findall(paragraph)) == 1 and not any(line.startswith("   ") for line in lines)
    return [_joined(paragraph)] if one else lines


def _joined(text: str) -> str:
    """The first paragraph of a docstring in one line."""
    return " ".join(text.strip().partition("\n\n")[0].split())


def reference(entry: Documented) -> str:
    """The first line of its file: the paper's title, authors and place."""
    return _joined(entry.about)
