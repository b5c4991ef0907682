"""The works that tables cite: the entries of ``kdbench.bib``, which ships beside this module, by key."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from importlib.resources import files

FILE = "kdbench.bib"


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
