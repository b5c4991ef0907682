"""Tasks: what is asked of a network, and how it is measured on held-out data; see `kdbench.tasks.base`."""

from __future__ import annotations

from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from kdbench.tasks.base import Meter, Task
from kdbench.tasks.classification import Classification
from kdbench.tasks.depth import Depth
from kdbench.tasks.episodes import Episodes
from kdbench.tasks.incremental import ClassIncremental
from kdbench.tasks.lookup import TASKS, task_of
from kdbench.tasks.policy import Policy
from kdbench.tasks.robust import PGD, Robust
from kdbench.tasks.segmentation import Segmentation


def metrics(task: str, num_classes: int) -> MetricCollection:
    """Metrics of a task as fractions; classification has ``top1``, and ``top5`` with more than five classes."""
    assert task in TASKS, task
    names = {"top1": 1, "top5": 5} if num_classes > 5 else {"top1": 1}
    return MetricCollection(
        {name: MulticlassAccuracy(num_classes, top_k=k, average="micro") for name, k in names.items()}
    )


__all__ = [
    "PGD",
    "TASKS",
    "ClassIncremental",
    "Classification",
    "Depth",
    "Episodes",
    "Meter",
    "Policy",
    "Robust",
    "Segmentation",
    "Task",
    "metrics",
    "task_of",
]
