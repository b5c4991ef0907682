"""Information theoretic representation distillation (Miles et al., BMVC 2022, arXiv:2112.00459)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method
from kdbench.settings import Positive
from kdbench.taps import Out, Spec, Taps

EPS = 1e-5
"""What a feature's deviations over a batch are divided by at least: one that does not vary correlates with nothing."""


def standardised(x: Tensor) -> Tensor:
    """Columns of (B, D) less their mean, of length one."""
    return F.normalize(x - x.mean(0), dim=0, eps=EPS)


@in_float32
def itrd_correlation_loss(student: Tensor, teacher: Tensor, alpha: float = 1.01) -> Tensor:
    """log₂ Σ_d ((c_d - 1)²)^α, c_d the correlation of the features d of (B, D) over the batch.

    As in roymiles/ITRD c divides a sum over B by B and the deviations by B - 1: at best it is (B - 1) / B.
    """
    shrink = (len(student) - 1) / len(student)
    correlation = shrink * (standardised(student) * standardised(teacher)).sum(0)
    return (correlation - 1).square().pow(alpha).sum().log2()


def kernel(x: Tensor) -> Tensor:
    """Cosines between the rows of (B, D), (B, B)."""
    x = F.normalize(x, dim=1)
    return x @ x.T


def of_trace_one(matrix: Tensor) -> Tensor:
    return matrix / matrix.trace().clamp(min=EPS)


@in_float32
def itrd_mutual_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ_ij A_ij² - Σ_ij B_ij², A the student's `kernel`, B its product by elements with the teacher's, of trace one.

    -log₂ Σ A² is Rényi's entropy of order two; so that is I(S; T) but for the teacher's own entropy, to be large. As in
    roymiles/ITRD there is no logarithm.
    """
    own = kernel(student)
    return of_trace_one(own).square().sum() - of_trace_one(own * kernel(teacher)).square().sum()


class ITRD(Method):
    """L = CE(y, s) + β_c · `itrd_correlation_loss`(W f_s, f_t) + β_m · `itrd_mutual_loss`(f_s, f_t)

    of pooled features. The linear layer W goes to the teacher's width, and stands in the second loss too where widths
    differ.

    Args:
        alpha: α, the order of the entropy.
    """

    leaf = "intermediate/features"
    paper = "miles2022information"
    title = "ITRD"
    extension = True
    taps = Taps(student=("embed",), teacher=("embed",))
    terms = ("ce", "correlation", "mutual")
    survey: ClassVar = {
        "teacher_transform": "kernel matrix of the batch",
        "student_transform": "linear embedding; kernel matrix",
        "knowledge": "each feature; similarity of samples",
        "position": "pooled features",
        "distance": "Rényi entropies",
        "lost": "scale of the features",
    }

    def __init__(self, alpha: Positive = 1.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.alpha = alpha

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        self.embed = nn.Linear(student.channels("embed"), teacher.channels("embed"))

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        embedded = self.embed(s.embed)
        compared = s.embed if s.embed.shape == t.embed.shape else embedded
        return {
            "ce": cross_entropy(s.logits, batch.y),
            "correlation": itrd_correlation_loss(embedded, t.embed, self.alpha),
            "mutual": itrd_mutual_loss(compared, t.embed),
        }
