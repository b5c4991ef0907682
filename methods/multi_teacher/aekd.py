"""Agree to disagree: adaptive ensemble distillation in gradient space (Du et al., NeurIPS 2020).

https://proceedings.neurips.cc/paper/2020/hash/91c77393975889bd08f301c9e13a44b7-Abstract.html
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import cross_entropy, in_float32, kl
from kdbench.settings import Temperature
from kdbench.taps import Out, Spec
from methods.multi_teacher.pool import Pool, logits_of

Tolerance = Annotated[float, Field(gt=0, le=1)]
"""C, the largest weight of one teacher: the less, the more teachers are heard; 1/m and below hears all alike."""
MOST = 8
"""So many teachers have 3^8 faces of the programme to look at, 4 MB of numbers."""
RIDGE = 1e-10
"""Relative to the longest gradient's square; of teachers who say the same, each gets as much."""


@torch.no_grad()
def min_norm_weights(gradients: Tensor, tolerance: float) -> Tensor:
    """argmin_w ‖Σ_k w_k g_k‖² with 0 <= w_k <= max(C, 1/m) and Σ_k w_k = 1 (equation 8), (m,), float64, constants.

    It is the dual of a one-class SVM with a linear kernel, which AnTuo1998/AE-KD hands to a solver on the CPU. Here the
    optimum is the best of the feasible points at which a face of the polytope has its minimum: on a face each weight
    is 0, C or free, and those that are free solve the linear system

        (G w)_k = λ for each free k,  Σ_k w_k = 1,   with G = g gᵀ.

    Args:
        gradients: g, (m, D).
        tolerance: C.
    """
    g = gradients.double()
    m, cap = len(g), max(tolerance, 1 / len(g))
    gram = g @ g.T
    one = torch.eye(m, dtype=g.dtype, device=g.device)
    gram = gram / gram.diagonal().amax().clamp(min=torch.finfo(g.dtype).tiny) + RIDGE * one

    face = torch.cartesian_prod(*[torch.arange(3, device=g.device)] * m).view(-1, m)  # 0, C or free
    free = (face == 2).to(g)
    system = g.new_zeros(len(face), m + 1, m + 1)
    system[:, :m, :m] = free[:, :, None] * gram + (1 - free)[:, :, None] * one
    system[:, :m, m] = -free
    system[:, m, :m] = 1
    right = torch.cat([cap * (face == 1).to(g), g.new_ones(len(face), 1)], dim=1)
    w = torch.linalg.solve_ex(system, right).result[:, :m]  # one without anything free is singular: not a number

    slack = 1e-9
    feasible = ((w >= -slack) & (w <= cap + slack)).all(1)
    norms = torch.where(feasible, ((w @ gram) * w).sum(1), torch.inf)
    return w[norms.argmin()].clamp(0, cap)


@torch.no_grad()
def balanced_weights(gradients: Tensor, tolerance: float) -> Tensor:
    """`min_norm_weights` of gradients (m, D) of length one, divided by their lengths, with sum 1."""
    length = gradients.double().norm(dim=1)
    tiny = torch.finfo(length.dtype).tiny
    length = length.clamp(min=1e-12 * length.amax()).clamp(min=tiny)
    w = min_norm_weights(gradients.double() / length[:, None], tolerance) / (length / length.amax())
    return w / w.sum()


@torch.no_grad()
def logit_gradients(student: Tensor, teachers: Sequence[Tensor], temperature: float) -> Tensor:
    """Batch means of softmax(s / T) - softmax(t_k / T), (m, K), of logits (B, K), in float64.

    These are the gradients by s of the losses T² · KL( t_k || s ), but for a factor that all teachers share.
    """
    p = (student.double() / temperature).softmax(1)
    return torch.stack([(p - (teacher.double() / temperature).softmax(1)).mean(0) for teacher in teachers])


@in_float32
def aekd_loss(
    student: Tensor, teachers: Sequence[Tensor], temperature: float = 4.0, tolerance: float = 0.6, unit: bool = False
) -> Tensor:
    """Σ_k w_k · T² · KL( softmax(t_k / T) || softmax(s / T) ), of logits (B, K), with `min_norm_weights` w.

    The direction that all teachers agree on most: the shortest of the weighted means of their gradients. Summed over
    classes, averaged over the batch; gradients are averaged over the batch before they are compared.

    Args:
        tolerance: C.
        unit: ``--svm_norm`` of the authors' code: gradients are compared at length one, see `balanced_weights`.
    """
    weigh = balanced_weights if unit else min_norm_weights
    w = weigh(logit_gradients(student, teachers, temperature), tolerance)
    return w.to(student.dtype) @ torch.stack([kl(student, teacher, temperature) for teacher in teachers])


class AEKD(Pool):
    """L = CE(y, s) + α · `aekd_loss` over all teachers, weighed anew in each step.

    The authors' code with its defaults finds such weights only where gradients are large: for those of a usual batch
    its solver is content with where it starts. Here they are the optimum.

    Args:
        temperature: T.
        tolerance: C.
        unit: see `aekd_loss`.
    """

    leaf = "multi-teacher/ensemble-of-logits"
    paper = "du2020agree"
    title = "AE-KD"
    extension = True
    survey: ClassVar = {
        "ensemble_logits": "weighted for a short mean gradient",
        "ensemble_features": "none",
        "unify_data": "no",
        "customize": "no",
        "peers": "no",
        "online": "no",
        "objective": "CE + min-norm weighted KL",
    }

    def __init__(
        self, temperature: Temperature = 4.0, tolerance: Tolerance = 0.6, unit: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(temperature, **kwargs)
        self.tolerance, self.unit = tolerance, unit

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        super().build(student, teacher, data)
        not_too_many(self.title, self.teachers)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        kd = aekd_loss(s.logits, logits_of(t), self.temperature, self.tolerance, self.unit)
        return {"ce": cross_entropy(s.logits, batch.y), "kd": kd}


def not_too_many(method: str, teachers: Sequence[Spec]) -> None:
    """Raises `DoesNotFit` if the programme of the weights is too large to be solved in every step."""
    if len(teachers) > MOST:
        raise DoesNotFit(f"{method} weighs up to {MOST} teachers, and there are {len(teachers)}: leave some out.")
