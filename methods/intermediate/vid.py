"""Variational information distillation (Ahn et al., CVPR 2019, arXiv:1904.05835)."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32, to_smaller
from kdbench.method import Method
from kdbench.taps import Out, Spec, Taps, aligned

EPS = 1e-5
"""Floor of the variance (RepDistiller: distiller_zoo/VID.py)."""


@in_float32
def vid_loss(mean: Tensor, teacher: Tensor, rho: Tensor) -> Tensor:
    """Gaussian negative log-likelihood -log q(t | s), up to a constant, averaged over B·C·H·W (equations 5 and 6).

    ½ · [ (t - μ(s))² / σ_c² + log σ_c² ],  σ_c² = softplus(ρ_c) + ε: one variance per teacher channel.

    Args:
        mean: μ(s), (B, C, H, W).
        teacher: (B, C, H, W).
        rho: pre-activation of the variance, (C,).
    """
    variance = (F.softplus(rho) + EPS).view(1, -1, 1, 1)
    return 0.5 * ((mean - teacher).square() / variance + variance.log()).mean()


class VariationalLayer(nn.Module):
    """q(t | s) of one layer: μ is three 1x1 convolutions, σ² a free parameter per channel.

    Args:
        student, teacher, middle: channels of the student's map, the teacher's and those between the convolutions.
        variance: σ² at the start, more than `EPS`.
    """

    def __init__(self, student: int, teacher: int, variance: float, middle: int | None = None) -> None:
        super().__init__()
        middle = middle or teacher
        self.mean = nn.Sequential(
            nn.Conv2d(student, middle, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(middle, middle, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(middle, teacher, 1, bias=False),
        )
        above = variance - EPS
        rho = above + math.log(-math.expm1(-above))  # softplus(ρ) = above; exp(above) might overflow
        self.rho = nn.Parameter(torch.full((teacher,), rho))

    def forward(self, s: Tensor, t: Tensor) -> Tensor:
        s, t = to_smaller(s, t)
        return vid_loss(self.mean(s), t, self.rho)


class VID(Method):
    """L = CE(y, s) + λ · Σ_stages `vid_loss`.

    Args:
        initial_variance: σ² at the start.
        middle: channels between the convolutions of μ; by default as many as the teacher's map has.
    """

    leaf = "intermediate/features"
    paper = "Ahn_2019_CVPR"
    title = "VID"
    taps = Taps(student=("stage*",), teacher=("stage*",))
    terms = ("ce", "vid")
    added: ClassVar = {"middle": None}
    survey: ClassVar = {
        "teacher_transform": "none",
        "student_transform": "1x1 convolutions",
        "knowledge": "feature map",
        "position": "end of each stage",
        "distance": "Gaussian NLL, a bound on I(T; S)",
        "lost": "none",
    }

    def __init__(
        self,
        initial_variance: Annotated[float, Field(gt=EPS)] = 5.0,
        middle: Annotated[int, Field(ge=1, le=10_000)] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.initial_variance, self.middle = initial_variance, middle

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        self.pairs = aligned(student, teacher)
        self.layers = nn.ModuleList(
            VariationalLayer(student.channels(a), teacher.channels(b), self.initial_variance, self.middle)
            for a, b in self.pairs
        )

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        vid = torch.stack([layer(s[a], t[b]) for layer, (a, b) in zip(self.layers, self.pairs, strict=True)]).sum()
        return {"ce": cross_entropy(s.logits, batch.y), "vid": vid}
