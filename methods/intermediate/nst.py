"""Like what you like: neuron selectivity transfer (Huang & Wang, 2017, arXiv:1707.01219)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32, to_smaller
from kdbench.method import Method
from kdbench.taps import Out, Spec, Taps, aligned

Kernel = Literal["polynomial", "linear", "gaussian"]


def selectivity(feature: Tensor) -> Tensor:
    """What each neuron likes: the channels of a map (B, C, H, W) as vectors of length one, (B, C, H·W)."""
    return F.normalize(feature.flatten(2), dim=2)


def distances(u: Tensor, v: Tensor) -> Tensor:
    """‖u_i - v_j‖², (B, M, N), of vectors (B, M, D) and (B, N, D)."""
    squares = u.square().sum(2)[:, :, None] + v.square().sum(2)[:, None, :]
    return (squares - 2 * u @ v.mT).clamp(min=0)


@in_float32
def nst_loss(student: Tensor, teacher: Tensor, kernel: Kernel = "polynomial") -> Tensor:
    """Squared maximum mean discrepancy of two maps' `selectivity`, averaged over the batch.

    mean_ij k(t_i, t_j) + mean_ij k(s_i, s_j) - 2 · mean_ij k(s_i, t_j) over channels, whose numbers may differ, with

    - polynomial: k(x, y) = (xᵀ y)², degree 2 and c = 0;
    - linear: k(x, y) = xᵀ y, so that only mean maps are compared, as in attention transfer;
    - gaussian: k(x, y) = exp( -‖x - y‖² / 2σ² ), σ² the mean of ‖s_i - t_j‖² over the pairs of an image, a constant.

    The authors' code leaves out the first mean, which has no gradient. The larger map (B, C, H, W) is average-pooled to
    the size of the smaller first (as in RepDistiller).
    """
    s, t = (selectivity(x) for x in to_smaller(student, teacher))
    if kernel == "linear":
        return (s.mean(1) - t.mean(1)).square().sum(1).mean()
    if kernel == "polynomial":
        return (t @ t.mT).square().mean() + (s @ s.mT).square().mean() - 2 * (s @ t.mT).square().mean()
    across = distances(s, t)
    width = 2 * across.detach().mean((1, 2), keepdim=True).clamp(min=torch.finfo(s.dtype).eps)
    alike = [(-apart / width).exp().mean() for apart in (distances(t, t), distances(s, s), across)]
    return alike[0] + alike[1] - 2 * alike[2]


class NST(Method):
    """L = CE(y, s) + λ · Σ_stages `nst_loss`.

    Args:
        kernel: in which space distributions are compared.
    """

    leaf = "intermediate/features"
    paper = "huang2017like"
    title = "NST"
    taps = Taps(student=("stage*",), teacher=("stage*",))
    terms = ("ce", "nst")
    survey: ClassVar = {
        "teacher_transform": "none",
        "student_transform": "none",
        "knowledge": "distribution of channels' activation patterns",
        "position": "end of each stage",
        "distance": "MMD",
        "lost": "none",
    }

    def __init__(self, kernel: Kernel = "polynomial", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.kernel = kernel

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        self.pairs = aligned(student, teacher)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        nst = torch.stack([nst_loss(s[a], t[b], self.kernel) for a, b in self.pairs]).sum()
        return {"ce": cross_entropy(s.logits, batch.y), "nst": nst}
