"""Tasks: what is measured on held-out data, and which measure is ranked."""

from __future__ import annotations

from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

TASKS = {"classification": "top1"}
"""Task name -> its primary metric."""


def metrics(task: str, num_classes: int) -> MetricCollection:
    """Metrics of a task as fractions; classification has ``top1``, and ``top5`` with more than five classes."""
    assert task in TASKS, task
    names = {"top1": 1, "top5": 5} if num_classes > 5 else {"top1": 1}
    return MetricCollection(
        {name: MulticlassAccuracy(num_classes, top_k=k, average="micro") for name, k in names.items()}
    )
