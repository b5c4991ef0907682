"""Mean Teacher with two heads (Tarvainen and Valpola, NeurIPS 2017, arXiv:1703.01780)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import in_float32
from kdbench.taps import Spec, Taps
from methods.learning.consistency import everything, everything_again, masked_ce
from methods.learning.mean_teacher import MeanTeacher, consistency_loss


@in_float32
def logit_distance_loss(a: Tensor, b: Tensor) -> Tensor:
    """Mean over N·K of ( a - b )², for logits (N, K) of two heads; gradients reach both."""
    return (a - b).square().mean()


class MeanTeacherDistance(MeanTeacher):
    """A second head is consistent with the averaged student, the first learns from labels, and both stay close.

    L = CE(y, s) on labelled images + w · `consistency_loss`(s', average) + v · `logit_distance_loss`(s, s') on all

    where s' is a linear layer of its own on the student's pooled features. So a strong consistency binds the
    classifier less. The average has the first head alone; all else is as in `MeanTeacher`.
    """

    title = "Mean Teacher, two heads"
    taps = Taps(student=("embed",))
    terms = ("ce", "consistency", "distance")  # type: ignore[assignment]
    survey: ClassVar = {**MeanTeacher.survey, "consistency": "MSE of a second head's softmax to the averaged student's"}

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        super().build(student, teacher, data)
        self.consistent = nn.Linear(student.channels("embed"), data.num_classes)

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        s, t = self.student_out(everything(batch)), self.teacher_out(everything_again(batch), self.average)
        consistent = self.consistent(s.embed)
        yield (
            "student",
            {
                "ce": masked_ce(s.logits, batch.y),
                "consistency": consistency_loss(consistent, t.logits),
                "distance": logit_distance_loss(s.logits, consistent),
            },
        )
