"""Soft labels by matrix factorisation for UHC (Vongkulbhisal et al., CVPR 2019, arXiv:1904.06062)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import in_float32, kl, kl_of_logs
from kdbench.settings import Count, Positive, Temperature
from kdbench.taps import Out, Spec
from methods.multi_teacher.uhc import UHC

Space = Literal["logits", "probabilities"]


def scattered(teachers: Sequence[Tensor], classes: Sequence[Sequence[int]], num_classes: int) -> tuple[Tensor, Tensor]:
    """What teachers tell, (B, N, K), each in a row over the union of classes, and where they do, (N, K).

    Args:
        teachers: of each over its own classes, (B, K_n).
        classes: C_n, what these are.
    """
    told = torch.stack([t.new_zeros(len(t), num_classes) for t in teachers], dim=1)
    known = told.new_zeros(len(teachers), num_classes)
    for n, (t, own) in enumerate(zip(teachers, classes, strict=True)):
        told[:, n, list(own)] = t
        known[n, list(own)] = 1
    return told, known


def logit_factors(classes: Sequence[Sequence[int]], num_classes: int, ridge: float) -> Tensor:
    """The matrix, (K, Σ_n K_n), that makes u of the teachers' logits z_n, one after the other: float64.

    In logits the factors are sums, for z_n(l) = log q(l) + c_n, and c_n may be anything:

    u, c = argmin Σ_n Σ_{l in C_n} (z_n(l) - u_l - c_n)² + λ Σ_l u_l²

    is linear in z, and the same for all samples. Where teachers have no class in common, each one's logits are centred.

    Args:
        ridge: λ > 0, without which neither c nor what separate teachers have to do with each other is determined.
    """
    rows = [(label, num_classes + n) for n, own in enumerate(classes) for label in own]
    design = torch.zeros(len(rows), num_classes + len(classes), dtype=torch.float64)
    design[torch.arange(len(rows))[:, None], torch.tensor(rows)] = 1
    penalty = torch.zeros(design.shape[1], dtype=torch.float64)
    penalty[:num_classes] = ridge
    return torch.linalg.solve(design.T @ design + penalty.diag(), design.T)[:num_classes]


@torch.no_grad()
@in_float32
def factorised_probabilities(
    teachers: Sequence[Tensor], classes: Sequence[Sequence[int]], factors: Tensor, steps: int = 30
) -> Tensor:
    """q over the union, (B, K), of teachers' probabilities p_n, each (B, K_n): rank-one factors of what is known.

    As p_n(l) = q(l) / Σ_{k in C_n} q(k), the matrix of all p_n(l) is u vᵀ with u = q, where it is known at all:

    u, v = argmin Σ_n Σ_{l in C_n} (p_n(l) - u_l v_n)²  with u, v >= 0,  q = u / Σ_l u_l

    by alternating least squares, which keep factors of what is not negative so; in float64. Of a class that one teacher
    alone knows u_l = p_n(l) / v_n fits for any v: these wait for the last step, or they would hold v.

    Args:
        factors: `logit_factors`, by which those of the teachers' logarithms are the start.
        steps: of alternation.
    """
    tiny = torch.finfo(torch.float64).tiny
    told, known = scattered([p.double() for p in teachers], classes, len(factors))
    shared = known * (known.sum(0) > 1)
    logs = torch.cat([p.double().clamp(min=tiny).log() for p in teachers], dim=1)
    v = 1 / ((logs @ factors.T).softmax(1) @ known.T).clamp(min=1e-100)

    def best_u(v: Tensor) -> Tensor:
        return (told * v[:, :, None]).sum(1) / (v.square() @ known).clamp(min=tiny)

    for _ in range(steps):
        u = best_u(v)
        of_u = u.square() @ shared.T
        v = torch.where(of_u > tiny, (told * shared * u[:, None, :]).sum(2) / of_u.clamp(min=tiny), v)
    u = best_u(v)
    return u / u.sum(1, keepdim=True)


@in_float32
def soft_label_loss(student: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """T² · KL( q || softmax(student / T) ) of logits and probabilities q at that T, both (B, K).

    Summed over classes, averaged over the batch.
    """
    log_q = labels.clamp(min=torch.finfo(labels.dtype).tiny).log().to(student.dtype)
    return kl_of_logs(F.log_softmax(student / temperature, dim=1), log_q) * temperature**2


class FactorisedUHC(UHC):
    """Soft labels over the classes of all teachers, estimated first; the student learns from these. No labels.

    L = T² · KL( q || softmax(s / T) ),  q = softmax(u / T) with u = `logit_factors` · [z_1, ..., z_N]

    or, in the space of probabilities, q = `factorised_probabilities` of the softmax(z_n / T). What UHC minimises over
    the student alone is here minimised over each sample's q before.

    Args:
        temperature: T.
        space: what is factorised.
        ridge: λ, in the space of logits.
        steps: of alternating least squares, in the space of probabilities.
    """

    title = "UHC-MF"
    survey: ClassVar = UHC.survey | {
        "ensemble_logits": "soft labels over the union, by matrix factorisation",
        "objective": "KL to the estimate",
    }
    factors: Tensor

    def __init__(
        self,
        temperature: Temperature = 3.0,
        space: Space = "logits",
        ridge: Positive = 0.01,
        steps: Count = 30,
        **kwargs: Any,
    ) -> None:
        super().__init__(temperature=temperature, **kwargs)
        self.space, self.ridge, self.num_steps = space, ridge, steps

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        super().build(student, teacher, data)
        self.register_buffer("factors", logit_factors(self.classes, data.num_classes, self.ridge))

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        told = [each.logits for each in t.each]
        if self.space == "logits":
            joined = torch.cat(told, dim=1).double() @ self.factors.T
            return {"kd": kl(s.logits, joined.to(s.logits.dtype), self.temperature)}
        told = [(z.double() / self.temperature).softmax(1) for z in told]
        labels = factorised_probabilities(told, self.classes, self.factors, self.num_steps)
        return {"kd": soft_label_loss(s.logits, labels, self.temperature)}
