"""Adversarially robust distillation (Goldblum, Fowl, Feizi, Goldstein, AAAI 2020, arXiv:1905.09747)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kdbench.losses import cross_entropy


def pgd(
    logits: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    start: Tensor,
    *,
    eps: Tensor,
    step: Tensor,
    steps: int,
    low: Tensor,
    high: Tensor,
) -> Tensor:
    """Images in the box of radius `eps` around `x` for which the cross-entropy is large: projected gradient ascent.

    z ← clip( z + step · sign ∇ CE(logits(z), y) ) to x ± eps and to the values that pixels can have, `steps` times from
    z = x + start. No gradient flows through the result.

    Args:
        x: images, (B, C, H, W); `eps`, `step`, `low` and `high` are in their units, and broadcast to them.
        start: noise within ± eps.
    """
    x = x.detach()
    z = x + start
    for _ in range(steps):
        z.requires_grad_()
        with torch.enable_grad():
            loss = cross_entropy(logits(z), y, reduction="sum")
        (slope,) = torch.autograd.grad(loss, z)
        z = (z.detach() + step * slope.sign()).clamp(x - eps, x + eps).clamp(low, high)
    return z
