"""From what a data set says of its task to the task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from kdbench.errors import UserError, nearest
from kdbench.targets import imported
from kdbench.tasks.base import Task
from kdbench.tasks.classification import Classification
from kdbench.tasks.depth import Depth
from kdbench.tasks.episodes import Episodes
from kdbench.tasks.incremental import ClassIncremental, DomainIncremental
from kdbench.tasks.policy import GaussianPolicy, Policy
from kdbench.tasks.robust import Robust
from kdbench.tasks.segmentation import Segmentation

if TYPE_CHECKING:
    from kdbench.data.batch import DataSpec

OURS: Mapping[str, type[Task]] = {
    "classification": Classification,
    "class-incremental": ClassIncremental,
    "domain-incremental": DomainIncremental,
    "few-shot": Episodes,
    "robust": Robust,
    "segmentation": Segmentation,
    "depth": Depth,
    "policy": Policy,
    "gaussian-policy": GaussianPolicy,
}
"""Short names of the package's own tasks; all others are named by their path."""
TASKS = {task.name: task.primary.name for name, task in OURS.items() if name == task.name}
"""What methods may say in their `tasks` -> the primary measure."""


def task_of(name: str, settings: Mapping[str, Any] | None = None, where: str = "the data set") -> Task:
    """The task of a data set.

    Args:
        name: a short name (``segmentation``) or the path of a class (``mypkg.MyTask``).
        settings: its arguments, such as the value of unlabelled pixels.
        where: who named it, for the sentence about what is wrong.

    Raises:
        UserError: there is no such task, or it has no such settings.
    """
    task = OURS.get(name) or _imported(name, where)
    try:
        return task(**settings or {})
    except TypeError as error:
        told = str(error).removeprefix(f"{task.__name__}.__init__() ")
        raise UserError(f"{where}: settings that the task '{name}' does not take ({told}): mend them.") from None


def task_for(data: DataSpec) -> Task:
    """What is asked of a network on these data.

    Raises:
        UserError: as `task_of`.
    """
    return task_of(data.task, data.settings, data.name)


def _imported(path: str, where: str) -> type[Task]:
    if "." not in path:
        raise UserError(f"{where}: there is no task '{path}' here: {nearest(path, sorted(OURS))}")
    found = imported(where, path, "its path")
    if not isinstance(found, type) or not issubclass(found, Task):
        raise UserError(f"{where}: {path} is not a kdbench.tasks.Task: derive the class from it.")
    return found
