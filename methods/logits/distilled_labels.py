"""Learning from noisy labels with distillation (Li et al., ICCV 2017, arXiv:1703.02391)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method
from kdbench.settings import Share
from kdbench.taps import Out


@in_float32
def mixed_label_loss(student: Tensor, teacher: Tensor, y: Tensor, trust: float) -> Tensor:
    """H( λ · y + (1 - λ) · softmax(teacher), softmax(student) ), summed over classes, averaged over the batch.

    Args:
        student, teacher: logits, (B, K).
        y: noisy class indices, (B,).
        trust: λ.
    """
    label = F.one_hot(y, student.shape[1]).to(student.dtype)
    return cross_entropy(student, trust * label + (1 - trust) * teacher.softmax(1))


class DistilledLabels(Method):
    """L = `mixed_label_loss`: labels that are noisy hedge their risk with a teacher that knows a few clean ones.

    The teacher is a network trained on the small clean part of the data alone.

    Args:
        trust: λ, how far a noisy label is believed; 1 is plain training, 0 distils alone.
    """

    leaf = "logits/noisy-labels"
    paper = "li2017learning"
    title = "Distilled noisy labels"
    terms = ("mixed",)
    survey: ClassVar = {
        "description": "noisy labels mixed with a teacher of the clean part",
        "objective": "H(λ y + (1 - λ) softmax(t), s)",
    }

    def __init__(self, trust: Share = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.trust = trust

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {"mixed": mixed_label_loss(s.logits, t.logits, batch.y, self.trust)}
