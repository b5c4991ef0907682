"""KD++: regularising feature norm and direction (Wang et al., arXiv 2023, arXiv:2305.17007)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32, kl
from kdbench.method import Method, Stage
from kdbench.settings import Temperature
from kdbench.taps import Out, Spec, Taps

PART = 500
"""Images whose features are computed at once."""
DROPPED = 0.5
"""Of the student's features in front of its embedding layer: CIFAR/DIST++/models/embtrans_cifar.py of the authors."""


@in_float32
def norm_direction_loss(student: Tensor, teacher: Tensor, centres: Tensor, y: Tensor) -> Tensor:
    """Mean over the batch of 1 - <s, e_y> / max(‖s‖, ‖t‖), e = c / ‖c‖ of the class centres c.

    A student that is shorter than its teacher grows along the direction of its class; one that is longer only turns.

    Args:
        student, teacher: pooled features, (B, D).
        centres: mean features of the teacher for each class, (K, D).
        y: class indices, (B,).
    """
    length = torch.maximum(student.norm(dim=1), teacher.norm(dim=1))
    along = (student * F.normalize(centres, dim=1)[y]).sum(1)
    return (1 - along / length.clamp(min=torch.finfo(length.dtype).tiny)).mean()


class KDpp(Method):
    """L = CE(y, s) + α · T² · KL( softmax(t / T) || softmax(s / T) ) + β · `norm_direction_loss` of pooled features.

    Before training, the teacher's features of all training images without augmentation are averaged for each class. A
    student of another width has batch norm, dropout and a linear layer in front of the last term, as in the authors'
    code.

    Args:
        temperature: T.
    """

    leaf = "intermediate/features"
    paper = "wang2023improving"
    title = "KD++"
    extension = True
    taps = Taps(student=("embed",), teacher=("embed",))
    terms = ("ce", "kd", "nd")
    survey: ClassVar = {
        "teacher_transform": "mean of each class, normalised",
        "student_transform": "none, or a linear layer",
        "knowledge": "norm and direction of features",
        "position": "pooled features",
        "distance": "1 - projection on the class's direction",
        "lost": "what tells images of a class apart",
    }
    centres: Tensor

    def __init__(self, temperature: Temperature = 4.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        own, taught = student.channels("embed"), teacher.channels("embed")
        self.norm = nn.BatchNorm1d(own) if own != taught else None
        self.linear = nn.Linear(own, taught) if own != taught else None
        self.register_buffer("centres", torch.zeros(data.num_classes, taught))

    def stages(self) -> Sequence[Stage]:
        return (Stage("centres", 0, self.find_centres), Stage("train"))

    @torch.no_grad()
    def find_centres(self) -> None:
        """Class means of the teacher's features; zero for a class without images, which then pulls nowhere."""
        total, count = torch.zeros_like(self.centres), self.centres.new_zeros(len(self.centres), 1)
        for part in self.positions().split(PART):
            batch = self.take(part, plain=True)
            embed = self.teacher_out(batch.for_teacher.x).embed.to(total)
            total.index_add_(0, batch.y, embed)
            count.index_add_(0, batch.y, torch.ones_like(embed[:, :1]))
        self.centres.copy_(total / count.clamp(min=1))

    def widened(self, embed: Tensor) -> Tensor:
        """The student's features (B, D_s) in the teacher's space, (B, D_t)."""
        if self.norm is None or self.linear is None:
            return embed
        kept = torch.rand(embed.shape, generator=self.rng).to(embed.device) >= DROPPED
        widened: Tensor = self.linear(self.norm(embed) * kept / (1 - DROPPED))
        return widened

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {
            "ce": cross_entropy(s.logits, batch.y),
            "kd": kl(s.logits, t.logits, self.temperature),
            "nd": norm_direction_loss(self.widened(s.embed), t.embed, self.centres, batch.y),
        }
