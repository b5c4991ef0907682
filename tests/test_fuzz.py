"""Generated command lines: what is wrong is told in one sentence before anything trains, what is right is trained."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from conftest import SMALL, Kdbench, Result
from test_program import INTERNALS

from kdbench.cli.jobs import settings
from kdbench.engine.cell import Cell
from kdbench.engine.run import Bench
from kdbench.errors import UserError
from kdbench.registry import methods

METHODS = f"method=[{','.join(entry.name for entry in methods())}]"
LONGEST = 700
"""Characters of a sentence."""


def bad_values(key: str, value: Any) -> list[str]:
    """Values that a setting with such a default cannot have."""
    if key.endswith("_target_"):
        return ["nope", "nope.X", "os.getcwd", "null", "3", "[a]"]
    if isinstance(value, bool):
        return ["maybe", "3", "[true]", "null", "{a: 1}"]
    if isinstance(value, (int, float)) or (key.startswith("method.") and "${" in str(value)):  # of the pair's
        whole = ["1.5", "-3"] if isinstance(value, int) else []
        return ["abc", "''", "[a]", "{a: 1}", "nan", "-inf", "true", *whole]
    if isinstance(value, str):
        nullable = [] if key.endswith("sha256") else ["null"]
        return ["[a]", "{a: 1}", *nullable, *(["3"] if value != "auto" else [])]
    if isinstance(value, list):
        return ["abc", "{a: 1}", "null", "[{a: 1}]"]
    return ["{a: 1}", "[[1]]"]


MANGLED = ["{}", "{}=[1", "{}={{a: 1", "{}='x", '{}="x', "{}x=1", "+{}x=1", "ü{}=1", "{}*=1", "={}"]
"""What becomes of a setting under clumsy hands."""


def commands(known: Mapping[str, Any], seed: int, count: int) -> Iterator[tuple[str, str]]:
    """Keys, and a wrong argument for each."""
    rng = random.Random(seed)
    for _ in range(count):
        key = rng.choice(sorted(known))
        if rng.random() < 0.3:
            yield key, rng.choice(MANGLED).format(key)
        else:
            yield key, f"{key}={rng.choice(bad_values(key, known[key]))}"


def chosen(key: str) -> str:
    """The method that a setting belongs to, or any."""
    return f"method=[{key.split('.')[1]}]" if key.startswith("method.") else "method=[kd]"


def written(value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{written(item)}' for key, item in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fills with the names of the cells that would be trained now; none is."""
    names: list[str] = []

    def run(self: Bench, cells: Sequence[Cell], **more: Any) -> dict[str, Exception]:
        names.extend(cell.name for cell in cells)
        return {cell.id: UserError("not in this test") for cell in cells}

    monkeypatch.setattr(Bench, "run", run)
    return names


def problems(result: Result, trained: list[str]) -> list[str]:
    found = []
    if trained:
        return ["accepted"]
    if result.code != 1:
        found.append(f"exit code {result.code}")
    if len(result.messages) != 1:
        found.append(f"{len(result.messages)} sentences")
    for message in result.messages:
        if INTERNALS.search(message) or "Traceback" in message or "this is a bug" in message:
            found.append("internals")
        if len(message) > LONGEST:
            found.append("too long")
    return found


@pytest.fixture
def known() -> dict[str, Any]:
    """All settings, but for those of Hydra's; a list of methods is a group's choice and none."""
    return settings([METHODS])


@pytest.mark.parametrize("seed", range(2))
def test_what_is_wrong_is_told_before_anything_trains(
    kd: Kdbench, known: dict[str, Any], trained: list[str], seed: int
) -> None:
    assert len(known) > 100
    wrong = {}
    for key, argument in commands(known, seed, 25):
        trained.clear()
        result = kd("run", chosen(key), *SMALL, argument)
        if found := problems(result, trained):
            wrong[argument] = found, result.messages
    assert not wrong, "\n".join(f"{argument}: {what}" for argument, what in wrong.items())


def test_what_is_right_is_trained(kd: Kdbench, known: dict[str, Any], trained: list[str]) -> None:
    rng = random.Random(0)
    keys = [key for key, value in known.items() if "*" not in key and "${" not in str(value)]
    for key in rng.sample(sorted(keys), 12):
        trained.clear()
        result = kd("run", chosen(key), *SMALL, f"{key}={written(known[key])}")
        assert trained, (key, result)
