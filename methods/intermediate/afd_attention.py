"""Attention-based feature matching (Ji, Heo, Park, AAAI 2021, arXiv:2102.02973)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32, kl
from kdbench.method import Method
from kdbench.settings import Count, Temperature
from kdbench.taps import Out, Spec, Taps
from methods.intermediate.connector import Norm1d, averaged


@in_float32
def spatial(maps: Tensor, like: Tensor) -> Tensor:
    """vec(mean_c F²) / ‖.‖₂ of maps (B, C, H, W), as (B, H·W), with the mean pooled to the size of `like` first."""
    height, width = like.shape[2:]
    return F.normalize(F.adaptive_avg_pool2d(maps.square().mean(1, keepdim=True), (height, width)).flatten(1), dim=1)


@in_float32
def matched_feature_loss(weights: Tensor, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Σ_t mean_b Σ_s α_bts · mean over H·W of (φ(s) - φ(t))², φ = `spatial` at the size of the teacher's map.

    Args:
        weights: α, (B, n_t, n_s).
        student, teacher: maps of each layer, (B, C, H, W).
    """
    terms = []
    for alpha, hint in zip(weights.unbind(1), teacher, strict=True):
        target = spatial(hint, like=hint)
        apart = [(spatial(maps, like=hint) - target).square().mean(1) for maps in student]
        terms.append((alpha * torch.stack(apart, dim=1)).sum(1).mean())
    return torch.stack(terms).sum()


def linear_norm(features: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(features, outputs), Norm1d(outputs))


class Attention(nn.Module):
    """α_bts = softmax over s of [ <q_bt, k_bst> + <p_t, p_s> ] / √d: what teacher layer t asks of student layer s.

    q is a linear layer and a norm of the teacher's channel means. k is the same of the student's, a ReLU, and a linear
    layer and a norm that all student layers share, with an output for each teacher layer; p are places of layers.

    Args:
        student, teacher: channels of each layer.
        dim: d.
    """

    def __init__(self, student: Sequence[int], teacher: Sequence[int], dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.queries = nn.ModuleList(linear_norm(channels, dim) for channels in teacher)
        self.keys = nn.ModuleList(linear_norm(channels, dim) for channels in student)
        self.bilinear = linear_norm(dim, dim * len(teacher))
        self.place_t = nn.Parameter(nn.init.xavier_normal_(torch.empty(len(teacher), dim)))
        self.place_s = nn.Parameter(nn.init.xavier_normal_(torch.empty(len(student), dim)))

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """(B, n_t, n_s), from maps."""
        q = torch.stack([query(averaged(maps)) for query, maps in zip(self.queries, teacher, strict=True)], dim=1)
        k = torch.stack([key(averaged(maps)).relu() for key, maps in zip(self.keys, student, strict=True)], dim=1)
        k = self.bilinear(k.flatten(0, 1)).view(len(q), len(student), len(teacher), self.dim)
        return self.weights(q, k)

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        """From queries (B, n_t, d) and keys (B, n_s, n_t, d)."""
        scores = torch.einsum("btd,bstd->bts", q, k) + self.place_t @ self.place_s.T
        return (scores / math.sqrt(self.dim)).softmax(2)


class AFDAttention(Method):
    """L = CE(y, s) + α · T² · KL( softmax(t / T) || softmax(s / T) ) + β · `matched_feature_loss`

    Every layer of the teacher chooses, for each image by `Attention`, which of the student's layers it teaches. Layers
    are the ends of stages; the authors take every residual block, and the sum over the teacher's is as much longer.

    Args:
        dim: d, of queries and keys.
        temperature: T.
    """

    leaf = "intermediate/features"
    paper = "ji2021show"
    title = "AFD"
    extension = True
    taps = Taps(student=("stage*",), teacher=("stage*",))
    terms = ("ce", "kd", "feature")
    survey: ClassVar = {
        "teacher_transform": "spatial energy map",
        "student_transform": "spatial energy map",
        "knowledge": "feature maps, across layers",
        "position": "each of the teacher's stages with all of the student's",
        "distance": "attention-weighted L2 of normalised maps",
        "lost": "channels",
    }

    def __init__(self, dim: Count = 128, temperature: Temperature = 4.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.dim, self.temperature = dim, temperature

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        self.own, self.taught = student.all("stage"), teacher.all("stage")
        channels = [student.channels(tap) for tap in self.own], [teacher.channels(tap) for tap in self.taught]
        self.attention = Attention(*channels, self.dim)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        own, taught = [s[tap] for tap in self.own], [t[tap] for tap in self.taught]
        return {
            "ce": cross_entropy(s.logits, batch.y),
            "kd": kl(s.logits, t.logits, self.temperature),
            "feature": matched_feature_loss(self.attention(own, taught), own, taught),
        }
