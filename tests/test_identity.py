"""What identifies a cell: for ever the same for what is committed, whatever is added to the models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from kdbench.construct import method_class, method_identity
from kdbench.data.sources import source_of
from kdbench.engine.cell import cells_of
from kdbench.engine.job import Job
from kdbench.paths import conf_dir
from kdbench.protocol import Protocol
from kdbench.results.record import cell_id, dump, parse
from kdbench.sparse import Sparse

RECORDS = sorted((Path(__file__).parents[1] / "results" / "records").glob("*.json"))
COMMITTED = {"cifar100_first": None, "cifar100_lite": None, "digits_data_free": {"scratch", "ls", "kd", "dafl"}}
"""The experiments whose records are committed, of seeds 0 to 2, and the methods that were run where others joined."""


class Grown(Sparse):
    ADDED = frozenset({"later", "listed"})

    first: int = 1
    later: float | None = None
    listed: tuple[int, ...] = ()


def recomposed(config: dict[str, Any]) -> dict[str, Any]:
    """A record's config as this code would write it today."""
    method = config["method"]
    settings = {key: value for key, value in method.items() if key != "name"}
    now = {
        **config,
        "method": {"name": method["name"], **method_identity(method_class(method["name"], settings), settings)},
        "dataset": dataset_now(config["dataset"]),
        "protocol": Protocol.of(config["protocol"]).model_dump(mode="json"),
    }
    if teacher := config["teacher"]:
        now["teacher"] = {**teacher, "dataset": dataset_now(teacher["dataset"])}
        if "method" in teacher:  # not one that was brought
            now["teacher"] |= {
                "method": method_identity(method_class("teacher", teacher["method"]), teacher["method"]),
                "protocol": Protocol.of(teacher["protocol"]).model_dump(mode="json"),
            }
    return now


def dataset_now(config: dict[str, Any]) -> dict[str, Any]:
    return source_of(config).identity()


def test_there_are_committed_records() -> None:
    assert len(RECORDS) >= 123


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_committed_record_keeps_its_id_and_its_bytes(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    record = parse(text)
    assert dump(record) == text
    assert cell_id(recomposed(record.config)) == record.cell.id


@pytest.mark.parametrize("experiment", COMMITTED)
def test_the_committed_experiments_still_name_their_records(experiment: str) -> None:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        cells = cells_of(Job.of(compose("run", [f"experiment={experiment}", "seed=[0,1,2]"])))
    ids = {path.stem.rpartition("-")[2] for path in RECORDS}
    run = COMMITTED[experiment] or {cell.name for cell in cells}
    assert {cell.name for cell in cells if cell.id in ids} == run
    assert [cell.id for cell in cells if cell.name in run and cell.id not in ids] == []


def test_a_field_that_came_later_is_left_out_where_it_has_its_default() -> None:
    assert Grown().model_dump() == {"first": 1}
    assert Grown(first=1, later=None, listed=()).model_dump(mode="json") == {"first": 1}
    assert Grown(later=0.0, listed=(2,)).model_dump() == {"first": 1, "later": 0.0, "listed": (2,)}
