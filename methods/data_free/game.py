"""The game of adversarial data-free distillation: a generator seeks the images on which student and teacher differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdbench.data.batch import DataSpec
from kdbench.errors import DoesNotFit
from kdbench.method import Method, Player
from kdbench.settings import Count, Positive
from kdbench.taps import Spec
from methods.data_free.dafl import Generator
from methods.data_free.generators import PlainGenerator


class Game(Method):
    """A generator that is trained by Adam, and a student that has several steps for each of its.

    No training image is seen: batches carry only their size.

    Args:
        noise: size of what the generator is given.
        generator_lr: learning rate of its Adam.
        student_steps: of the student, for each of the generator.
    """

    needs = frozenset({"teacher", "no_data"})
    maker: ClassVar[type[Generator]] = PlainGenerator
    betas: ClassVar[tuple[float, float]] = (0.9, 0.999)

    def __init__(self, noise: Count, generator_lr: Positive, student_steps: Count, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.noise, self.generator_lr, self.student_steps = noise, generator_lr, student_steps

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        if min(data.shape[1:]) < 4:
            raise DoesNotFit(
                f"{self.title}'s generator makes images of at least 4x4, not {data.shape}: choose another data set."
            )
        self.generator = self.maker(self.noise, data.shape)

    def players(self) -> Sequence[Player]:
        adam = {"_target_": "torch.optim.Adam", "lr": self.generator_lr, "betas": self.betas}
        return (
            Player("generator", list(self.generator.parameters()), optimizer=adam),
            Player("student", list(self.student.parameters())),
        )

    def draw(self, n: int) -> Tensor:
        """Noise for `n` images."""
        return torch.randn(n, self.noise, generator=self.rng).to(self.device)
