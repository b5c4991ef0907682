"""Tables on a terminal of 80 characters."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from kdbench.report.chapters import blocks_of
from kdbench.report.model import Row, Table
from kdbench.report.sheet import COLUMNS, row_cells, verdict

_SHOWN = {
    "Method": "Method",
    "n": "n",
    "top-1 last": "top-1 last",
    "Δ scratch": "Δ scratch",
    "Δ KD": "Δ KD",
    "gap recovered %": "gap %",
    "diverged": "div.",
}
"""The columns that fit into 80 characters, with their short names."""


def render_terminal(tables: Sequence[Table]) -> Group:
    """The tables for `rich.print`, without costs; one seed shows in the column n alone, bold is significant.

    Names are shown as they are, never read as markup.
    """
    parts: list[RichTable | Text] = []
    for table in tables:
        blocks = [(block, [_cells(row) for row in rows]) for block, rows in blocks_of(table.rows)]
        head = list(map(Text, _SHOWN.values()))
        widths = [
            max(map(len, column)) for column in zip(head, *(line for _, lines in blocks for line in lines), strict=True)
        ]

        def grid(rows: list[list[Text]], style: str = "", widths: list[int] = widths) -> RichTable:
            # one grid per block, all of the same widths, lets a block's name be as long as the table
            grid = RichTable.grid(padding=(0, 2, 0, 0))
            for column, width in zip(_SHOWN, widths, strict=True):
                method = column == "Method"
                grid.add_column(justify="left" if method else "right", min_width=width, no_wrap=not method, style=style)
            for row in rows:
                grid.add_row(*row)
            return grid

        parts += [Text(table.title, style="bold"), Text(""), grid([head], "italic")]
        for block, rows in blocks:
            parts += [Text(block, style="bold"), grid(rows)]
        best = verdict(table.rows, table.control("kd"))
        parts += [
            Text(""),
            *([Text(best)] if best else []),
            *(Text(line, style="dim") for line in table.header),
            Text(""),
        ]
    return Group(*parts)


def _cells(row: Row) -> list[Text]:
    cells = dict(zip(COLUMNS, row_cells(row), strict=True))
    return [
        Text(cells[column].text.removesuffix(" (one seed)"), style="bold" if cells[column].bold else "")
        for column in _SHOWN
    ]
