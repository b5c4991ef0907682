"""Knowledge distillation with conditional adversarial networks (Xu, Hsu, Huang, BMVC 2018, arXiv:1709.00513)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method, Player
from kdbench.settings import Count, Positive
from kdbench.taps import Spec
from methods.learning.anc import taken_for


@in_float32
def alignment_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """|s - t| of logits (B, K), averaged over both."""
    return F.l1_loss(student, teacher)


class Discriminator(nn.Module):
    """Two hidden layers; of logits (B, K) it says whose they are, (B,), and of which class their image, (B, K)."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(classes, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.whose, self.label = nn.Linear(width, 1), nn.Linear(width, classes)

    def forward(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.trunk(logits)
        return self.whose(hidden).squeeze(1), self.label(hidden)


class ConditionalAdversarial(Method):
    """The discriminator D of logits says teacher or student, and which class, as in an auxiliary classifier GAN.

    Student:        L = CE(y, s) + λ · |s - t| + γ · ½ ( log D(student | s) - log D(y | s) )
    Discriminator:  L = - ½ ( log D(teacher | t) + log D(student | s) + log D(y | t) + log D(y | s) )

    The terms ``adversarial`` and ``discriminator`` are these two sums, with the half: student and discriminator play
    for whose the logits are, and work together for the class.

    Args:
        width: of the hidden layers of D.
        discriminator_lr: learning rate of its Adam.
    """

    leaf = "learning/adversarial"
    paper = "xu2018training"
    title = "Conditional adversarial"
    terms = ("ce", "l1", "adversarial", "discriminator")
    survey: ClassVar = {
        "gan": "AC-GAN",
        "purpose": "a loss that is learned",
        "discriminator_input": "logits",
        "generators": "1, the student",
        "discriminators": "1",
        "online": "no",
    }

    def __init__(self, width: Count = 128, discriminator_lr: Positive = 1e-3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.width, self.discriminator_lr = width, discriminator_lr

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.discriminator = Discriminator(student.channels("logits"), self.width)

    def players(self) -> Sequence[Player]:
        adam = {"_target_": "torch.optim.Adam", "lr": self.discriminator_lr}
        return [
            Player("student", list(self.student.parameters())),
            Player("discriminator", list(self.discriminator.parameters()), adam),
        ]

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        s, t = self.student_out(batch.x).logits, self.teacher_out(batch.for_teacher.x).logits
        whose, label = self.discriminator(s)
        yield (
            "student",
            {
                "ce": cross_entropy(s, batch.y),
                "l1": alignment_loss(s, t),
                "adversarial": (cross_entropy(label, batch.y) - taken_for(teacher=False, scores=whose)) / 2,
            },
        )
        (fake, fake_label), (real, real_label) = self.discriminator(s.detach()), self.discriminator(t)
        told_apart = taken_for(teacher=True, scores=real) + taken_for(teacher=False, scores=fake)
        classified = cross_entropy(real_label, batch.y) + cross_entropy(fake_label, batch.y)
        yield "discriminator", {"discriminator": (told_apart + classified) / 2}
