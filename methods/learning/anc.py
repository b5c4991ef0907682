"""Adversarial network compression (Belagiannis, Farshad, Galasso, ECCV 2018 workshops, arXiv:1803.10750)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import in_float32
from kdbench.method import Method, Player
from kdbench.settings import Positive
from kdbench.taps import Spec, Taps


@in_float32
def logits_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """‖s - t‖² of logits (B, K), summed over classes, averaged over the batch: L_DATA of the paper."""
    return (student - teacher).square().sum(1).mean()


@in_float32
def taken_for(teacher: bool, scores: Tensor) -> Tensor:
    """Mean over the batch of -log D(f) (or of -log(1 - D(f)), where `teacher` is false), from logits of D, (B,)."""
    return F.binary_cross_entropy_with_logits(scores, scores.new_full(scores.shape, float(teacher)))


class Discriminator(nn.Sequential):
    """Three layers of 128, 256 and 128 units with ReLUs, and one logit: whose features (B, D) are these?"""

    def __init__(self, features: int) -> None:
        widths = (features, 128, 256, 128)
        layers = [(nn.Linear(a, b), nn.ReLU()) for a, b in pairwise(widths)]
        super().__init__(*(part for layer in layers for part in layer), nn.Linear(128, 1), nn.Flatten(0))


class ANC(Method):
    """A discriminator D tells the teacher's pooled features from the student's; no labels.

    Student:        L = λ · ‖s - t‖² - log D(f_s)
    Discriminator:  L = - log D(f_t) - log(1 - D(f_s)) - μ · log D(f_s)

    with the weights of ``logits``, ``adversarial``, ``discriminator`` and ``regularizer`` (μ): the last one feeds
    the discriminator adversarial samples, student's features under the teacher's name, that it does not become
    trivially strong. The student's features pass a linear layer where the teacher has another number of them.

    Args:
        discriminator_lr: learning rate of its Adam.
    """

    leaf = "learning/adversarial"
    paper = "belagiannis2018adversarial"
    title = "ANC"
    needs = frozenset({"teacher"})
    taps = Taps(student=("embed",), teacher=("embed",))
    terms = ("logits", "adversarial", "discriminator", "regularizer")
    survey: ClassVar = {
        "gan": "GAN",
        "purpose": "student's features like the teacher's",
        "discriminator_input": "pooled features",
        "generators": "1, the student",
        "discriminators": "1",
        "online": "no",
    }

    def __init__(self, discriminator_lr: Positive = 1e-3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.discriminator_lr = discriminator_lr

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        own, features = student.channels("embed"), teacher.channels("embed")
        self.adapter = nn.Identity() if own == features else nn.Linear(own, features)
        self.discriminator = Discriminator(features)

    def players(self) -> Sequence[Player]:
        adam = {"_target_": "torch.optim.Adam", "lr": self.discriminator_lr}
        return [
            Player("student", [*self.student.parameters(), *self.adapter.parameters()]),
            Player("discriminator", list(self.discriminator.parameters()), adam),
        ]

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        s, t = self.student_out(batch.x), self.teacher_out(batch.x)
        features = self.adapter(s.embed)
        yield (
            "student",
            {
                "logits": logits_loss(s.logits, t.logits),
                "adversarial": taken_for(teacher=True, scores=self.discriminator(features)),
            },
        )
        fake, real = self.discriminator(features.detach()), self.discriminator(t.embed)
        yield (
            "discriminator",
            {
                "discriminator": taken_for(teacher=True, scores=real) + taken_for(teacher=False, scores=fake),
                "regularizer": taken_for(teacher=True, scores=fake),
            },
        )
