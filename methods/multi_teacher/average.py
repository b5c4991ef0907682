"""Averaged soft targets of several teachers (You et al., KDD 2017, DOI 10.1145/3097983.3098135)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kdbench.losses import in_float32, kl, kl_of_logs


@torch.no_grad()
def spread(teachers: Sequence[Tensor], temperature: float) -> Tensor:
    """T² · mean over teachers of KL( q_k || q̄ ): how far teachers (logits, each (B, K)) are from their average.

    Batch mean. In float64, for of nearly equal distributions differences of logarithms would be left with no digits.
    """
    log_q = torch.stack([(teacher.double() / temperature).log_softmax(1) for teacher in teachers])
    log_mean = log_q.logsumexp(0) - math.log(len(teachers))
    return torch.stack([kl_of_logs(log_mean, log_k) for log_k in log_q]).mean() * temperature**2


@in_float32
def members_loss(student: Tensor, teachers: Sequence[Tensor], temperature: float) -> Tensor:
    """Mean over teachers of T² · KL( q_k || softmax(student / T) ), of logits (B, K): the average of losses."""
    return torch.stack([kl(student, teacher, temperature) for teacher in teachers]).mean()


@in_float32
def average_loss(student: Tensor, teachers: Sequence[Tensor], temperature: float = 4.0) -> Tensor:
    """T² · KL( q̄ || softmax(student / T) ), q̄ = mean over teachers of softmax(teacher / T): the loss of the average.

    Summed over classes, averaged over the batch; probabilities are averaged, not logits (B, K). It is `members_loss`
    less `spread`, a constant: for every p, mean_k KL(q_k || p) = KL(q̄ || p) + mean_k KL(q_k || q̄).
    """
    return members_loss(student, teachers, temperature) - spread(teachers, temperature).to(student.dtype)
