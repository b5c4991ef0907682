"""CompRess: self-supervised learning by compressing representations (Koohpayegani et al., NeurIPS 2020,
arXiv:2010.14713)."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import in_float32, kl
from kdbench.settings import Count, Share, Temperature
from kdbench.taps import Spec
from methods.learning.linear_probe import LinearProbe, Queue, queue_size
from methods.learning.mean_teacher import follow


@in_float32
def anchored_loss(
    student: Tensor, teacher: Tensor, student_anchors: Tensor, teacher_anchors: Tensor, temperature: float = 0.04
) -> Tensor:
    """KL( softmax(t · A_t / τ) || softmax(s · A_s / τ) ), summed over K anchors, averaged over the batch.

    Embeddings (B, D_s) and (B, D_t) are brought to length one; anchors, (K, D_s) and (K, D_t), row by row of the same
    images, are taken as they are. No gradient reaches the teacher's side.
    """
    s, t = F.normalize(student, dim=1), F.normalize(teacher.detach(), dim=1)
    return kl(s @ student_anchors.T / temperature, t @ teacher_anchors.T / temperature)


class CompRess(LinearProbe):
    """Each image is as similar to the images before it for the student as for the teacher, each in its own space.

    L = `anchored_loss`( f_s, f_t, queue of f'_s, queue of f_t ),  then a linear classifier on f_s (see `LinearProbe`)

    f are pooled features, f' those of an average of the student's weights, so that its queue ages slowly; no labels.
    The authors' teacher was trained without labels, too.

    Args:
        queue: K, no more than there are training images.
        temperature: τ.
        momentum: of the average; with 0 the queue holds the student's own features.
        linear_share: share of the epochs in which the classifier is trained, within the protocol's budget.
    """

    leaf = "learning/semi-self-supervised"
    paper = "koohpayegani2020compress"
    title = "CompRess, two queues"
    extension = True
    terms = ("similarity", "linear")
    survey: ClassVar = {
        "supervision": "self-supervised",
        "labelled_data": "all, for a linear classifier alone",
        "consistency": "KL of similarities to two queues",
    }

    def __init__(
        self,
        queue: Count = 128000,
        temperature: Temperature = 0.04,
        momentum: Share = 0.999,
        linear_share: Share = 0.25,
        **kwargs: Any,
    ) -> None:
        super().__init__(linear_share=linear_share, **kwargs)
        self.queue, self.temperature, self.momentum = queue, temperature, momentum

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        super().build(student, teacher, data)
        self.average = copy.deepcopy(self.student).requires_grad_(False)
        size = queue_size(self.queue, data)
        self.student_anchors = Queue(size, student.channels("embed"))
        self.teacher_anchors = Queue(size, teacher.channels("embed"))

    def features_terms(self, batch: Batch) -> dict[str, Tensor]:
        t, s = self.teacher_out(batch.for_teacher.x).embed, self.student_out(batch.x).embed
        self._seen = F.normalize(self.teacher_out(batch.x, self.average).embed, dim=1), F.normalize(t, dim=1)
        similarity = anchored_loss(s, t, self.student_anchors.rows, self.teacher_anchors.rows, self.temperature)
        return {"similarity": similarity}

    def after_step(self, batch: Batch) -> None:
        if self.stage == "features":
            for anchors, seen in zip((self.student_anchors, self.teacher_anchors), self._seen, strict=True):
                anchors.enter(seen)
            follow(self.average, self.student, self.momentum)


class CompRessOneQueue(LinearProbe):
    """Both sides are compared with the teacher's features of the images before.

    L = `anchored_loss`( W f_s, f_t, queue of f_t, queue of f_t ),  then a linear classifier on f_s

    W is a linear layer from the student's pooled features to as many as the teacher's, which is dropped; no labels.

    Args:
        queue: K, no more than there are training images.
        temperature: τ.
        linear_share: share of the epochs in which the classifier is trained, within the protocol's budget.
    """

    leaf = "learning/semi-self-supervised"
    paper = "koohpayegani2020compress"
    title = "CompRess, one queue"
    extension = True
    terms = ("similarity", "linear")
    survey: ClassVar = {**CompRess.survey, "consistency": "KL of similarities to the teacher's queue"}

    def __init__(
        self, queue: Count = 128000, temperature: Temperature = 0.04, linear_share: Share = 0.25, **kwargs: Any
    ) -> None:
        super().__init__(linear_share=linear_share, **kwargs)
        self.queue, self.temperature = queue, temperature

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        super().build(student, teacher, data)
        features = teacher.channels("embed")
        self.adapter = nn.Linear(student.channels("embed"), features)
        self.anchors = Queue(queue_size(self.queue, data), features)

    def features_terms(self, batch: Batch) -> dict[str, Tensor]:
        t, s = self.teacher_out(batch.for_teacher.x).embed, self.adapter(self.student_out(batch.x).embed)
        self._seen = F.normalize(t, dim=1)
        return {"similarity": anchored_loss(s, t, self.anchors.rows, self.anchors.rows, self.temperature)}

    def after_step(self, batch: Batch) -> None:
        if self.stage == "features":
            self.anchors.enter(self._seen)
