"""Weighted soft labels, a bias-variance tradeoff (Zhou et al., ICLR 2021, arXiv:2102.00650)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method
from kdbench.settings import Temperature
from kdbench.taps import Out

EPS = 1e-7
"""Added to the teacher's loss: bellymonster/Weighted-Soft-Label-Distillation, knowledge_distiller.py."""


@torch.no_grad()
def sample_weights(student: Tensor, teacher: Tensor, y: Tensor) -> Tensor:
    """1 - exp( -CE(y, s) / CE(y, t) ), (B,), of logits (B, K) without temperature and labels (B,).

    A sample on which the student is already better than its teacher adds more variance than it takes bias away.
    """
    ours, theirs = (cross_entropy(z, y, reduction="none") for z in (student, teacher))
    return 1 - (-ours / (theirs + EPS)).exp()


@in_float32
def wsld_loss(student: Tensor, teacher: Tensor, y: Tensor, temperature: float) -> Tensor:
    """T² · mean over the batch of w · H( softmax(t / T), softmax(s / T) ), H summed over classes; w: `sample_weights`.

    A cross-entropy: its value has the entropy of the teacher, weighted, which has no gradient.
    """
    target = (teacher / temperature).softmax(1)
    soft = cross_entropy(student / temperature, target, reduction="none")
    return temperature**2 * (sample_weights(student, teacher, y) * soft).mean()


class WSLD(Method):
    """L = CE(y, s) + α · `wsld_loss`."""

    leaf = "logits/softened-labels"
    paper = "zhou2021rethinking"
    title = "WSLD"
    extension = True
    terms = ("ce", "soft")
    survey: ClassVar = {
        "description": "softened probabilities, with a weight for each sample",
        "objective": "CE(y, s) + α w T² CE(t/T, s/T)",
    }

    def __init__(self, temperature: Temperature = 4.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {
            "ce": cross_entropy(s.logits, batch.y),
            "soft": wsld_loss(s.logits, t.logits, batch.y, self.temperature),
        }
