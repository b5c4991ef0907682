"""Parts of a store: records by their data set, pair, protocol, method, seed or place in the survey."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from kdbench.errors import UserError
from kdbench.results.record import Record
from kdbench.taxonomy import load_taxonomy


def _chapter(record: Record) -> str:
    chapter = load_taxonomy().chapter_of(record.method.leaf)
    return "third-party" if chapter is None else str(chapter.number or chapter.id)


_CELL: dict[str, Callable[[Record], str]] = {
    "dataset": lambda record: record.cell.dataset,
    "pair": lambda record: record.cell.pair,
    "student": lambda record: record.cell.student,
    "protocol": lambda record: record.cell.protocol,
    "seed": lambda record: str(record.cell.seed),
}
_METHOD: dict[str, Callable[[Record], str]] = {
    "method": lambda record: record.cell.method,
    "leaf": lambda record: record.method.leaf,
    "chapter": _chapter,
}
FILTERS = (*_CELL, *_METHOD)
"""What records can be chosen by; `chapter` is the survey's number."""


def select(records: Iterable[Record], filters: Mapping[str, str]) -> list[Record]:
    """The records that match all `filters`.

    The controls stay whatever method, leaf or chapter is chosen, and cells without a teacher whatever pair, where they
    are of its student: the others are compared with them.

    Raises:
        UserError: an unknown filter, a value that no record has, or nothing that matches all.
    """
    records = list(records)
    unknown = sorted(filters.keys() - set(FILTERS))
    if unknown:
        raise UserError(f"There is no filter '{unknown[0]}': use {', '.join(FILTERS)}.")
    for name, value in filters.items():
        known = sorted({(_CELL | _METHOD)[name](record) for record in records})
        if value not in known:
            raise UserError(f"No record has {name} '{value}': choose from {', '.join(known)}.")
    students = {record.cell.student for record in records if record.cell.pair == filters.get("pair")}

    def fits(record: Record, name: str) -> bool:
        if name == "pair" and record.teacher is None and record.cell.student in students:
            return True
        if name in _METHOD and record.method.control:
            return True
        return (_CELL | _METHOD)[name](record) == filters[name]

    chosen = [record for record in records if all(fits(record, name) for name in filters)]
    asked = [r for r in chosen if all(_METHOD[name](r) == filters[name] for name in filters.keys() & _METHOD.keys())]
    if not asked:
        given = ", ".join(f"{name}={value}" for name, value in filters.items())
        raise UserError(f"No record matches {given} together: drop one of the filters.")
    return chosen
