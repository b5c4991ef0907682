"""Log-Euclidean similarity distillation (Wu, Zheng, Guo, Lai, CVPR 2019, DOI 10.1109/CVPR.2019.00128)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method
from kdbench.taps import Out, Taps


class MatrixLog(torch.autograd.Function):
    """log A = U log(Λ) Uᵀ of a symmetric positive definite A = U Λ Uᵀ.

    The gradient is that of Daleckii and Krein, U ((Uᵀ G U) ∘ K) Uᵀ with K_ij = (log λ_i - log λ_j) / (λ_i - λ_j), which
    is 1 / λ_i where both are equal: similarities have many equal eigenvalues, where eigenvectors have no derivative.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(a)
        ctx.save_for_backward(values, vectors)
        return vectors * values.log() @ vectors.mT

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        values, vectors = ctx.saved_tensors
        total = values[:, None] + values
        x = (values[:, None] - values) / total  # log(λ_i / λ_j) = 2 artanh x
        near = x.abs() < 1e-3
        ratio = torch.where(near, 1 + x.square() / 3, x.atanh() / x.masked_fill(near, 1))
        inner = vectors.mT @ gradient @ vectors
        return vectors @ (inner * ratio * 2 / total) @ vectors.mT


def log_similarity(features: Tensor, ridge: float) -> Tensor:
    """log(A + ε·I), (B, B), for the cosine similarities A of non-negative features (B, ...); in float64."""
    x = F.normalize(features.double().flatten(1).relu(), dim=1)
    a = x @ x.T + ridge * torch.eye(len(x), dtype=x.dtype, device=x.device)
    log: Tensor = MatrixLog.apply(a)
    return log


@in_float32
def log_euclidean_loss(student: Tensor, teachers: Sequence[Tensor], ridge: float) -> Tensor:
    """Mean over teachers of ‖log(A_S + ε·I) - log(A_k + ε·I)‖² / B², Frobenius norms; see `log_similarity`.

    Args:
        student, teachers: features, (B, ...), each with a number of its own.
        ridge: ε > 0; a batch larger than the number of features has eigenvalues of 0, of which there is no logarithm.
    """
    own = log_similarity(student, ridge)
    apart = [F.mse_loss(own, log_similarity(teacher, ridge)) for teacher in teachers]
    return torch.stack(apart).mean().to(student.dtype)


class LogEuclidean(Method):
    """L = CE(y, s) + β · `log_euclidean_loss`: images are as similar to one another as several teachers have them.

    Teachers weigh alike. The paper learns their weights on a few identities of another domain (its adaptive knowledge
    aggregator), which recognition of known classes has not.

    Args:
        ridge: ε.
        tap: whose similarities are compared.
    """

    leaf = "multi-teacher/ensemble-of-features"
    paper = "wu2019distilled"
    title = "Log-Euclidean"
    needs = frozenset({"teachers", "labels"})
    terms = ("ce", "similarity")
    survey: ClassVar = {
        "ensemble_logits": "none",
        "ensemble_features": "similarity matrices of a batch",
        "unify_data": "no",
        "customize": "no",
        "peers": "no",
        "online": "no",
        "objective": "CE + L2 of matrix logarithms",
    }

    def __init__(self, ridge: Annotated[float, Field(ge=1e-6)] = 0.1, tap: str = "embed", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ridge, self.tap = ridge, tap
        self.taps = Taps(student=(tap,), teacher=(tap,))

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {
            "ce": cross_entropy(s.logits, batch.y),
            "similarity": log_euclidean_loss(s[self.tap], [each[self.tap] for each in t.each], self.ridge),
        }
