"""Data-free network quantization with adversarial knowledge distillation (Choi et al., 2020, arXiv:2005.04136).

As zju-vipa/DataFree has it, for distillation between networks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import kl
from kdbench.settings import Count, Positive
from kdbench.taps import Spec
from methods.data_free.dafl import information_entropy_loss, one_hot_loss
from methods.data_free.deep_inversion import Statistics
from methods.data_free.game import Game
from methods.data_free.generators import settled


class DFQ(Game):
    """L = KL( softmax(t) || softmax(s) ), the student's. The generator's is

    bn · Σ_l `statistics_loss` + oh · `one_hot_loss` + ie · `information_entropy_loss` - adv · L

    with DAFL's losses of confidence and, in natural logarithms, of class balance, and DeepInversion's of batch norms.
    For each batch the generator has one step, in which both networks go by their running statistics, and then the
    student has `student_steps`, each on new images, which are made by the generator's running statistics. The generator
    is DAFL's; that of the code named above is twice as wide.
    """

    leaf = "data-free/generator"
    paper = "choi2020data"
    title = "DFQ"
    extension = True
    terms = ("bn", "one_hot", "entropy", "adversarial", "kd")
    betas = (0.5, 0.999)
    survey: ClassVar = {
        "original_data": "no",
        "prior": "statistics kept in batch norms, confidence and class balance",
        "generators": "1",
        "input": "noise",
        "discriminator": "teacher and student, by their divergence",
        "multi_task": "no",
    }

    def __init__(
        self, noise: Count = 256, generator_lr: Positive = 1e-3, student_steps: Count = 10, **kwargs: Any
    ) -> None:
        super().__init__(noise, generator_lr, student_steps, **kwargs)

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        super().build(student, teacher, data)
        self.net = (Statistics.kept_by(teacher, self.title),)  # a tuple hides the teacher's weights from nn.Module

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        images = self.generator(self.draw(len(batch)))
        self.student.eval()
        with Statistics(self.net[0]) as seen:
            s, t = self.student_out(images), self.teacher_out(images, self.net[0], grad=True)
        self.student.train()
        yield (
            "generator",
            {
                "bn": torch.stack(seen.pop()).sum(),
                "one_hot": one_hot_loss(t.logits),
                "entropy": information_entropy_loss(t.logits, "ln"),
                "adversarial": -kl(s.logits, t.logits),
            },
        )
        for _ in range(self.student_steps):
            images = settled(self.generator, self.draw(len(batch)))
            yield "student", {"kd": kl(self.student_out(images).logits, self.teacher_out(images).logits)}
