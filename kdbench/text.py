"""What people read: numbers rounded by one rule, and names in which nothing acts on the screen or in a spreadsheet."""

from __future__ import annotations

import re
import textwrap
import unicodedata
from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Context, Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

DIGITS = 10
"""Significant digits of a number: those beyond differ from one numerical library to the next."""

_EXACT = Context(prec=400, rounding=ROUND_HALF_EVEN)
_JOINERS = "\u200c\u200d"
"""Invisible, but letters of Persian and parts of emoji."""
_ACTING = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's categories of characters that do something instead of showing: control, format (also those that turn the
direction of writing), surrogates, separators of lines and paragraphs."""
BARE = re.compile(r"(?!(?i:null|true|false|inf|nan)$)[A-Za-z_/~][\w./~-]*", re.ASCII)
"""What Hydra reads as text without quotes."""
_FORMULA = tuple("=+-@\uff1d\uff0b\uff0d\uff20")


def in_hydra(text: str) -> str:
    """A text in Hydra's grammar: in quotes, double ones as a shell wants the single ones, if it must be."""
    if BARE.fullmatch(text):
        return text
    from hydra.core.override_parser.types import Quote, QuotedString

    return str(QuotedString(text, Quote.double).with_quotes())


def fixed(value: float, digits: int, *, signed: bool = False, scale: int = 1) -> str:
    """`scale` x `value` with `digits` decimals, as every format shows it.

    The number is taken with `DIGITS` significant digits, as CSV files hold it, and rounded in decimal, ties to even. A
    zero is never negative.
    """
    rounded = (Decimal(full(value)) * scale).quantize(Decimal(1).scaleb(-digits), context=_EXACT)
    return f"{rounded or abs(rounded):{'+' if signed else ''}f}"


def full(value: float) -> str:
    """`value` with `DIGITS` significant digits, for programs."""
    return f"{value + 0.0:.{DIGITS}g}"


def many(n: int, word: str) -> str:
    """``1 seed``, ``2 seeds``, ``2 boxes``."""
    return f"{n} {word}" if n == 1 else f"{n} {word}{'es' if word.endswith('x') else 's'}"


def some(names: Sequence[str], most: int, separator: str = ", ") -> str:
    """The first of many names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return separator.join(names[:most]) + more


def has_control(text: str) -> bool:
    """Whether `text` holds control characters, which no name of anything needs."""
    return any(unicodedata.category(character) in ("Cc", "Cs") for character in text)


def visible(text: str, keep: str = "") -> str:
    r"""`text` with every character that acts instead of showing written out, as in ``\x1b``; those in `keep` stay."""
    if text.isprintable():
        return text
    return "".join(
        character.encode("unicode_escape").decode()
        if unicodedata.category(character) in _ACTING and character not in _JOINERS + keep
        else character
        for character in text
    )


def one_line(text: str) -> str:
    """As `visible`, with single spaces for all white space."""
    return visible(" ".join(text.split()))


def print_whole(console: Console, text: str) -> None:
    """Print text as it is, none of it cut: on a terminal broken between words, in a file or pipe each line whole.

    Nothing in it acts on the terminal. What is longer than a line, as a path may be, is the terminal's to fold: so it
    is one piece when it is copied.
    """
    text = visible(text, keep="\n")
    if console.is_terminal:
        text = "\n".join(broken(line, console.width) for line in text.split("\n"))
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def broken(line: str, width: int) -> str:
    """`line` in lines of at most `width` characters, broken between words alone, indented as it is."""
    indent = line[: len(line) - len(line.lstrip(" "))]
    parts = textwrap.wrap(
        line,
        width,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
    )
    return "\n".join(parts)


def inert(text: str) -> str:
    """`text` for a cell of a CSV file: behind a quote where a spreadsheet would take it for a formula."""
    text = visible(text)
    return f"'{text}" if text.startswith(_FORMULA) else text
