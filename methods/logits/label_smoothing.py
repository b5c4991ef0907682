"""Label smoothing (Szegedy et al., CVPR 2016, arXiv:1512.00567): a hand-made, uniform teacher."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import in_float32
from kdbench.method import Method
from kdbench.taps import Out

Variant = Literal["uniform", "wrong_classes"]


@in_float32
def label_smoothing_loss(logits: Tensor, y: Tensor, epsilon: float, variant: Variant = "uniform") -> Tensor:
    """Cross-entropy with softened labels q, summed over classes, averaged over the batch.

    ``uniform`` (the paper):  q = (1 - ε) · onehot(y) + ε / K  on all K classes.
    ``wrong_classes`` (yuanli2333/Teacher-free-Knowledge-Distillation): q = 1 - ε on y, ε / (K - 1) on each other class;
    equal to ``uniform`` with ε · K / (K - 1).

    Args:
        logits: (B, K).
        y: class indices (B,).
    """
    classes = logits.shape[1]
    if variant == "wrong_classes":
        epsilon = epsilon * classes / (classes - 1)
    q = torch.full_like(logits, epsilon / classes)
    q.scatter_(1, y[:, None], 1 - epsilon + epsilon / classes)
    return -(q * logits.log_softmax(1)).sum(1).mean()


class LabelSmoothing(Method):
    """See `label_smoothing_loss`; the control that separates dark knowledge from mere smoothing."""

    leaf = "logits/softened-labels"
    paper = "szegedy2016rethinking"
    title = "Label smoothing"
    extension = True
    control = "smoothing"
    needs = frozenset({"labels"})
    terms = ("ce",)
    survey: ClassVar = {
        "description": "a uniform teacher made by hand",
        "objective": "CE((1 - ε) y + ε/K, s)",
    }

    def __init__(
        self, epsilon: Annotated[float, Field(ge=0, lt=1)] = 0.1, variant: Variant = "uniform", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.epsilon, self.variant = epsilon, variant

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {"ce": label_smoothing_loss(s.logits, batch.y, self.epsilon, self.variant)}
