"""Tables on a terminal of 80 characters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from kdbench.report.measured import blocks_of, measured, measured_cells, verdict
from kdbench.report.model import Row, Table
from kdbench.text import one_line

_SHOWN = ("n", "score", "balanced", "delta_scratch", "delta_kd", "gap", "diverged")
"""The columns, beside the method, that fit into 80 characters."""
_SHORT = {"gap": "gap %", "diverged": "div."}


def render_terminal(tables: Sequence[Table], folder: Path | None = None) -> Group:
    """The tables for `rich.print`, without costs and further measures.

    One seed shows in the column n alone, bold is significant. Names are shown as they are, never read as markup.

    Args:
        folder: where the full tables lie; then of the facts below a table only the teacher is told, and the file that
            has all of them.
    """
    parts: list[RichTable | Text] = []
    for table in tables:
        heads = measured(table)
        columns = [column for column in heads if column in _SHOWN]
        blocks = [(block, [_cells(table, row, columns) for row in rows]) for block, rows in blocks_of(table.rows)]
        head = [Text("Method"), *(_text(_SHORT.get(column, heads[column])) for column in columns)]
        widths = [
            max(map(len, column)) for column in zip(head, *(line for _, lines in blocks for line in lines), strict=True)
        ]

        def grid(rows: list[list[Text]], style: str = "", widths: list[int] = widths) -> RichTable:
            # one grid per block, all of the same widths, lets a block's name be as long as the table
            grid = RichTable.grid(padding=(0, 2, 0, 0))
            for place, width in enumerate(widths):
                justify: Literal["left", "right"] = "right" if place else "left"
                grid.add_column(justify=justify, min_width=width, no_wrap=place > 0, style=style)
            for row in rows:
                grid.add_row(*row)
            return grid

        parts += [_text(table.title, "bold"), Text(""), grid([head], "italic")]
        for block, rows in blocks:
            parts += [_text(block, "bold"), grid(rows)]
        best = verdict(table, table.rows)
        parts += [
            Text(""),
            *([_text(best)] if best else []),
            *(_text(line, "dim") for line in (table.header[:1] if folder else table.header)),
            *([_text(f"Full table: {folder / table.name}.md", "dim")] if folder else []),
            Text(""),
        ]
    return Group(*parts)


def _cells(table: Table, row: Row, columns: Sequence[str]) -> list[Text]:
    cells = measured_cells(table, row)
    shown = [cells[column] for column in columns]
    numbers = [_text(cell.text.removesuffix(" (one seed)"), "bold" if cell.bold else "") for cell in shown]
    return [_text(row.label), *numbers]


def _text(text: str, style: str = "") -> Text:
    return Text(one_line(text), style=style)
