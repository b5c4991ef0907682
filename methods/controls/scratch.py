"""The student alone: plain cross-entropy. Also how teachers are trained."""

from __future__ import annotations

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy
from kdbench.method import Method
from kdbench.taps import Out


class Scratch(Method):
    """Supervised training without any distillation: the baseline that every gain is measured against."""

    leaf = "controls"
    paper = ""
    title = "Scratch"
    control = "scratch"
    needs = frozenset({"labels"})
    terms = ("ce",)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {"ce": cross_entropy(s.logits, batch.y)}
