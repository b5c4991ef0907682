"""A gift from knowledge distillation (Yim, Joo, Bae, Kim, CVPR 2017, DOI 10.1109/CVPR.2017.754)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method, Stage
from kdbench.settings import Share
from kdbench.taps import Out, Spec, Taps, aligned
from methods.intermediate.widths import same_width

Variant = Literal["repdistiller", "paper"]


@in_float32
def flow(first: Tensor, second: Tensor, variant: Variant = "repdistiller") -> Tensor:
    """FSP matrix of two layers (equation 1): G = F1 F2ᵀ / (H · W), summed over positions, (B, C1, C2).

    Maps (B, C, H, W); the larger one is first pooled to the size of the smaller: by the maximum in the paper, on
    average in RepDistiller's distiller_zoo/FSP.py.
    """
    pool = F.adaptive_max_pool2d if variant == "paper" else F.adaptive_avg_pool2d
    height, width = (min(first.shape[axis], second.shape[axis]) for axis in (2, 3))
    first, second = (x if x.shape[2:] == (height, width) else pool(x, (height, width)) for x in (first, second))
    return first.flatten(2) @ second.flatten(2).mT / (height * width)


@in_float32
def fsp_loss(student: Tensor, teacher: Tensor, variant: Variant = "repdistiller") -> Tensor:
    """Squared difference of two FSP matrices (B, C1, C2).

    The mean over all of their entries in RepDistiller; in the paper (equation 2) summed over C1 · C2, averaged over B.
    """
    difference = (student - teacher).square()
    return difference.sum((1, 2)).mean() if variant == "paper" else difference.mean()


class FSP(Method):
    """Two stages: the student first learns how the teacher gets from layer to layer, then the task alone.

    Stage ``flow``:  L = Σ_i `fsp_loss`( G_i(s), G_i(t) ),  G_i = `flow` from layer i to layer i + 1
    Stage ``task``:  L = CE(y, s)

    over the stem and the ends of the stages. With ``flow_share = 0`` both merge into one stage, L = CE + λ · Σ_i
    `fsp_loss`. FSP matrices can be compared where both networks have the same widths; where they differ the student's
    maps pass a `same_width`, which is ours (RepDistiller leaves such pairs out).

    Args:
        flow_share: share of the epochs of the first stage, within the protocol's budget.
        variant: whose pooling and reduction.
    """

    leaf = "intermediate/features"
    paper = "yim2017gift"
    title = "FSP"
    taps = Taps(student=("stem", "stage*"), teacher=("stem", "stage*"))
    terms = ("fsp", "ce")
    survey: ClassVar = {
        "teacher_transform": "Gram matrix of two layers",
        "student_transform": "Gram matrix of two layers",
        "knowledge": "flow between layers",
        "position": "begin and end of each stage",
        "distance": "L2",
        "lost": "positions",
    }

    def __init__(self, flow_share: Share = 0.125, variant: Variant = "repdistiller", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.flow_share, self.variant = flow_share, variant

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        self.pairs = [("stem", "stem"), *aligned(student, teacher)]
        self.connectors = nn.ModuleList(same_width(student.shapes[a], teacher.shapes[b]) for a, b in self.pairs)

    def stages(self) -> Sequence[Stage]:
        if self.flow_share == 0:
            return (Stage("joint"),)
        return (Stage("flow", self.flow_share), Stage("task", 1 - self.flow_share))

    def teach(self, batch: Batch) -> Out | None:
        return None if self.stage == "task" else super().teach(batch)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        ce = {} if self.stage == "flow" else {"ce": cross_entropy(s.logits, batch.y)}
        return ce if self.stage == "task" else {"fsp": self.flows_apart(s, t), **ce}

    def flows_apart(self, s: Out, t: Out) -> Tensor:
        """Σ_i `fsp_loss`."""
        students = [connect(s[a]) for connect, (a, _) in zip(self.connectors, self.pairs, strict=True)]
        teachers = [t[b] for _, b in self.pairs]
        flows = [[flow(a, b, self.variant) for a, b in pairwise(maps)] for maps in (students, teachers)]
        return torch.stack([fsp_loss(a, b, self.variant) for a, b in zip(*flows, strict=True)]).sum()
