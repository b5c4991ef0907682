"""Which records are of which arm of a published number: their cells are the same, but for the seed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from kdbench.networks import spelled
from kdbench.reproductions import Reproduction, find
from kdbench.results.record import Record, canonical_json


def records_of_arms(groups: Iterable[str], records: Iterable[Record]) -> dict[str, list[Record]]:
    """``NAME/ARM`` -> its records, of all arms of those groups that have any.

    Only an arm of whose method, student and data set there is a record at all is composed.

    Raises:
        UserError: there is no such group, or it chooses what there is not.
    """
    by_setting: dict[str, list[Record]] = defaultdict(list)
    names = set()
    for record in records:
        by_setting[_but_for_the_seed(record.config)].append(record)
        names.add((record.cell.method, record.cell.student, record.cell.dataset))
    found = {}
    for name in sorted({*groups}):
        group = find(name)
        for arm in group.arms:
            config = group.config(arm)
            (method,) = config["method"]
            if (method, spelled(config["pair"]["student"]), config["dataset"]["name"]) not in names:
                continue
            if runs := by_setting.get(_identity(group.name, arm)):
                found[f"{name}/{arm}"] = runs
    return found


@cache
def _identity(name: str, arm: str) -> str:
    return _but_for_the_seed(cell_config(find(name), arm))


def cell_config(group: Reproduction, arm: str) -> Mapping[str, Any]:
    """What a cell of an arm is, see `kdbench.engine.cell.Cell`, for its first seed.

    Raises:
        UserError: a setting of the arm is wrong.
    """
    from omegaconf import OmegaConf

    from kdbench.engine.cell import cells_of
    from kdbench.engine.job import Job

    (cell,) = cells_of(Job.of(OmegaConf.create(group.config(arm))))
    return cell.config


def _but_for_the_seed(config: Mapping[str, Any]) -> str:
    return canonical_json({key: value for key, value in config.items() if key != "seed"})
