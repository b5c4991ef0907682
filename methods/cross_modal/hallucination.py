"""Learning with side information through modality hallucination (Hoffman, Gupta, Darrell, CVPR 2016,
DOI 10.1109/CVPR.2016.96)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32, to_smaller
from kdbench.method import Method
from kdbench.taps import Out, Spec, Taps
from methods.intermediate.widths import same_width


@in_float32
def hallucination_loss(hallucinated: Tensor, side: Tensor) -> Tensor:
    """‖σ(A_h) - σ(A_d)‖² of mid-level maps (B, C, H, W), σ the sigmoid, summed over C, H and W, averaged over B.

    Equation 1. Of two maps the larger is average-pooled to the size of the smaller.
    """
    a, b = to_smaller(hallucinated, side)
    return (a.sigmoid() - b.sigmoid()).square().flatten(1).sum(1).mean()


class Both(nn.Module):
    """Mean of the logits of two networks."""

    def __init__(self, student: nn.Module, hallucination: nn.Module) -> None:
        super().__init__()
        self.student, self.hallucination = student, hallucination

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = (self.student(x) + self.hallucination(x)) / 2
        return logits


class Hallucination(Method):
    """L = γ · `hallucination_loss`(h, t) + α · [ CE(y, h) + CE(y, s) + CE(y, (s + h) / 2) + CE(y, (s + t) / 2) ]

    A second network of the student's architecture, h, sees what the student s sees, and hallucinates the mid-level maps
    of the teacher t, whose modality is there in training alone (scenario=paired). Means are of logits. The networks s
    and h are deployed together, so what is shipped is twice the student.

    The paper also begins h as t, and trains on t's layers behind the map; here t is frozen, and h begins afresh, as it
    may be of another architecture. A linear 1x1 convolution stands between maps that differ in channels.
    """

    leaf = "cross-modal/supervised"
    paper = "hoffman2016learning"
    title = "Hallucination"
    extension = True
    needs = frozenset({"teacher", "labels", "peers"})
    taps = Taps(student=("stage-1",), teacher=("stage-1",))
    terms = ("hallucination", "ce")
    survey: ClassVar = {
        "source": "depth",
        "target": "images",
        "teachers": "1",
        "online": "no",
        "knowledge": "mid-level maps, hallucinated",
        "labels": "yes",
        "compression": "no: two networks",
    }

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        (self.own,), (self.taught,) = student.resolve(self.taps.student), teacher.resolve(self.taps.teacher)
        self.adapter = same_width(student.shapes[self.own], teacher.shapes[self.taught])
        self.net = Both(self.student, self.spawn(1))

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        h = self.student_out(batch.x, self.net.hallucination)
        judged = [h.logits, s.logits, (s.logits + h.logits) / 2, (s.logits + t.logits) / 2]
        return {
            "hallucination": hallucination_loss(self.adapter(h[self.own]), t[self.taught]),
            "ce": torch.stack([cross_entropy(logits, batch.y) for logits in judged]).sum(),
        }

    def deployed(self) -> nn.Module:
        return self.net
