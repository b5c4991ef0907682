"""Instance relationship graphs (Liu et al., CVPR 2019, DOI 10.1109/CVPR.2019.00726)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method
from kdbench.taps import Out, Spec, Taps


def edges(x: Tensor) -> Tensor:
    """E_ij = ‖x_i - x_j‖² / max, (B, B), of activations with B rows."""
    x = x.flatten(1)
    squares = x.square().sum(1)
    distances = (squares[:, None] + squares - 2 * x @ x.T).clamp(min=0)
    distances = distances.masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), 0)
    return distances / distances.max().clamp(min=torch.finfo(x.dtype).tiny)


def transformation(a: Tensor, b: Tensor) -> Tensor:
    """τ_i = ‖a_i - b_i‖² / max, (B,): how far each instance moves from one layer to a deeper one of the same network.

    Activations are (B, C) or (B, C, H, W). Where layers differ in size, the larger map is average-pooled; where they
    differ in channels, neighbouring channels of the wider one are averaged (AberHu/Knowledge-Distillation-Zoo).
    """
    channels = min(a.shape[1], b.shape[1])

    def pooled(x: Tensor) -> Tensor:
        if x.dim() == 4:
            height, width = map(min, a.shape[2:], b.shape[2:])
            x = F.adaptive_avg_pool2d(x, (height, width)).flatten(2).transpose(1, 2)
        return F.adaptive_avg_pool1d(x, channels)

    moved = (pooled(a) - pooled(b)).square().flatten(1).sum(1)
    return moved / moved.max().clamp(min=torch.finfo(a.dtype).tiny)


@in_float32
def vertex_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over B·K of (s - t)², for logits (B, K)."""
    return F.mse_loss(student, teacher)


@in_float32
def edge_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over B² of (E_s - E_t)², E = `edges`, of two activations with B rows.

    yufanLIU/IRG divides the sum by 2B (Caffe's EuclideanLoss), which is B / 2 times this value.
    """
    return (edges(student) - edges(teacher)).square().mean()


@in_float32
def transform_loss(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """Mean over B of (τ_s - τ_t)², τ = `transformation` between two layers of each network.

    yufanLIU/IRG halves the sum, which is B / 2 times this value.
    """
    return (transformation(*student) - transformation(*teacher)).square().mean()


class IRG(Method):
    """L = CE(y, s) + λ_V · `vertex_loss` + λ_E · mean of `edge_loss` over layers + λ_T · `transform_loss`.

    Vertices are logits; edges are those of the pooled features and of the last two stages; the transformation goes from
    the last stage but one to the last. That is the choice of AberHu/Knowledge-Distillation-Zoo, whose weights these
    are; the authors' Caffe prototxt has edges on the pooled features and transformations inside three stages.
    """

    leaf = "intermediate/features"
    paper = "liu2019knowledgegraph"
    title = "IRG"
    taps = Taps(student=("stage-2", "stage-1", "embed"), teacher=("stage-2", "stage-1", "embed"))
    terms = ("ce", "vertex", "edge", "transform")
    survey: ClassVar = {
        "teacher_transform": "instance relationship graph",
        "student_transform": "instance relationship graph",
        "knowledge": "instances, their distances, their way through layers",
        "position": "last two stages and logits",
        "distance": "L2 of graphs",
        "lost": "directions in feature space",
    }

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        self.own, self.taught = student.all("stage")[-2:], teacher.all("stage")[-2:]

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        layers = [(s.embed, t.embed), *((s[a], t[b]) for a, b in zip(self.own, self.taught, strict=True))]
        (a, b), (c, d) = self.own, self.taught
        return {
            "ce": cross_entropy(s.logits, batch.y),
            "vertex": vertex_loss(s.logits, t.logits),
            "edge": torch.stack([edge_loss(x, y) for x, y in layers]).mean(),
            "transform": transform_loss((s[a], s[b]), (t[c], t[d])),
        }
