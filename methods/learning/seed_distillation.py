"""SEED: self-supervised distillation (Fang et al., ICLR 2021, arXiv:2101.04731)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32
from kdbench.settings import Count, Share, Temperature
from kdbench.taps import Spec
from methods.learning.linear_probe import LinearProbe, Queue, queue_size


@in_float32
def seed_loss(
    student: Tensor, teacher: Tensor, queue: Tensor, temperature: float = 0.2, teacher_temperature: float = 0.01
) -> Tensor:
    """H( softmax(t · A / τ_t), softmax(s · A / τ_s) ), summed over 1 + K anchors A, averaged over the batch.

    The first anchor is the teacher's embedding of the image itself, the others are the `queue` (K, D). Embeddings
    (B, D) are brought to length one; no gradient reaches those of the teacher. A cross-entropy, with the teacher's
    entropy in it.
    """
    s, t = F.normalize(student, dim=1), F.normalize(teacher.detach(), dim=1)
    own = [(x * t).sum(1, keepdim=True) for x in (s, t)]
    to_student, to_teacher = (torch.cat([one, x @ queue.T], 1) for one, x in zip(own, (s, t), strict=True))
    return cross_entropy(to_student / temperature, (to_teacher / teacher_temperature).softmax(1))


class SEEDDistillation(LinearProbe):
    """The student is as similar to the teacher's embeddings of other images as the teacher is; no labels.

    L = `seed_loss`( g(f_s), f_t, queue of past f_t ),  then a linear classifier on f_s (see `LinearProbe`)

    f are pooled features, g is two linear layers with a ReLU between, which are dropped. The authors' teacher was
    trained without labels too, and has such layers of its own.

    Args:
        queue: K, no more than there are training images.
        temperature, teacher_temperature: τ_s, τ_t.
        linear_share: share of the epochs in which the classifier is trained, within the protocol's budget.
    """

    leaf = "learning/semi-self-supervised"
    paper = "fang2021seed"
    title = "SEED"
    extension = True
    terms = ("seed", "linear")
    survey: ClassVar = {
        "supervision": "self-supervised",
        "labelled_data": "all, for a linear classifier alone",
        "consistency": "cross-entropy of similarities to a queue",
    }

    def __init__(
        self,
        queue: Count = 65536,
        temperature: Temperature = 0.2,
        teacher_temperature: Temperature = 0.01,
        linear_share: Share = 1 / 3,
        **kwargs: Any,
    ) -> None:
        super().__init__(linear_share=linear_share, **kwargs)
        self.queue, self.temperature, self.teacher_temperature = queue, temperature, teacher_temperature

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        super().build(student, teacher, data)
        own, features = student.channels("embed"), teacher.channels("embed")
        self.projection = nn.Sequential(nn.Linear(own, own), nn.ReLU(), nn.Linear(own, features))
        self.anchors = Queue(queue_size(self.queue, data), features)

    def features_terms(self, batch: Batch) -> dict[str, Tensor]:
        t = self.teacher_out(batch.for_teacher.x).embed
        s = self.projection(self.student_out(batch.x).embed)
        self._seen = F.normalize(t, dim=1)
        return {"seed": seed_loss(s, t, self.anchors.rows, self.temperature, self.teacher_temperature)}

    def after_step(self, batch: Batch) -> None:
        if self.stage == "features":
            self.anchors.enter(self._seen)
