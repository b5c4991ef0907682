"""Learning metrics from teachers (Yu et al., CVPR 2019, arXiv:1904.03624): the absolute and the relative teacher."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method
from kdbench.taps import Out, Spec, Taps
from methods.intermediate.crd import on_sphere
from methods.logits.distances import distances


@in_float32
def absolute_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """1 / B · Σ_b ‖s_b - t_b‖ of embeddings (B, D); the norm is not squared (yulu0724/EmbeddingDistillation)."""
    return F.pairwise_distance(student, teacher).mean()


@in_float32
def relative_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """‖D_s - D_t‖, D_ij = ‖x_i - x_j‖, of embeddings (B, D_s) and (B, D_t).

    One norm over all pairs of the batch, as in yulu0724/EmbeddingDistillation, train_distillation.py: it grows with B.
    """
    return torch.linalg.vector_norm(distances(student) - distances(teacher))


class AbsoluteTeacher(Method):
    """L = CE(y, s) + λ · `absolute_loss`(f_s / ‖f_s‖, f_t / ‖f_t‖): embeddings lie where the teacher's lie.

    CE stands where the paper has a triplet loss, the metric loss of its task. The student's pooled features pass a
    linear layer where the teacher has another number of them.
    """

    leaf = "logits/strictness"
    paper = "yu2019learning"
    title = "Absolute teacher"
    taps = Taps(student=("embed",), teacher=("embed",))
    terms = ("ce", "absolute")
    survey: ClassVar = {
        "description": "places of the embeddings",
        "objective": "CE(y, s) + λ ‖e_s - e_t‖",
    }

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        own, features = student.channels("embed"), teacher.channels("embed")
        self.adapter = nn.Identity() if own == features else nn.Linear(own, features)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        embed = on_sphere(self.adapter(s.embed))
        return {"ce": cross_entropy(s.logits, batch.y), "absolute": absolute_loss(embed, on_sphere(t.embed))}


class RelativeTeacher(Method):
    """L = CE(y, s) + λ · `relative_loss`(f_s / ‖f_s‖, f_t / ‖f_t‖): embeddings lie as far apart as the teacher's.

    CE stands where the paper has a triplet loss, the metric loss of its task.
    """

    leaf = "logits/strictness"
    paper = "yu2019learning"
    title = "Relative teacher"
    taps = Taps(student=("embed",), teacher=("embed",))
    terms = ("ce", "relative")
    survey: ClassVar = {
        "description": "distances between the embeddings of a batch",
        "objective": "CE(y, s) + λ ‖D_s - D_t‖",
    }

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {
            "ce": cross_entropy(s.logits, batch.y),
            "relative": relative_loss(on_sphere(s.embed), on_sphere(t.embed)),
        }
