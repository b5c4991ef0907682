"""What commands print."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.text import Text

WIDE = 160
"""Columns of a table that goes into a file or a pipe."""

out = Console()


def say(what: object) -> None:
    """Print text as it is, each line whole; or a table, cut to the terminal's width where there is one."""
    if isinstance(what, str):
        out.print(what, markup=False, highlight=False, soft_wrap=True)
    else:
        (out if out.is_terminal else Console(width=WIDE)).print(what)


def inert(text: str) -> Text:
    """Text from elsewhere as it is: no markup, and what controls a terminal is shown instead of done."""
    return Text("".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text))


def fail(message: str, code: int = 1) -> int:
    print(f"kdbench: {message}", file=sys.stderr)
    return code
