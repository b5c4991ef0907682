"""Self-supervised knowledge distillation using singular value decomposition (Lee, Kim, Song, ECCV 2018,
arXiv:1807.06819)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32, to_smaller
from kdbench.method import Method
from kdbench.settings import Count
from kdbench.taps import Out, Spec, Taps, aligned
from methods.intermediate.widths import same_width

Matrix = Literal["channels", "columns"]
CANDIDATES = 3
"""How many of the student's vectors are tried beyond the teacher's number (RepDistiller: distiller_zoo/KDSVD.py)."""


def as_matrices(feature: Tensor, matrix: Matrix = "channels") -> Tensor:
    """A map (B, C, H, W) as one matrix for each image: (B, H·W, C), or (B, C·H, W) in megvii-research/mdistiller."""
    return feature.flatten(2).mT if matrix == "channels" else feature.flatten(1, 2)


@torch.no_grad()
def right_singular(x: Tensor) -> tuple[Tensor, Tensor]:
    """V, (B, C, r), and S², (B, r), of matrices X = U S Vᵀ, (B, N, C), r = min(N, C); largest first.

    By the eigenvectors of XᵀX, or of XXᵀ where that is the smaller one: about twice as fast as a decomposition of X
    itself. In float64, as a square has twice the digits.
    """
    x = x.double()
    if x.shape[1] >= x.shape[2]:
        eigen, v = torch.linalg.eigh(x.mT @ x)
    else:
        eigen, u = torch.linalg.eigh(x @ x.mT)
        v = F.normalize(x.mT @ u, dim=1)
    return v.flip(2), eigen.flip(1).clamp(min=0)


@in_float32
def decomposed(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The first `k` right singular vectors (B, C, k) of matrices X = U S Vᵀ, (B, N, C), and their values (B, k).

    At most as many as there are. The values are constants; the vectors have a gradient, which stays finite.

    With G = XᵀX and λ = S², the derivative of a vector is dv_j = Σ_i v_i (v_iᵀ dG v_j) / (λ_j - λ_i), which has no end
    where two singular values meet. Here 1 / d is d / (d² + ε²), with ε a root of the precision of the largest λ.

    Vectors are determined but for their sign. It is chosen such that their entries' sum is positive, as all entries
    of the first vector are where the map comes from a ReLU: so no library's choice makes a difference.
    """
    v, eigen = (each.to(x.dtype) for each in right_singular(x))
    top = v[..., :k]
    top = torch.where(top.sum(1, keepdim=True) < 0, -top, top)
    limit = torch.finfo(x.dtype).eps * eigen[:, None, :1].square() + torch.finfo(x.dtype).tiny

    def inverse(gap: Tensor) -> Tensor:
        return gap / (gap.square() + limit)

    moved = x.mT @ (x @ top)
    moved = moved - moved.detach()  # dG v_j: zero, with a gradient
    inside = v.mT @ moved
    change = v @ (inverse(eigen[:, None, :k] - eigen[:, :, None]) * inside)
    change = change + inverse(eigen[:, None, :k]) * (moved - v @ inside)  # of the directions in which G is zero
    return top + change, eigen[:, :k].sqrt()


@in_float32
def alike(student: Tensor, teacher: Tensor) -> Tensor:
    """For each of the teacher's vectors (B, C, k) the student's, of (B, C, m), that is most parallel, with its sign."""
    cosine = student.mT @ teacher
    best = cosine.abs().argmax(1, keepdim=True)
    chosen = student.gather(2, best.expand(-1, student.shape[1], -1))
    return chosen * cosine.gather(1, best).detach().sign()


def correlation(first: Tensor, second: Tensor) -> Tensor:
    """R = exp( -(v₂[p] - v₁[q])² / 8 ) of vectors of two layers, (B, C1, k) and (B, C2, k), as (B, C2, C1, k)."""
    return (-(second[:, :, None] - first[:, None]).square() / 8).exp()


@in_float32
def kdsvd_loss(students: Sequence[Tensor], teachers: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """Σ over pairs of consecutive layers of ‖R(s) - R(t)‖², summed over entries and vectors, averaged over B.

    R is the `correlation` of vectors times the teacher's singular values, which are divided by their norm; the
    student's are those `alike`. It compares vectors of different layers, so the loss depends on the teacher's signs.

    Args:
        students: first right singular vectors of each layer, (B, C, m), m >= k.
        teachers: the teacher's, (B, C, k).
        values: its singular values, (B, k).

    RepDistiller's form. In the authors' own (sseung0703/SSKD_SVD, nets/Distillation.py) the loss is summed over the
    batch, halved and times √k, and its gradient is clipped to the length of that of the cross-entropy.
    """
    scales = [F.normalize(value, dim=1)[:, None] for value in values]
    own = [alike(s, t) * scale for s, t, scale in zip(students, teachers, scales, strict=True)]
    taught = [t * scale for t, scale in zip(teachers, scales, strict=True)]
    r_s, r_t = ([correlation(a, b) for a, b in pairwise(vectors)] for vectors in (own, taught))
    return torch.stack([(s - t).square().flatten(1).sum(1).mean() for s, t in zip(r_s, r_t, strict=True)]).sum()


class KDSVD(Method):
    """L = CE(y, s) + λ · `kdsvd_loss`, of the ends of the stages.

    Maps are compared channel by channel, so the student's pass a `same_width` where they have another number, which
    is ours (RepDistiller leaves such pairs out). The variant ``columns`` is mdistiller's, which decomposes another
    matrix, and can do without: there maps are average-pooled to the smaller size.

    Args:
        vectors: k, of the teacher.
        matrix: what is decomposed, see `as_matrices`.
    """

    leaf = "intermediate/features"
    paper = "lee2018self"
    title = "KD-SVD"
    taps = Taps(student=("stage*",), teacher=("stage*",))
    terms = ("ce", "svd")
    survey: ClassVar = {
        "teacher_transform": "truncated SVD",
        "student_transform": "truncated SVD",
        "knowledge": "correlation of two layers' singular vectors",
        "position": "end of each stage",
        "distance": "L2 of radial basis functions",
        "lost": "positions, all but the first directions",
    }

    def __init__(self, vectors: Count = 1, matrix: Matrix = "channels", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.vectors, self.matrix = vectors, matrix

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        self.pairs = aligned(student, teacher)
        self.connectors = nn.ModuleList(
            same_width(student.shapes[a], teacher.shapes[b]) if self.matrix == "channels" else nn.Identity()
            for a, b in self.pairs
        )

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        students, teachers, values = [], [], []
        for connect, (a, b) in zip(self.connectors, self.pairs, strict=True):
            own, taught = (connect(s[a]), t[b]) if self.matrix == "channels" else to_smaller(s[a], t[b])
            vectors, value = decomposed(as_matrices(taught, self.matrix), self.vectors)
            students.append(decomposed(as_matrices(own, self.matrix), self.vectors + CANDIDATES)[0])
            teachers.append(vectors)
            values.append(value)
        return {"ce": cross_entropy(s.logits, batch.y), "svd": kdsvd_loss(students, teachers, values)}
