"""BAN with confidences alone, CWTM (Furlanello et al., ICML 2018, arXiv:1805.04770)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy, in_float32
from kdbench.taps import Out
from methods.teacher_free.ban import BAN


@in_float32
def confidence_weighted_loss(student: Tensor, teacher: Tensor, y: Tensor) -> Tensor:
    """Σ_i w_i · CE(y_i, s_i) / Σ_i w_i,  w_i = max softmax(t_i), of logits (B, K) and class indices (B,).

    The paper gives its gradient. No gradient reaches `teacher`.
    """
    weight = teacher.detach().softmax(1).amax(1)
    return (weight * cross_entropy(student, y, reduction="none")).sum() / weight.sum()


class CWTM(BAN):
    """A past self says how much each sample counts, and nothing else: confidence weighted by teacher max.

    Generation 1:      L = CE(y, s)
    Generation k > 1:  L = Σ_i w_i · CE(y_i, s_i) / Σ_i w_i,  w_i = max softmax(s_{k-1})

    What BAN gains beside it is what it learns from classes other than the likeliest.

    Args:
        generations: networks trained one after the other.
    """

    title = "BAN-CWTM"
    terms = ("first", "cwtm")  # type: ignore[assignment]
    survey: ClassVar = {**BAN.survey, "logits_hints": "the largest probability, as a weight"}

    def __init__(self, generations: Annotated[int, Field(ge=2)] = 2, **kwargs: Any) -> None:
        super().__init__(generations=generations, **kwargs)

    def losses(self, s: Out, t: Out | None, batch: Batch) -> dict[str, Tensor]:
        if t is None:
            return {"first": cross_entropy(s.logits, batch.y)}
        return {"cwtm": confidence_weighted_loss(s.logits, t.logits, batch.y)}
