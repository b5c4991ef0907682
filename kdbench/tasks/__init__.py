"""Tasks: what is asked of a network, and how it is measured on held-out data; see `kdbench.tasks.base`."""

from __future__ import annotations

from kdbench.tasks.base import Meter, Task
from kdbench.tasks.classification import Classification
from kdbench.tasks.depth import Depth
from kdbench.tasks.episodes import Episodes
from kdbench.tasks.incremental import ClassIncremental, DomainIncremental
from kdbench.tasks.lookup import TASKS, task_for, task_of
from kdbench.tasks.policy import GaussianPolicy, Policy
from kdbench.tasks.robust import PGD, Robust
from kdbench.tasks.segmentation import Segmentation

__all__ = [
    "PGD",
    "TASKS",
    "ClassIncremental",
    "Classification",
    "Depth",
    "DomainIncremental",
    "Episodes",
    "GaussianPolicy",
    "Meter",
    "Policy",
    "Robust",
    "Segmentation",
    "Task",
    "task_for",
    "task_of",
]
