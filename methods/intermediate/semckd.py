"""Cross-layer distillation with semantic calibration (Chen et al., AAAI 2021, arXiv:2012.03236)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import UserError
from kdbench.losses import cross_entropy, in_float32, kl, to_smaller
from kdbench.method import Method
from kdbench.settings import Count, Temperature
from kdbench.taps import Out, Spec, Taps
from methods.intermediate.connector import conv_norm_relu


@in_float32
def gram(maps: Tensor) -> Tensor:
    """<s_i, s_j> of activations with B rows, (B, B): how alike the samples of a batch are in this layer."""
    flat = maps.flatten(1)
    return flat @ flat.T


@in_float32
def attention(queries: Tensor, keys: Tensor) -> Tensor:
    """α_bij = softmax over j of <q_bi, k_bj> of directions (B, n, D): where student layer i looks, (B, n_s, n_t)."""
    queries, keys = F.normalize(queries, dim=2), F.normalize(keys, dim=2)
    return (queries @ keys.transpose(1, 2)).softmax(2)


@in_float32
def semckd_loss(weights: Tensor, distances: Tensor) -> Tensor:
    """Σ_j α_bij · d_bij, averaged over the batch and the student's layers i; both (B, n_s, n_t)."""
    return (weights * distances).sum(2).mean()


@in_float32
def distance(projected: Tensor, hint: Tensor) -> Tensor:
    """Mean over C·H·W of (s - t)² for each sample, (B,)."""
    return (projected - hint).square().flatten(1).mean(1)


class Embedding(nn.Sequential):
    """Two linear layers with a ReLU between them, from a sample's row of the Gram matrix to where layers are compared.

    They have a weight for each place in the batch. A shorter batch has nobody in its last places, and so similarity 0
    to them; the authors leave the last batch of an epoch out instead (``protocol.drop_last``).

    Args:
        batch: how many places there are.
        dim: D.
    """

    def __init__(self, batch: int, dim: int) -> None:
        super().__init__(nn.Linear(batch, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))
        self.batch = batch

    def forward(self, similarity: Tensor) -> Tensor:
        absent = self.batch - len(similarity)
        if absent < 0:
            raise UserError(
                f"SemCKD was built for batches of {self.batch} and sees one of {len(similarity)}: give the protocol "
                "the size of the batches (protocol.batch_size)."
            )
        return super().forward(F.pad(similarity, (0, absent)))


def projection(student: int, teacher: int) -> nn.Sequential:
    """1x1, 3x3 and 1x1 convolutions to the teacher's channels, by way of twice as many."""
    middle = 2 * teacher
    return nn.Sequential(
        *conv_norm_relu(student, middle),
        *conv_norm_relu(middle, middle, 3),
        nn.Conv2d(middle, teacher, 1, bias=False),
    )


class CrossLayer(nn.Module):
    """What each layer of the student learns from each of the teacher's, and how much of it.

    Args:
        student, teacher: channels of each layer.
        batch: samples in a full batch, B; embeddings have a `factor`-th of it as their dimension.
    """

    def __init__(self, student: Sequence[int], teacher: Sequence[int], batch: int, factor: int) -> None:
        super().__init__()
        dim = max(batch // factor, 1)
        self.queries = nn.ModuleList(Embedding(batch, dim) for _ in student)
        self.keys = nn.ModuleList(Embedding(batch, dim) for _ in teacher)
        self.projections = nn.ModuleList(nn.ModuleList(projection(a, b) for b in teacher) for a in student)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """(`attention`, `distance`), both (B, n_s, n_t), of maps of which the larger is average-pooled."""

        def embedded(embeddings: nn.ModuleList, layers: Sequence[Tensor]) -> Tensor:
            return torch.stack([embed(gram(maps)) for embed, maps in zip(embeddings, layers, strict=True)], dim=1)

        distances = []
        for row, s in zip(self.projections, student, strict=True):
            for project, t in zip(row, teacher, strict=True):  # type: ignore[call-overload]
                own, hint = to_smaller(s, t)
                distances.append(distance(project(own), hint))
        weights = attention(embedded(self.queries, student), embedded(self.keys, teacher))
        return weights, torch.stack(distances, dim=1).view_as(weights)


class SemCKD(Method):
    """L = CE(y, s) + T² · KL( softmax(t / T) || softmax(s / T) ) + β · `semckd_loss`( α, mean (P_ij(s_i) - t_j)² )

    Each stage i of the student learns from all stages j of the teacher, the more from one the more alike they find the
    samples of the batch: α is the `attention` between embedded rows of their Gram matrices (`CrossLayer`).

    Args:
        factor: embeddings have a `factor`-th of the batch's size as their dimension.
        temperature: T of the divergence.
    """

    leaf = "intermediate/features"
    paper = "chen2021cross"
    title = "SemCKD"
    extension = True
    taps = Taps(student=("stage*",), teacher=("stage*",))
    terms = ("ce", "kd", "semckd")
    survey: ClassVar = {
        "teacher_transform": "none",
        "student_transform": "convolutional projectors",
        "knowledge": "feature maps, across layers",
        "position": "each stage with all of the teacher's",
        "distance": "attention-weighted L2",
        "lost": "none",
    }

    def __init__(self, factor: Count = 4, temperature: Temperature = 4.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor, self.temperature = factor, temperature

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        self.own, self.taught = student.all("stage"), teacher.all("stage")
        channels = [student.channels(tap) for tap in self.own], [teacher.channels(tap) for tap in self.taught]
        self.layers = CrossLayer(*channels, self.protocol.batch_size, self.factor)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        weights, distances = self.layers([s[tap] for tap in self.own], [t[tap] for tap in self.taught])
        return {
            "ce": cross_entropy(s.logits, batch.y),
            "kd": kl(s.logits, t.logits, self.temperature),
            "semckd": semckd_loss(weights, distances),
        }
