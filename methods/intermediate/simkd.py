"""SimKD: the teacher's classifier, reused (Chen et al., CVPR 2022, arXiv:2203.14001)."""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import to_smaller
from kdbench.method import Method
from kdbench.settings import Count
from kdbench.taps import Out, Spec, Taps
from methods.intermediate.connector import averaged, classifier, conv_norm_relu
from methods.intermediate.fitnet import hint_loss


class Projector(nn.Sequential):
    """1x1, 3x3 and 1x1 convolutions with norm and ReLU, to the teacher's channels by way of a `factor`-th of them."""

    def __init__(self, student: int, teacher: int, factor: int) -> None:
        middle = max(teacher // factor, 1)
        super().__init__(
            *conv_norm_relu(student, middle), *conv_norm_relu(middle, middle, 3), *conv_norm_relu(middle, teacher)
        )


class Reused(nn.Module):
    """The student up to its last map, a projector, and the teacher's classifier, which stays as it is.

    Args:
        tap: of the student's last map.
        size: of the teacher's, (H, W); a larger map of the student's is average-pooled to it.
    """

    def __init__(
        self, student: nn.Module, tap: str, projector: Projector, size: tuple[int, ...], head: nn.Linear
    ) -> None:
        super().__init__()
        self.student, self.tap_name, self.size = student, tap, size
        self.projector = projector
        self.head = copy.deepcopy(head).requires_grad_(False).train()

    def project(self, s: Tensor) -> Tensor:
        """The student's maps in the teacher's place."""
        height, width = self.size
        projected: Tensor = self.projector(F.adaptive_avg_pool2d(s, (height, width)) if s.shape[2] > height else s)
        return projected

    def classify(self, projected: Tensor) -> Tensor:
        logits: Tensor = self.head(averaged(projected))
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.project(self.student.tap(x, (self.tap_name,))[self.tap_name]))  # type: ignore[operator]


class SimKD(Method):
    """L = `hint_loss`( P(s), t ) of the last maps, and nothing else; P(s) under the teacher's classifier is deployed.

    No labels are used. The mean is over B·C·H·W; of two maps the larger is average-pooled to the smaller first.

    Args:
        factor: by how much the middle of the projector P is narrower than the teacher's map.
    """

    leaf = "intermediate/features"
    paper = "chen2022knowledge"
    title = "SimKD"
    extension = True
    needs = frozenset({"teacher"})
    taps = Taps(student=("stage-1",), teacher=("stage-1",))
    terms = ("feature",)
    survey: ClassVar = {
        "teacher_transform": "none",
        "student_transform": "convolutional projector, deployed too",
        "knowledge": "feature map; the classifier itself",
        "position": "last stage",
        "distance": "L2",
        "lost": "none",
    }

    def __init__(self, factor: Count = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.factor = factor

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        (self.own,), (self.taught,) = student.resolve(self.taps.student), teacher.resolve(self.taps.teacher)
        projector = Projector(student.channels(self.own), teacher.channels(self.taught), self.factor)
        head = classifier(teacher, data.shape_for_teacher or data.shape, self.taught)
        self.net = Reused(self.student, self.own, projector, teacher.shapes[self.taught][1:], head)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        projected, hint = to_smaller(self.net.project(s[self.own]), t[self.taught])
        return {"feature": hint_loss(projected, hint)}

    def deployed(self) -> nn.Module:
        return self.net
