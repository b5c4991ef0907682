"""Self-distillation amplifies regularization in Hilbert space (Mobahi et al., NeurIPS 2020, arXiv:2002.05715)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.taps import Out
from methods.learning.anc import logits_loss
from methods.teacher_free.ban import BAN


class SelfRegression(BAN):
    """Rounds of regression on the outputs of the round before, where labels are seen in the first alone.

    Round 1:      L = ‖ onehot(y) - s ‖²
    Round k > 1:  L = ‖ s_{k-1} - s ‖²

    with the weights of ``first`` and ``regression``, each from a fresh start; see `logits_loss`. The regulariser of the
    paper's equation 1 is what the protocol has, weight decay and a limited training: each round fits by fewer
    directions of the function space, which helps before it harms. The rounds share the protocol's epochs.

    Args:
        rounds: networks trained one after the other; the last is deployed.
    """

    paper = "mobahi2020self"
    title = "Self-distillation by regression"
    terms = ("first", "regression")  # type: ignore[assignment]
    survey: ClassVar = {**BAN.survey, "logits_hints": "outputs, without a softmax"}

    def __init__(self, rounds: Annotated[int, Field(ge=2)] = 2, **kwargs: Any) -> None:
        super().__init__(generations=rounds, **kwargs)

    def losses(self, s: Out, t: Out | None, batch: Batch) -> dict[str, Tensor]:
        if t is None:
            onehot = F.one_hot(batch.y, s.logits.shape[1]).to(s.logits.dtype)
            return {"first": logits_loss(s.logits, onehot)}
        return {"regression": logits_loss(s.logits, t.logits)}
