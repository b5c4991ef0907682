"""Every method of the registry and every scenario, in the bench: whatever company it is in, and wherever it is killed."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Kdbench
from places import ENTRIES, PLACES, SCENARIOS, methods_in, records_in, run, tiny_data
from test_grid import numbers


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    tiny_data(root)
    return root


@pytest.fixture
def bench(kd: Kdbench, data: Path, monkeypatch: pytest.MonkeyPatch) -> Kdbench:
    monkeypatch.setenv("KDBENCH_DATA", str(data))
    return kd


def test_every_method_and_every_scenario_has_its_place() -> None:
    assert sorted(name for place in PLACES for name in methods_in(place) if name not in PLACES[place].guests) == sorted(
        ENTRIES
    )
    assert SCENARIOS <= PLACES.keys()


def equal(kd: Kdbench, one: str, two: str) -> None:
    """Every cell has the same numbers in both stores."""
    a, b = records_in(kd, one), records_in(kd, two)
    assert a.keys() == b.keys()
    for name in a:
        assert numbers(a[name]) == numbers(b[name]), name


@pytest.mark.parametrize("route", ["fast", "plain"])
@pytest.mark.parametrize("place", PLACES)
def test_alone_as_in_company(bench: Kdbench, place: str, route: str) -> None:
    common = (f"engine.route={route}",)
    together = run(bench, place, *common, "cohort.max_students=100", "paths.results=together")
    assert together.code == 0, together
    alone = run(bench, place, *common, "cohort.max_students=1", "paths.results=alone")
    assert alone.code == 0, alone
    assert sorted(records_in(bench, "together")) == sorted(methods_in(place))
    equal(bench, "together", "alone")
    paths = {record.environment.path for record in records_in(bench, "together").values()}
    assert all(f"lockstep of {len(methods_in(place))}" in path for path in paths)
