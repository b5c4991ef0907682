"""What the docstrings of a method's file say of it: the work that it is of, its idea and its equations."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass

Span = tuple[str, str]
"""A piece of a line and what it is: ``text``, ``code`` (a name in the file) or ``sub`` (a subscript)."""

_WORK = re.compile(r"(?P<title>.+?) \((?P<inside>.+?)\)[.:]", re.DOTALL)
_ADDRESS = re.compile(
    r"arXiv:(?P<arxiv>\d{4}\.\d{4,5})|DOI (?P<doi>10\.\d{4,9}/[^\s),;]*[^\s),;.])"
    r"|OpenReview (?P<forum>(?!\d{4}\b)[\w-]+)"
    r"|(?P<page>https://proceedings\.[^\s),;]*[^\s),;.])"  # where there is none of these, as at NeurIPS
)
_SITES = {
    "arxiv": "https://arxiv.org/abs/",
    "doi": "https://doi.org/",
    "forum": "https://openreview.net/forum?id=",
    "page": "",
}
_EQUATION = re.compile(r"[A-Z][\w >`]*: {2,}\S|(\d\. )?[^\W\d][\w\u0302]* = ")
"""A label and what stands apart from it, as ``Student:   KL(...)``; or a symbol, as ``L = ...``."""
_PIECE = re.compile(r"``?(?P<code>[^`]+)``?|_(?:\{(?P<long>[^}]*)\}|(?P<sub>[A-Za-z0-9]+))")


@dataclass(frozen=True)
class Work:
    """A publication; `url` is None where its file gives no address, see ``_SITES``."""

    title: str
    authors: str
    venue: str
    year: str
    url: str | None


@dataclass(frozen=True)
class Docs:
    """What a method's docstrings say; `idea` is one sentence, empty where the equation says it all."""

    work: Work | None
    idea: str
    equations: tuple[str, ...]


def read_docs(module: str, cls: str) -> Docs:
    """Of the texts of both docstrings.

    The module's begins with ``Title (authors, venue year, arXiv:NUMBER)``, or ``DOI NUMBER``; the class's with the idea
    or an equation. Paragraphs that begin as an equation does are equations, line by line.
    """
    body = re.split(r"^Args:", inspect.cleandoc(cls), flags=re.MULTILINE)[0].strip()
    paragraphs = [text.splitlines() for text in re.split(r"\n{2,}", body) if text]
    equations = [line for lines in paragraphs for line in _equations(lines)]
    idea = ""
    if paragraphs:
        first = " ".join(line.strip() for line in paragraphs[0])
        idea = first.partition(": ")[2] if _EQUATION.match(first) else first
    return Docs(_work(module), idea, tuple(equations))


def named(docs: Docs, functions: Mapping[str, str]) -> dict[str, str]:
    """Those of `functions`, docstrings by name, that idea and equations name: what the first paragraph of each says."""
    names = re.findall(r"`(?:[\w.]+\.)?(\w+)`", "\n".join([*docs.equations, docs.idea]))
    return {name: first_paragraph(functions[name]) for name in dict.fromkeys(names) if functions.get(name)}


def first_paragraph(text: str) -> str:
    """The first paragraph of a docstring in one line."""
    return " ".join(text.strip().partition("\n\n")[0].split())


def spans(line: str) -> list[Span]:
    """A line of a docstring in pieces: names in backticks, of which the last part is shown, and subscripts."""
    found: list[Span] = []
    end = 0
    for match in _PIECE.finditer(line):
        if text := line[end : match.start()]:
            found.append(("text", text))
        code, sub = match["code"], match["long"] or match["sub"]
        found.append(("code", code.rpartition(".")[2] or code) if code else ("sub", sub or ""))
        end = match.end()
    return [*found, ("text", line[end:])] if line[end:] else found


def _work(module: str) -> Work | None:
    text = " ".join(module.split())
    found = _WORK.match(text)
    if found is None:
        return None
    inside = _ADDRESS.sub("", found["inside"]).rstrip(", ")
    authors, _, venue = inside.rpartition(", ")
    year = re.search(r"\b(19|20)\d\d\b", venue)
    if year is None:
        return None
    address = _ADDRESS.search(text)
    parts = address.groupdict() if address else {}
    url = next((_SITES[kind] + part for kind, part in parts.items() if part), None)
    return Work(found["title"], authors, venue, year[0], url)


def _equations(lines: list[str]) -> list[str]:
    """The lines of an equation, as they are set; what else a paragraph of prose says ends with its first sentence."""
    if not _EQUATION.match(lines[0]):
        steps = [re.sub(r"^\d\. ", "", line) for line in lines if re.match(r"\d\. ", line)]
        return [step.removesuffix(".") for step in steps if _EQUATION.match(step)]
    found = []
    for line in lines:
        sentence = re.match(r"(.*?)(; see `|\.$|\. (?=[A-Z`])|: (?=[a-z]|one ))", line)
        found.append(sentence[1] if sentence else line)
        if sentence:
            break
    return found
