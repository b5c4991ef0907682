"""Mimicking logits (Ba & Caruana, "Do deep nets really need to be deep?", NIPS 2014, arXiv:1312.6184)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import in_float32
from kdbench.method import Method
from kdbench.taps import Out

Variant = Literal["sum", "mean"]


@in_float32
def logits_mse_loss(student: Tensor, teacher: Tensor, variant: Variant = "sum") -> Tensor:
    """Squared distance of raw logits (B, K), before the softmax and without a temperature.

    ``sum`` (the paper, equation 1): 1 / (2B) · Σ_b ‖s_b - t_b‖².
    ``mean`` (AberHu/Knowledge-Distillation-Zoo): 1 / (B K) · Σ_bk (s_bk - t_bk)², that is 2 / K times ``sum``.
    """
    squares = (student - teacher).square()
    return squares.mean() if variant == "mean" else 0.5 * squares.sum(1).mean()


class LogitsMSE(Method):
    """See `logits_mse_loss`; as in the paper the student sees no labels."""

    leaf = "logits/softened-labels"
    paper = "ba2014deep"
    title = "Mimic logits"
    needs = frozenset({"teacher"})
    terms = ("mimic",)
    survey: ClassVar = {
        "description": "raw logits of one teacher, no labels",
        "objective": "½ ‖t - s‖²",
    }

    def __init__(self, variant: Variant = "sum", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.variant = variant

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {"mimic": logits_mse_loss(s.logits, t.logits, self.variant)}
