"""Deep geometric knowledge distillation with graphs (Lassance et al., ICASSP 2020, arXiv:1911.03080)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method
from kdbench.settings import Count
from kdbench.taps import Out, Spec, Taps, aligned

Edges = Literal["all", "same_class", "other_classes"]


def adjacency(feature: Tensor) -> Tensor:
    """A = D^-½ W D^-½ of W_ij = cos(x_i, x_j), W_ii = 0, with the degrees D_ii = Σ_j W_ij; (B, B).

    Features (B rows) must not be negative, as after a ReLU: else degrees may be, and then count as nearly zero.
    """
    x = F.normalize(feature.flatten(1), dim=1)
    w = (x @ x.T).masked_fill(torch.eye(len(x), dtype=torch.bool, device=x.device), 0)
    scale = w.sum(1).clamp(min=torch.finfo(x.dtype).eps).rsqrt()
    return scale[:, None] * w * scale


@in_float32
def gkd_loss(
    student: Tensor, teacher: Tensor, kept: Tensor | None = None, neighbours: int | None = None, power: int = 1
) -> Tensor:
    """‖A_tᵖ - A_sᵖ‖_F², summed over all B² edges: A = `adjacency` of two activations with B rows (equation 4).

    Entries of A are about 1 / B, so that the sum does not grow with the batch.

    Args:
        kept: the edges that count, bool (B, B); all of them where it is None.
        neighbours: of these, only the edges to the so many nearest of one of their ends, in the teacher's graph.
        power: p, of the matrix: paths of so many edges.
    """
    a_s, a_t = adjacency(student), adjacency(teacher)
    if kept is not None:
        a_s, a_t = a_s * kept, a_t * kept
    if neighbours is not None and neighbours < len(a_t):
        nearest = torch.zeros_like(a_t).scatter(1, a_t.topk(neighbours, dim=1).indices, 1)
        mask = torch.maximum(nearest, nearest.T)
        a_s, a_t = a_s * mask, a_t * mask
    return (torch.linalg.matrix_power(a_t, power) - torch.linalg.matrix_power(a_s, power)).square().sum()


class GKD(Method):
    """L = CE(y, s) + λ · mean over stages of `gkd_loss`.

    Args:
        edges: between all images of a batch, or only within, or only across classes.
        neighbours: k, the edges that an image keeps; null keeps all of them.
        power: p.
    """

    leaf = "learning/graph"
    paper = "lassance2019deep"
    title = "GKD"
    taps = Taps(student=("stage*",), teacher=("stage*",))
    terms = ("ce", "gkd")
    survey: ClassVar = {
        "nodes": "images of a batch",
        "edges": "cosine similarity, normalised by degree",
        "objective": "squared difference of adjacency matrices",
    }

    def __init__(self, edges: Edges = "all", neighbours: Count | None = None, power: Count = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.edges, self.neighbours, self.power = edges, neighbours, power

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        self.pairs = aligned(student, teacher)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        same = batch.y[:, None] == batch.y
        kept = {"all": None, "same_class": same, "other_classes": ~same}[self.edges]
        stages = [gkd_loss(s[a], t[b], kept, self.neighbours, self.power) for a, b in self.pairs]
        return {"ce": cross_entropy(s.logits, batch.y), "gkd": torch.stack(stages).mean()}
