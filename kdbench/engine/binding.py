"""Bind methods to networks, real or untrained: what does not fit is known before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from kdbench.data.batch import DataSpec
from kdbench.engine.cell import Cell
from kdbench.engine.seeding import key, seeded
from kdbench.errors import UserError
from kdbench.method import Method, Snapshot
from kdbench.teaching.adapter import Adapter
from kdbench.teaching.teachers import create


@dataclass(frozen=True)
class Lecturer:
    """A teacher as a method is bound to it; `classes` as in `kdbench.taps.Spec`."""

    name: str
    net: nn.Module
    classes: tuple[int, ...] | None = None


def network(name: str, spec: DataSpec, seed: int, k: int = 0) -> nn.Module:
    """The k-th network of a seed: the same for every method, so that their differences are paired."""
    with seeded(seed, "student", name, k):
        return create(name, spec)


def bind(cell: Cell, lecturers: Sequence[Lecturer], spec: DataSpec) -> Method:
    """A fresh method object of the cell, with its student.

    Raises:
        DoesNotFit: the method cannot serve this pair or data set.
        UserError: a setting is wrong.
    """
    method, net = cell.make_method(), network(cell.student, spec, cell.seed)
    if cell.start:
        net.load_state_dict({**net.state_dict(), **cell.start})
    with seeded(cell.seed, "adapters", cell.name):
        return method.bind(
            net,
            [each.net for each in lecturers],
            spec,
            names=(cell.student, *(each.name for each in lecturers)),
            classes=[each.classes for each in lecturers],
            spawn=lambda k: network(cell.student, spec, cell.seed, k),
            seed=key(cell.seed, "method", cell.name),
        )


def kept_state(cell: Cell, method: Method) -> dict[str, Tensor]:
    """What is kept of a cell whose student teaches: the weights of a network of its architecture.

    Raises:
        UserError: the method deploys more than such a network.
    """
    net = method.deployed()
    state = (net.net if isinstance(net, Snapshot) else net).state_dict()
    if state.keys() != network(cell.student, method.data, cell.seed).state_dict().keys():
        raise UserError(
            f"{type(method).__name__} deploys more than a {cell.student}, so its student cannot be kept as a teacher: "
            "choose another teacher.method."
        )
    return state


def untrained(name: str, learned: DataSpec, adapter: Adapter) -> Lecturer:
    """A stand-in for a teacher that costs hours."""
    with seeded("rehearsal"):
        net = create(name, learned)
    return Lecturer(name, adapter.wrap(net), adapter.known)
