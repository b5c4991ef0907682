"""The works that tables cite: the entries of ``kdbench.bib``, which ships beside this module, by key."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

from kdbench.docs import Work

FILE = "kdbench.bib"

_MARKS = {"'": "\u0301", "`": "\u0300", "^": "\u0302", "~": "\u0303", '"': "\u0308", "c": "\u0327", "u": "\u0306"}
_ACCENT = re.compile(r"\\(?P<accent>['`^~\"]|[cu] )\\?(?P<letter>[A-Za-z])")


@cache
def entries() -> dict[str, str]:
    """BibTeX key -> the entry as it stands in the file."""
    text = files("kdbench.report").joinpath(FILE).read_text(encoding="utf-8")
    found = re.finditer(r"^@\w+\{([^,\s]+),\n.*?^\}$", text, re.DOTALL | re.MULTILINE)
    return {entry[1]: entry[0] for entry in found}


def cited(keys: Iterable[str | None]) -> str:
    """The entries of those of `keys` that are known, in order of the key, each followed by an empty line."""
    known = entries()
    return "\n\n".join(known[key] for key in sorted({key for key in keys if key in known})) + "\n"


def _accented(match: re.Match[str]) -> str:
    return unicodedata.normalize("NFC", match["letter"] + _MARKS[match["accent"].strip()])


def work(key: str | None) -> Work | None:
    """The work of a key, as a line names it: up to two authors by their surnames, or the first with "et al."."""
    if key not in entries():
        return None
    given = re.findall(r"^  (\w+) = \{(.*)\},?$", entries()[key], re.MULTILINE)
    fields = {name: re.sub(r"[{}]", "", _ACCENT.sub(_accented, value)) for name, value in given}
    names = [name.partition(",")[0] for name in fields["author"].split(" and ")]
    authors = " & ".join(names) if len(names) < 3 else f"{names[0]} et al."
    arxiv, doi = fields.get("eprint"), fields.get("doi")
    url = f"https://arxiv.org/abs/{arxiv}" if arxiv else f"https://doi.org/{doi}" if doi else fields.get("url")
    venue = re.search(r"\((\w+)\)$", fields.get("booktitle", ""))
    year = fields["year"]
    return Work(fields["title"], authors, f"{venue[1]} {year}" if venue else year, year, url)
