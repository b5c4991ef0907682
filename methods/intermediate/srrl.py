"""Softmax regression representation learning (Yang et al., ICLR 2021, OpenReview ZzwDy_wiWv)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy
from kdbench.method import Method
from kdbench.models.base import he_init
from kdbench.taps import Out, Spec, Taps
from methods.intermediate.connector import averaged, classifier, conv_norm_relu
from methods.intermediate.fitnet import hint_loss


class Connector(nn.Sequential):
    """A 1x1 convolution to the teacher's channels with norm and ReLU, of maps (B, C, H, W) or pooled features (B, C);
    the means over positions, (B, C_t)."""

    def __init__(self, student: int, teacher: int) -> None:
        super().__init__(*conv_norm_relu(student, teacher))
        he_init(self)

    def forward(self, s: Tensor) -> Tensor:
        return averaged(super().forward(s if s.dim() == 4 else s[:, :, None, None]))


class SRRL(Method):
    """L = CE(y, s) + α · mean (f - f_t)² + β · mean (W_t f - z_t)², with f of the student in the teacher's place.

    f is the student's last feature behind a `Connector`, W_t the teacher's own classifier, which stays as it is: what
    f differs from f_t in counts by what the classifier makes of it. Means are over B·C and over B·K.

    Args:
        of: what the connector reads: the last ``map``, averaged behind it, as in the authors' code
            (jingyang2017/KD_SRRL), or the ``pooled`` features, as in DefangChen/SimKD.
    """

    leaf = "intermediate/features"
    paper = "yang2021knowledge"
    title = "SRRL"
    extension = True
    terms = ("ce", "feature", "regression")
    survey: ClassVar = {
        "teacher_transform": "its own classifier",
        "student_transform": "1x1 convolution; the teacher's classifier",
        "knowledge": "pooled features and their logits",
        "position": "pooled features",
        "distance": "L2",
        "lost": "none",
    }

    def __init__(self, of: Literal["map", "pooled"] = "map", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.taps = Taps(student=("stage-1" if of == "map" else "embed",), teacher=("embed",))

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        (self.own,) = student.resolve(self.taps.student)
        self.connector = Connector(student.channels(self.own), teacher.channels("embed"))
        # a tuple hides the teacher's weights from nn.Module
        self.head = (classifier(teacher, data.shape_for_teacher or data.shape, "embed"),)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        feature = self.connector(s[self.own])
        return {
            "ce": cross_entropy(s.logits, batch.y),
            "feature": hint_loss(feature, t.embed),
            "regression": hint_loss(self.head[0](feature), t.logits),
        }
