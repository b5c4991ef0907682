"""Ensemble distribution distillation (Malinin, Mlodozeniec, Gales, ICLR 2020, arXiv:1905.00076)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdbench.losses import in_float32

LARGEST = 60.0
"""Of logarithms of concentrations: beyond, log-gammas of float64 have no digits left for their differences."""


@in_float32
def dirichlet_loss(student: Tensor, members: Sequence[Tensor], temperature: float, smoothing: float = 1e-4) -> Tensor:
    """-log Dir( p_m; α ), averaged over members m and the batch: the student's odds of the ensemble's predictions.

    α = e^(student / T),  p_m = (1 - γ) · softmax(member / T) + γ / K

    -log Dir(p; α) = Σ_c log Γ(α_c) - log Γ(Σ_c α_c) - Σ_c (α_c - 1) · log p_c, a density: it may be negative.
    lennelov/endd-reproduce multiplies by T², jackonelli/ensemble_distr_distillation does not, nor does the paper.

    Args:
        student, members: logits, (B, K).
        temperature: T of both.
        smoothing: γ, so that no probability is zero.
    """
    log_alpha = (student.double() / temperature).clamp(-LARGEST, LARGEST)  # log-gammas of the large nearly cancel
    alpha = log_alpha.exp()
    p = torch.stack([(member.double() / temperature).softmax(1) for member in members])
    log_p = ((1 - smoothing) * p + smoothing / p.shape[2]).log().mean(0)
    log_density = alpha.sum(1).lgamma() - alpha.lgamma().sum(1) + ((alpha - 1) * log_p).sum(1)
    return -log_density.mean().to(student.dtype)
