"""Similarity-preserving knowledge distillation (Tung & Mori, ICCV 2019, arXiv:1907.09682)."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method
from kdbench.taps import Out, Spec, Taps, aligned


def similarity(feature: Tensor) -> Tensor:
    """G = Q Qᵀ with every row divided by its 2-norm, (B, B), of activations Q = (B, C·H·W) (equations 1 and 2)."""
    q = feature.flatten(1)
    return F.normalize(q @ q.T, dim=1)


@in_float32
def sp_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1 / B² · ‖G_t - G_s‖_F² of two activations with B rows each (equation 4, one layer)."""
    return (similarity(teacher) - similarity(student)).square().mean()


class SP(Method):
    """L = CE(y, s) + γ · `sp_loss` on the last map."""

    leaf = "intermediate/features"
    paper = "tung2019similarity"
    title = "SP"
    taps = Taps(student=("stage-1",), teacher=("stage-1",))
    terms = ("ce", "sp")
    survey: ClassVar = {
        "teacher_transform": "Gram matrix of the batch",
        "student_transform": "Gram matrix of the batch",
        "knowledge": "similarity of samples",
        "position": "last stage",
        "distance": "Frobenius",
        "lost": "channels and positions",
    }

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        self.own, self.taught = aligned(student, teacher)[-1]

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {"ce": cross_entropy(s.logits, batch.y), "sp": sp_loss(s[self.own], t[self.taught])}
