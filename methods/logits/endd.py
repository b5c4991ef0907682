"""Ensemble distribution distillation (Malinin, Mlodozeniec, Gales, ICLR 2020, arXiv:1905.00076)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import in_float32
from kdbench.method import Method
from kdbench.settings import Share, Temperature
from kdbench.taps import Out, Spec
from methods.multi_teacher.average import all_of_one_mind

LARGEST = 60.0
"""Of logarithms of concentrations: beyond, log-gammas of float64 have no digits left for their differences."""


@in_float32
def dirichlet_loss(student: Tensor, members: Sequence[Tensor], temperature: float, smoothing: float = 1e-4) -> Tensor:
    """-log Dir( p_m; α ), averaged over members m and the batch: the student's odds of the ensemble's predictions.

    α = e^(student / T),  p_m = (1 - γ) · softmax(member / T) + γ / K

    -log Dir(p; α) = Σ_c log Γ(α_c) - log Γ(Σ_c α_c) - Σ_c (α_c - 1) · log p_c, a density: it may be negative.
    lennelov/endd-reproduce multiplies by T², jackonelli/ensemble_distr_distillation does not.

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


def annealed(initial: float, epoch: int, cycle: float) -> float:
    """Temperature in an epoch: `initial` for half a cycle (in epochs), linearly to 1 in the other half, then 1."""
    fallen = (epoch - cycle / 2) / (cycle / 2) if cycle else 1.0
    return initial + (1 - initial) * min(max(fallen, 0.0), 1.0)


class EnD2(Method):
    """L = `dirichlet_loss`: the student's logits are log concentrations of a Dirichlet around the teachers.

    Its mean is softmax(s), the ensemble's prediction; its precision says how far the teachers agree. No labels.

    Args:
        temperature: T at first, see `annealed`.
        cycle: the share of the epochs after which it is 1.
        smoothing: γ.
    """

    leaf = "logits/distribution-ensemble"
    paper = "malinin2019ensemble"
    title = "EnD²"
    needs = frozenset({"teachers"})
    terms = ("nll",)
    survey: ClassVar = {
        "description": "a Dirichlet over the predictions of an ensemble",
        "objective": "-log Dir(softmax(t_k / T); exp(s / T))",
    }

    def __init__(
        self, temperature: Temperature = 10.0, cycle: Share = 2 / 3, smoothing: Share = 1e-4, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.temperature, self.cycle, self.smoothing = temperature, cycle, smoothing

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        all_of_one_mind("EnD²", self.teachers)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        temperature = annealed(self.temperature, self.epoch, self.cycle * self.protocol.epochs)
        return {"nll": dirichlet_loss(s.logits, [each.logits for each in t.each], temperature, self.smoothing)}
