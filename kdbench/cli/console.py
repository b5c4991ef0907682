"""What commands print."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.text import Text

from kdbench.text import one_line, visible

WIDE = 160
"""Columns of a table that goes into a file or a pipe."""

out = Console()


def say(what: object) -> None:
    """Print text as it is, each line whole; or a table, cut to the terminal's width where there is one.

    Nothing in the text acts on the terminal; what a table shows of data has gone through `plain`.
    """
    if isinstance(what, str):
        out.print(visible(what, keep="\n"), markup=False, highlight=False, soft_wrap=True)
    else:
        (out if out.is_terminal else Console(width=WIDE)).print(what)


def plain(text: str, style: str = "") -> Text:
    """Text of data's for a table or a tree: never markup, and nothing in it acts on the terminal."""
    return Text(one_line(text), style)


def fail(message: str, code: int = 1) -> int:
    print(f"kdbench: {visible(message, keep=chr(10))}", file=sys.stderr)
    return code
