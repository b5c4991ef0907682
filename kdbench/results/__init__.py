"""Records, their store, and the statistics of seeds."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from kdbench.results.record import Agreement, Correct, Metrics, Record, TeacherInfo, flatten
from kdbench.results.store import Store

if TYPE_CHECKING:
    import pandas as pd

_NULLABLE: dict[str, type[BaseModel]] = {"teacher": TeacherInfo, "metrics": Metrics, "correct": Correct}


def load(root: str | Path) -> pd.DataFrame:
    """The store under `root` as a table: one row per record, one column per value.

    A column's name is its path in the record: ``cell.method``, ``cell.seed``, ``metrics.last``, ``teacher.accuracy``,
    ``cost.train_seconds``, ``environment.device``, ``status``; the config's values are ``config.method.temperature``
    and so on. Missing values are null; ``method.needs`` is joined by spaces. What is measured, in which direction and
    unit, stands in ``measure.name``, ``measure.higher`` and ``measure.unit``; further measures are
    ``metrics.others.NAME``. Curves, further teachers, hashes of own networks and what records say of single
    examples are not in the table: take them from `Store.load`.

    Raises:
        UserError: see `Store.load`.
    """
    import pandas as pd  # slow to import, and nothing else here needs it

    return pd.DataFrame([_row(record) for record in Store(root).load()])


def _row(record: Record) -> dict[str, Any]:
    left_out: Any = {"curves": True, "correct": {"bits"}, "scores": True, "others": True, "networks": True}
    data = record.model_dump(mode="json", exclude=left_out) | {"measure": asdict(record.measure)}
    for field, model in _NULLABLE.items():
        data[field] = {name: (data[field] or {}).get(name) for name in model.model_fields}
    data["teacher"]["agreement"] = data["teacher"]["agreement"] or dict.fromkeys(Agreement.model_fields)
    data["metrics"]["others"] = data["metrics"]["others"] or {}
    data["method"]["needs"] = " ".join(data["method"]["needs"])
    data["correct"].pop("bits", None)
    flat = flatten(data)
    flat.pop("metrics.others", None)  # of a record that has none
    return flat


__all__ = ["Record", "Store", "load"]
