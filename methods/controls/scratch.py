"""The student alone, on labels: how teachers are trained, too."""

from __future__ import annotations

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.method import Method
from kdbench.taps import Out


class Scratch(Method):
    """L = the task's supervised loss (cross-entropy of classes): the baseline that every gain is measured against."""

    leaf = "controls"
    paper = ""
    title = "Scratch"
    control = "scratch"
    needs = frozenset({"labels"})
    terms = ("ce",)
    tasks = frozenset({"classification", "segmentation", "depth"})

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {"ce": self.task.loss(s.logits, batch.y)}
