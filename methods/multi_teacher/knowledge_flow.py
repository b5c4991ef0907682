"""Knowledge flow (Liu, Peng, Schwing, ICLR 2019, arXiv:1904.05878)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method
from kdbench.taps import UNCUT, Out, Spec, Taps
from methods.multi_teacher.ka import groups_of_taps


@in_float32
def dependence_loss(scores: Tensor) -> Tensor:
    """-Σ_j log p_j(own), with the normalised weights p_j = softmax over candidates of layer j's `scores`, (J, 1 + N).

    The first candidate is the student's own layer: the loss is zero for a student that takes nothing from its teachers.
    """
    return -scores.log_softmax(1)[:, 0].sum()


@in_float32
def flowed(scores: Tensor, own: Tensor, teachers: Sequence[Tensor]) -> Tensor:
    """Σ_c p(c) · z_c over the student's map and the teachers', (B, C, H, W), with p = softmax of `scores`, (1 + N,).

    The teachers' maps are resized to the student's.
    """
    resized = (z if z.shape == own.shape else F.adaptive_avg_pool2d(z, (own.shape[2], own.shape[3])) for z in teachers)
    return torch.einsum("c,cbdhw->bdhw", scores.softmax(0), torch.stack([own, *resized]))


class KnowledgeFlow(Method):
    """Teachers' layers flow into the student's, with weights that it learns, and is driven to give up in the end.

    L = CE(y, logits of the student with `flowed` layers) + λ · `dependence_loss`

    where each stage of the student reads its own map and, by a 1x1 convolution for each, those of the teachers at the
    same depth. λ grows, and the student that is deployed has no teacher. The paper also holds the student's outputs
    together while its weights change, by a KL term to what they were before; it is left out here. The student passes
    without teachers, too, for its first stage; stages are repeated behind each inflow, uncounted.
    """

    leaf = "multi-teacher/amalgamation"
    paper = "liu2019knowledge"
    title = "Knowledge flow"
    needs = frozenset({"teachers", "labels"})
    taps = Taps(student=("stage*",), teacher=("stage*",))
    terms = ("ce", "dependence")
    survey: ClassVar = {
        "ensemble_logits": "none",
        "ensemble_features": "weighted sum with the student's layers",
        "unify_data": "yes",
        "customize": "yes",
        "peers": "no",
        "online": "no",
        "objective": "CE + dependence",
    }

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        if not hasattr(self.student, "tail"):
            raise DoesNotFit(UNCUT)
        self.groups = groups_of_taps(student, self.teachers)
        # in a tuple, for these are the student's own modules
        self.tails = tuple(self.student.tail(own) for own, *_ in self.groups)  # type: ignore[operator]
        self.layer_scores = nn.Parameter(torch.zeros(len(self.groups), 1 + len(self.teachers)))
        self.inflows = nn.ModuleList(
            nn.ModuleList(
                nn.Conv2d(spec.channels(tap), student.channels(own), 1)
                for spec, tap in zip(self.teachers, theirs, strict=True)
            )
            for own, *theirs in self.groups
        )

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        z: Mapping[str, Tensor] = s.taps
        stages = [own for own, *_ in self.groups]
        for j, (own, *theirs) in enumerate(self.groups):
            flows = [inflow(each[tap]) for inflow, each, tap in zip(self.inflows[j], t.each, theirs, strict=True)]  # type: ignore[call-overload]
            z = self.tails[j].tap(flowed(self.layer_scores[j], z[own], flows), stages[j + 1 :])
        return {"ce": cross_entropy(z["logits"], batch.y), "dependence": dependence_loss(self.layer_scores)}
