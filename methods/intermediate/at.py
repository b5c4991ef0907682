"""Attention transfer (Zagoruyko & Komodakis, ICLR 2017, arXiv:1612.03928)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32, to_smaller
from kdbench.method import Method
from kdbench.taps import Out, Spec, Taps, aligned


def attention(feature: Tensor, p: float = 2.0) -> Tensor:
    """Q(F) = vec(mean_c |F|^p) / ‖vec(mean_c |F|^p)‖₂ of a map (B, C, H, W), as (B, H·W)."""
    magnitude = feature if p % 2 == 0 else feature.abs()
    return F.normalize(magnitude.pow(p).mean(1).flatten(1), dim=1)


@in_float32
def at_loss(student: Tensor, teacher: Tensor, p: float = 2.0) -> Tensor:
    """Mean over B·H·W of (Q(s) - Q(t))², for maps (B, C, H, W); the larger map is average-pooled to the smaller first.

    The reduction is that of szagoruyko/attention-transfer; the paper's equation 2 has ‖Q(s) - Q(t)‖₂ per sample.
    """
    student, teacher = to_smaller(student, teacher)
    return (attention(student, p) - attention(teacher, p)).square().mean()


class AT(Method):
    """L = CE(y, s) + β · Σ_stages `at_loss`.

    Args:
        p: power of the activations; the larger, the more the strongest places count.
    """

    leaf = "intermediate/features"
    paper = "zagoruyko2016paying"
    title = "AT"
    taps = Taps(student=("stage*",), teacher=("stage*",))
    terms = ("ce", "at")
    added: ClassVar = {"p": 2.0}
    survey: ClassVar = {
        "teacher_transform": "attention map",
        "student_transform": "attention map",
        "knowledge": "spatial attention",
        "position": "end of each stage",
        "distance": "L2 of normalised maps",
        "lost": "channels",
    }

    def __init__(self, p: Annotated[float, Field(ge=1)] = 2.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.p = p

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        self.pairs = aligned(student, teacher)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        at = sum((at_loss(s[a], t[b], self.p) for a, b in self.pairs), start=s.logits.new_zeros(()))
        return {"ce": cross_entropy(s.logits, batch.y), "at": at}
