"""Students that share a trunk: branches behind the last stage but one of a network."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from kdbench.errors import DoesNotFit
from kdbench.taps import Spec


def last_stage_but_one(student: Spec) -> str:
    """The tap where branches part, as in ResNets of three stages (Lan et al. 2018; Chen et al. 2020).

    Raises:
        DoesNotFit: there is no such stage.
    """
    stages = student.all("stage")
    if len(stages) < 2:
        raise DoesNotFit(f"{student.name} has fewer than two stages to share: choose another student.")
    return stages[-2]


def branches(spawn: Callable[[int], nn.Module], after: str, n: int) -> nn.ModuleList:
    """Fresh ends of the student's architecture behind a tap: each makes of it (``embed`` and) ``logits``.

    Raises:
        DoesNotFit: the student cannot be cut.
    """
    found = []
    for net in map(spawn, range(1, n + 1)):
        if not hasattr(net, "tail"):
            raise DoesNotFit("this student cannot be cut behind a stage: choose a pair of the zoo's image classifiers.")
        found.append(net.tail(after))  # type: ignore[operator]
    return nn.ModuleList(found)
