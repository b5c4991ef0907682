"""The student alone: plain supervision. Also how teachers are trained."""

from __future__ import annotations

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.method import Method
from kdbench.taps import Out


class Scratch(Method):
    """Supervised training without any distillation: the baseline that every gain is measured against.

    L is the loss of the task: cross-entropy, of images or of pixels, or the distance of depths.
    """

    leaf = "controls"
    paper = ""
    title = "Scratch"
    control = "scratch"
    needs = frozenset({"labels"})
    tasks = frozenset({"classification", "segmentation", "depth"})
    terms = ("ce",)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {"ce": self.task.loss(s.logits, batch.y)}
