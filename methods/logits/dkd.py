"""Decoupled knowledge distillation (Zhao et al., CVPR 2022, arXiv:2203.08679)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import HOT, HOTTEST, cross_entropy, divergence, in_float32, kl, kl_of_logs
from kdbench.method import Method
from kdbench.settings import Temperature, Weight
from kdbench.taps import Out


@in_float32
def dkd_terms(student: Tensor, teacher: Tensor, y: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(TCKD, NCKD) of logits (B, K) and class indices (B,); each summed over classes, averaged over B, times T².

    TCKD = T² · KL( [p_t(y), 1 - p_t(y)] || [p_s(y), 1 - p_s(y)] ),  p = softmax(z / T)
    NCKD = T² · KL( q_t || q_s ),  q = softmax of z / T over the K - 1 classes other than y
    """
    target = F.one_hot(y, student.shape[1]).bool()
    others, shape = ~target, (len(y), student.shape[1] - 1)
    if temperature > HOT:  # the same where logarithms of softmax would lose it, see `kdbench.losses.kl`
        temperature = min(temperature, HOTTEST)
        q, x = (teacher / temperature).softmax(1), (student - teacher) / temperature
        q_others, x_others = (teacher[others].view(shape) / temperature).softmax(1), x[others].view(shape)
        nckd = divergence(q_others, x_others)
        lift = (q_others * x_others).sum(1) + nckd  # log of what the others' share is multiplied with
        tckd = divergence(torch.stack([q[target], q[others].view(shape).sum(1)], 1), torch.stack([x[target], lift], 1))
        return tckd.mean() * temperature**2, nckd.mean() * temperature**2

    def binary(z: Tensor) -> Tensor:
        """log [p(y), 1 - p(y)], without ever forming 1 - p(y)."""
        log_p = F.log_softmax(z / temperature, dim=1)
        return torch.stack([log_p[target], log_p.masked_fill(target, -torch.inf).logsumexp(1)], dim=1)

    tckd = kl_of_logs(binary(student), binary(teacher)) * temperature**2
    return tckd, kl(student[others].view(shape), teacher[others].view(shape), temperature)


def dkd_loss(
    student: Tensor, teacher: Tensor, y: Tensor, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0
) -> Tensor:
    """α · TCKD + β · NCKD (equation 7); see `dkd_terms`. Plain KD would have α = 1 and β = 1 - p_t(y)."""
    tckd, nckd = dkd_terms(student, teacher, y, temperature)
    return alpha * tckd + beta * nckd


class DKD(Method):
    """L = CE(y, s) + ramp · (α · TCKD + β · NCKD); see `dkd_loss`."""

    leaf = "logits/softened-labels"
    paper = "zhao2022decoupled"
    title = "DKD"
    extension = True
    terms = ("ce", "dkd")
    survey: ClassVar = {
        "description": "softened probabilities, the target class apart from the others",
        "objective": "CE(y, s) + α TCKD + β NCKD",
    }

    def __init__(self, alpha: Weight = 1.0, beta: Weight = 8.0, temperature: Temperature = 4.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.alpha, self.beta, self.temperature = alpha, beta, temperature

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {
            "ce": cross_entropy(s.logits, batch.y),
            "dkd": dkd_loss(s.logits, t.logits, batch.y, self.alpha, self.beta, self.temperature),
        }
