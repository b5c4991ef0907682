"""Dynamic temperature distillation (Wen, Lai, Qian, arXiv 2019, arXiv:1911.07471)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method
from kdbench.settings import Positive, Temperature
from kdbench.taps import Out

Weighting = Literal["flsw", "cwsm"]
COOLEST = 1.0
"""No temperature falls below; ours, for the equation would let it reach zero where β is large."""


@torch.no_grad()
@in_float32
def confusion(student: Tensor, teacher: Tensor, weighting: Weighting, gamma: float) -> Tensor:
    """How confusing each sample is, w, (B,), of logits (B, K).

    ``flsw`` (focal loss style): (1 - <s, t> / (‖s‖ ‖t‖))^γ
    ``cwsm`` (confidence-weighted, from the student's maximum): 1 / max_k softmax(s)_k
    """
    if weighting == "cwsm":
        return 1 / student.softmax(1).amax(1)
    return (1 - (F.normalize(student, dim=1) * F.normalize(teacher, dim=1)).sum(1)).clamp(min=0) ** gamma


@torch.no_grad()
def temperatures(weights: Tensor, base: float, bias: float) -> Tensor:
    """T_x = T_0 + β · (mean of w over the batch - w_x), (B,): a confusing sample has a sharper target."""
    return (base + bias * (weights.mean() - weights)).clamp(min=COOLEST)


@in_float32
def tempered_loss(student: Tensor, teacher: Tensor, temperature: Tensor) -> Tensor:
    """T_x² · KL( softmax(t / T_x) || softmax(s / T_x) ), summed over classes, averaged over the batch.

    Args:
        student, teacher: logits, (B, K).
        temperature: of each sample, (B,).
    """
    log_p, log_q = ((z / temperature[:, None]).log_softmax(1) for z in (student, teacher))
    return (temperature.square() * (log_q.exp() * (log_q - log_p)).sum(1)).mean()


class DynamicTemperature(Method):
    """L = (1 - α) · CE(y, s) + α · `tempered_loss`, with α in ``weights`` and a temperature for each sample.

    Args:
        temperature: T_0.
        bias: β, how far temperatures part.
        weighting: what tells that a sample is confusing.
        gamma: γ of ``flsw``; ``cwsm`` has no use for it.
    """

    leaf = "logits/softened-labels"
    paper = "wen2019preparing"
    title = "DTD"
    terms = ("ce", "kd")
    survey: ClassVar = {
        "description": "softened probabilities, at a temperature of each sample",
        "objective": "(1 - α) CE(y, s) + α T_x² KL(t/T_x, s/T_x)",
    }

    def __init__(
        self,
        temperature: Temperature = 4.0,
        bias: Positive = 4.0,
        weighting: Weighting = "flsw",
        gamma: Positive = 2.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.temperature, self.bias, self.weighting, self.gamma = temperature, bias, weighting, gamma

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        weights = confusion(s.logits, t.logits, self.weighting, self.gamma)
        of_each = temperatures(weights, self.temperature, self.bias)
        return {"ce": cross_entropy(s.logits, batch.y), "kd": tempered_loss(s.logits, t.logits, of_each)}
