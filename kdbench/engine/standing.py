"""Whether stored records still stand: made of the data, the teachers and the code that are at hand now."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from kdbench.data.datasets import Dataset
from kdbench.engine.cell import Cell
from kdbench.errors import UserError
from kdbench.results import record as rec
from kdbench.source import is_code_of, network_hash, source_hash
from kdbench.teaching.recipe import name_of
from kdbench.teaching.teachers import Teachers, check_pin

DataOf = Callable[[Mapping[str, Any]], Dataset]


def check_standing(cell: Cell, record: rec.Record, teachers: Teachers, data: DataOf) -> None:
    """Raises `UserError` if the cell's record stands on other data, on another teacher or on other code."""
    dataset = data(cell.dataset)
    if record.dataset.sha256 != dataset.content_hash:
        raise UserError(
            f"{cell} has a record made from other data ({record.dataset.sha256[:12]}, now "
            f"{dataset.content_hash[:12]}): restore the data, "
            "use another store (paths.results=DIR), or run again with force=true."
        )
    if record.dataset.classes not in (None, dataset.classes_hash):
        raise UserError(
            f"{cell} has a record made when the classes of its data had other names, or stood in another order: "
            "restore the data, use another store (paths.results=DIR), or run again with force=true."
        )
    for (recipe, pin), (info, _) in zip(cell.teachers, record.teachers, strict=False):
        _check_teacher(cell, recipe, pin, info, teachers, data)
    for name, was in record.networks.items():
        now = network_hash(name)
        if now and now != was:
            raise UserError(
                f"{cell} has a record made by other code of the network {name} ({was[:12]}, now {now[:12]}): run again "
                "with force=true, or give the changed network a name of its own."
            )
    if not is_code_of(cell.method, record.method.source):
        code = f"{str(record.method.source)[:12]}, now {str(source_hash(cell.method))[:12]}"
        raise UserError(
            f"{cell} has a record made by other code of {cell.method.__name__} ({code}): run again with force=true, or "
            "give the changed method a name of its own."
        )


def learned_from(records: Iterable[rec.Record], recipe: Mapping[str, Any]) -> list[str]:
    """The sha256 of each teacher of this recipe that stands behind these records, sorted."""
    wanted = name_of(recipe)
    named = (each for record in records for each in record.teachers if each[0].name == recipe["name"])
    return sorted({info.sha256 for info, known in named if name_of(known) == wanted})


def _check_teacher(
    cell: Cell, recipe: Mapping[str, Any], pin: str | None, stated: rec.TeacherInfo, teachers: Teachers, data: DataOf
) -> None:
    """Raises `UserError` if a record's teacher is not the one at hand, where one is, or its data have changed."""
    learned = data(recipe["dataset"])
    teacher = teachers.find(recipe, learned)
    if teacher is None:
        if older := teachers.known(recipe, stated.sha256):
            raise UserError(
                f"{cell} has a record made with a teacher of other data ({older.card.dataset_sha256[:12]}, now "
                f"{learned.content_hash[:12]}): restore the data, use another store (paths.results=DIR), or run again "
                "with force=true."
            )
        return
    check_pin(teacher, pin)
    if teacher.card.sha256 != stated.sha256:
        raise UserError(
            f"{cell} has a record made with the teacher {stated.sha256[:12]}, but the one at {teacher.weights} is "
            f"{teacher.card.sha256[:12]}: restore it, use another store, or run again with force=true."
        )
