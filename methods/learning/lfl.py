"""Less-forgetting learning in deep neural networks (Jung et al., arXiv 2016, arXiv:1607.00122)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method, Player, Snapshot, Stage
from kdbench.taps import Out, Spec, Taps
from methods.intermediate.connector import classifier


@in_float32
def euclidean_loss(student: Tensor, past: Tensor) -> Tensor:
    """½ ‖f(x; θ) - f(x; θ_past)‖² of features (B, D), averaged over the batch (equation 2).

    No gradient reaches `past`. Avalanche has the mean over B·D without the ½, which is 2 / D of this.
    """
    return F.mse_loss(student, past.detach(), reduction="sum") / (2 * len(student))


class LFL(Method):
    """L = λ_c · CE(y, s) + λ_e · `euclidean_loss`(s, past self) of what the classifier reads, without any exemplar.

    The past self is the student as it was when the new domain came. From the second domain on the classifier stays as
    it is, so that its boundaries do; the features around them may not move far.
    """

    leaf = "learning/incremental"
    paper = "jung2016less"
    title = "LFL"
    extension = True
    needs = frozenset({"labels"})
    taps = Taps(student=("embed",))
    terms = ("ce", "feature")
    tasks = frozenset({"domain-incremental"})
    survey: ClassVar = {
        "knowledge": "features of the past self; its classifier",
        "objective": "CE + λ ½ L2 of features under a frozen classifier",
    }

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.frozen = {id(parameter) for parameter in classifier(student, data.shape, "embed").parameters()}
        self.past = Snapshot(self.student)

    def stages(self) -> Sequence[Stage]:
        return (Stage("train", begin=lambda: self.past.take(self.student)),)

    def players(self) -> Sequence[Player]:
        frozen = self.frozen if self.experience.number else ()
        return (Player("student", [each for each in self.student.parameters() if id(each) not in frozen]),)

    def teach(self, batch: Batch) -> Out | None:
        return self.teacher_out(batch.x, self.past) if self.experience.number else None

    def losses(self, s: Out, t: Out | None, batch: Batch) -> dict[str, Tensor]:
        terms = {"ce": cross_entropy(s.logits, batch.y)}
        return terms | ({"feature": euclidean_loss(s.embed, t.embed)} if t else {})
