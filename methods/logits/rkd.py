"""Relational knowledge distillation (Park et al., CVPR 2019, arXiv:1904.05068)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method
from kdbench.taps import Out, Taps


def _distances(x: Tensor) -> Tensor:
    """Euclidean distances (B, B) of rows, divided by the mean over distinct rows; the diagonal is zero.

    One row alone has no pair, and so no mean.
    """
    norms = x.square().sum(1)
    squared = (norms[:, None] + norms[None] - 2 * x @ x.T).clamp(min=1e-12)
    diagonal = torch.eye(len(x), dtype=torch.bool, device=x.device)
    d = squared.sqrt().masked_fill(diagonal, 0)
    return d / d[d > 0].mean() if len(x) > 1 else d


def _angles(x: Tensor) -> Tensor:
    """Cosines (B, B, B) of the angle at row i between rows j and k: <e_ij, e_ik>, e_ij = (x_j - x_i) / ‖x_j - x_i‖."""
    e = F.normalize(x[None] - x[:, None], dim=2)
    return e @ e.transpose(1, 2)


@in_float32
def rkd_terms(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """(distance, angle) losses of embeddings (B, D_s) and (B, D_t).

    distance = mean over B² pairs of Huber(ψ_s - ψ_t), ψ = pairwise distance / mean distance (equations 5 and 6);
    angle = mean over B³ triplets of Huber(cos_s - cos_t) (equations 8 and 9). Huber has its knee at 1; the means
    include the zero diagonals, as in lenscloth/RKD. A batch of one has neither pairs nor triplets: both are 0.
    """
    with torch.no_grad():
        d, angle = _distances(teacher), _angles(teacher)
    return F.smooth_l1_loss(_distances(student), d), F.smooth_l1_loss(_angles(student), angle)


class RKD(Method):
    """L = CE(y, s) + λ_D · distance + λ_A · angle on the pooled features; see `rkd_terms`."""

    leaf = "logits/strictness"
    paper = "park2019relational"
    title = "RKD"
    taps = Taps(student=("embed",), teacher=("embed",))
    terms = ("ce", "distance", "angle")
    survey: ClassVar = {
        "description": "distances and angles between the embeddings of a batch",
        "objective": "CE(y, s) + λ_D Huber(distances) + λ_A Huber(angles)",
    }

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        distance, angle = rkd_terms(s.embed, t.embed)
        return {"ce": cross_entropy(s.logits, batch.y), "distance": distance, "angle": angle}
