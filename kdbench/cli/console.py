"""What commands print."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, TextIO, cast

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Column, Table
from rich.text import Text

from kdbench.text import one_line, print_whole, visible

WIDE = 160
"""Columns of a table that goes into a file or a pipe."""

out = Console()


def say(what: object) -> None:
    """Print text as it is, see `print_whole`; or a table, cut to the terminal's width where there is one.

    What a table shows of data has gone through `plain`.
    """
    if isinstance(what, str):
        print_whole(out, what)
    else:
        (out if out.is_terminal else Console(width=WIDE)).print(what)


def show_table(heads: Sequence[str], rows: Iterable[Sequence[str]], spare: Sequence[str] = ()) -> None:
    """Print data in columns; where a terminal is too narrow for all, those in `spare` are left out, the last first."""
    cells, shown, left = [[plain(cell) for cell in row] for row in rows], [*heads], [*spare]
    while True:
        table = Table(*(Column(head, no_wrap=True) for head in shown), box=SIMPLE_HEAD, pad_edge=False)
        for row in cells:
            table.add_row(*(cell for head, cell in zip(heads, row, strict=True) if head in shown))
        wide = Measurement.get(out, out.options.update(max_width=10_000), table).maximum
        if not left or not out.is_terminal or wide <= out.width:
            break
        shown.remove(left.pop())
    say(table)
    if gone := [head for head in heads if head not in shown]:
        say(f"left out, as the terminal is too narrow: {', '.join(gone)}.")


def plain(text: str, style: str = "") -> Text:
    """Text of data's for a table or a tree: never markup, and nothing in it acts on the terminal."""
    return Text(one_line(text), style)


@contextmanager
def starting() -> Iterator[None]:
    """Libraries are imported meanwhile, which takes seconds: on a terminal something moves."""
    with out.status("starting") if out.is_terminal else nullcontext():
        yield


def fail(message: str, code: int = 1) -> int:
    with suppress(OSError):  # nobody can be told
        print(f"kdbench: {visible(message, keep=chr(10))}", file=sys.stderr)
    return code


class Output:
    """Standard output that falls silent when it cannot be written: work of hours does not end for a line of text.

    Attributes:
        lost: why it fell silent.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost: OSError | None = None

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, do: Any, *args: str) -> None:
        if self.lost:
            return
        try:
            do(*args)
        except OSError as error:
            self.lost = error
            with suppress(OSError, ValueError):  # what is in its buffer goes nowhere when the process ends
                file = self._stream.fileno()
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, file)
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def output() -> Iterator[Output]:
    """Print to standard output so that nothing is at stake: letters that it cannot encode are written as escapes."""
    stream: Any = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if getattr(stream, "errors", None) == "strict":
        stream.reconfigure(errors="backslashreplace")
    spared = Output(stream)
    sys.stdout = cast(TextIO, spared)
    try:
        yield spared
    finally:
        spared.flush()
        sys.stdout = stream
