"""Losses and transforms that several methods share."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import cross_entropy


def kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T² · KL( softmax(teacher / T) || softmax(student / T) ), summed over classes, averaged over the batch.

    The factor T² keeps the gradient's scale independent of T (Hinton et al. 2015, section 2). Note that
    ``nn.KLDivLoss()`` with its default reduction would divide by the number of classes too.

    Args:
        student, teacher: logits, (B, K).
    """
    log_p = F.log_softmax(student / temperature, dim=1)
    log_q = F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True) * temperature**2


def to_smaller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps (B, C, H, W), the larger one average-pooled to the size of the smaller (as in RepDistiller)."""
    if a.shape[2] > b.shape[2]:
        return F.adaptive_avg_pool2d(a, (b.shape[2], b.shape[3])), b
    if a.shape[2] < b.shape[2]:
        return a, F.adaptive_avg_pool2d(b, (a.shape[2], a.shape[3]))
    return a, b


__all__ = ["cross_entropy", "kl", "to_smaller"]
