"""Pixel-wise distillation, of structured knowledge distillation (Liu et al., CVPR 2019, arXiv:1903.04197)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method
from kdbench.taps import Out


@in_float32
def pixel_wise_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """-Σ_c softmax(t) log softmax(s) at every pixel, averaged over pixels and images.

    `student` and `teacher` are logits (B, K, H, W); no gradient reaches `teacher`. Without temperature; equal to the KL
    divergence but for the teacher's entropy, a constant. The authors' code *sums* over the images of a batch.
    """
    return cross_entropy(student, teacher.detach().softmax(1))


class PixelWise(Method):
    """L = task(y, s) + λ · `pixel_wise_loss`(s, t), the first of three terms of structured distillation."""

    leaf = "applications/segmentation"
    paper = "liu2019structured"
    title = "Pixel-wise KD"
    terms = ("task", "pixel")
    tasks = frozenset({"segmentation"})
    survey: ClassVar = {
        "task": "segmentation",
        "knowledge": "class probabilities of every pixel",
        "objective": "CE(y, s) + λ CE(t, s) at every pixel",
    }

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {"task": self.task.loss(s.logits, batch.y), "pixel": pixel_wise_loss(s.logits, t.logits)}
