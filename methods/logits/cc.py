"""Correlation congruence (Peng et al., ICCV 2019, arXiv:1904.01802)."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32, kl
from kdbench.method import Method
from kdbench.settings import Count, Positive, Temperature
from kdbench.taps import Out, Spec, Taps


@in_float32
def correlations(x: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    """C (B, B) of embeddings (B, D): the Gaussian kernel exp(-γ ‖x̂_i - x̂_j‖²) by its Taylor series.

    C_ij = Σ_{p=0..P} e^(-2γ) (2γ)^p / p! · <x̂_i, x̂_j>^p,  x̂ = x / ‖x‖

    The sum has P + 1 terms, as in AberHu/Knowledge-Distillation-Zoo.
    """
    x = F.normalize(x, dim=1)
    cosines = x @ x.T
    terms = [math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * cosines**p for p in range(order + 1)]
    return torch.stack(terms).sum(0)


@in_float32
def correlation_loss(student: Tensor, teacher: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    """1 / B² · ‖C_s - C_t‖² of embeddings (B, D_s) and (B, D_t), see `correlations`."""
    return F.mse_loss(correlations(student, gamma, order), correlations(teacher, gamma, order))


@in_float32
def neighbours_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1 / (B - 1) · Σ_b <δ_b, δ_{b+1}>, δ = |e_s - e_t| by elements, of embeddings (B, D) in one space.

    The loss of HobbitLong/RepDistiller, distiller_zoo/CC.py: only neighbours in the batch meet, so that its value
    depends on their order. One sample alone has no neighbour: it is 0.
    """
    delta = (student - teacher).abs()
    return (delta[:-1] * delta[1:]).sum() / max(len(delta) - 1, 1)


class CorrelationCongruence(Method):
    """L = α · CE(y, s) + (1 - α) · KD(s, t) + β · `correlation_loss`(f_s, f_t) on pooled features (equation 7).

    KD is T² · KL( softmax(t / T) || softmax(s / T) ); α, 1 - α and β are the weights of ``ce``, ``kd`` and ``cc``. The
    paper's samplers, which put images of one class into a batch, belong to no method here.

    Args:
        temperature: T.
        gamma: γ of the Gaussian kernel.
        order: P, the last power of its Taylor series.
    """

    leaf = "logits/strictness"
    paper = "peng2019correlation"
    title = "CC"
    taps = Taps(student=("embed",), teacher=("embed",))
    terms = ("ce", "kd", "cc")
    survey: ClassVar = {
        "description": "correlations between the samples of a batch, by a Gaussian kernel",
        "objective": "α CE(y, s) + (1 - α) KL(t, s) + β ‖C_s - C_t‖²",
    }

    def __init__(
        self,
        temperature: Temperature = 4.0,
        gamma: Positive = 0.4,
        order: Annotated[int, Field(ge=1, le=20)] = 2,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.temperature, self.gamma, self.order = temperature, gamma, order

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {
            "ce": cross_entropy(s.logits, batch.y),
            "kd": kl(s.logits, t.logits, self.temperature),
            "cc": correlation_loss(s.embed, t.embed, self.gamma, self.order),
        }


class NeighboursCC(Method):
    """L = CE(y, s) + β · `neighbours_loss`(W_s f_s + b_s, W_t f_t + b_t), what RepDistiller's tables call CC.

    Both embeddings of the pooled features f are trained, so nothing keeps them from shrinking together.

    Args:
        dim: of the space in which they are compared.
    """

    leaf = "logits/strictness"
    paper = "peng2019correlation"
    title = "CC (RepDistiller)"
    taps = Taps(student=("embed",), teacher=("embed",))
    terms = ("ce", "cc")
    survey: ClassVar = {
        "description": "differences of embeddings, multiplied over neighbours in a batch",
        "objective": "CE(y, s) + β Σ_b <|e_s - e_t|_b, |e_s - e_t|_b+1>",
    }

    def __init__(self, dim: Count = 128, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dim = dim

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        self.embed_s = nn.Linear(student.channels("embed"), self.dim)
        self.embed_t = nn.Linear(teacher.channels("embed"), self.dim)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {
            "ce": cross_entropy(s.logits, batch.y),
            "cc": neighbours_loss(self.embed_s(s.embed), self.embed_t(t.embed)),
        }
