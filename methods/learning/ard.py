"""Adversarially robust distillation (Goldblum, Fowl, Feizi, Goldstein, AAAI 2020, arXiv:1905.09747)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import cross_entropy, kl
from kdbench.method import Method
from kdbench.settings import Count, Positive, Temperature
from kdbench.taps import Spec
from kdbench.tasks.robust import ascend


class ARD(Method):
    """The student under attack learns what its teacher says of the clean image.

    L = α · T² · KL( softmax(t(x) / T) || softmax(s(x + δ) / T) ) + (1 - α) · CE(y, s(x)),  with α in ``weights``

    δ is the student's own adversary: in at most `eps` from x, by `steps` signed gradient steps on CE(y, s(x + δ)) from
    a random start. It asks the student in training mode, as the authors' code does.

    Args:
        temperature: T.
        eps, step: radius and step of the attack, in pixel values of 255.
        steps: forward and backward passes more for every batch.
    """

    leaf = "learning/adversarial"
    paper = "goldblum2019adversarially"
    title = "ARD"
    terms = ("ce", "kd")
    survey: ClassVar = {
        "gan": "none: adversarial images",
        "purpose": "a small student that is robust",
        "discriminator_input": "none",
        "generators": "none",
        "discriminators": "none",
        "online": "no",
    }
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        temperature: Temperature = 30.0,
        eps: Positive = 8.0,
        step: Positive = 2.0,
        steps: Count = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.temperature, self.eps, self.step, self.steps = temperature, eps, step, steps

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        if not data.mean or not data.std:
            raise DoesNotFit(
                f"ARD attacks pixels, and {data.name} does not say how they were normalised: give a datamodule whose "
                "`spec` has mean and std."
            )
        for name in ("mean", "std"):
            values = torch.tensor(getattr(data, name))[:, None, None]
            self.register_buffer(name, values, persistent=False)

    def attacked(self, batch: Batch) -> Tensor:
        """x + δ, normalised as x."""
        eps, step = self.eps / 255 / self.std, self.step / 255 / self.std
        low = torch.maximum(batch.x - eps, -self.mean / self.std)
        high = torch.minimum(batch.x + eps, (1 - self.mean) / self.std)
        noise = torch.rand(batch.x.shape, generator=self.rng).to(batch.x)
        start = (batch.x + eps * (2 * noise - 1)).clamp(low, high)
        return ascend(
            lambda x: self.student_out(x).logits, start, batch.y, step=step, steps=self.steps, low=low, high=high
        )

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        t, s = self.teacher_out(batch.x), self.student_out(self.attacked(batch))
        clean = self.student_out(batch.x)
        yield (
            "student",
            {"ce": cross_entropy(clean.logits, batch.y), "kd": kl(s.logits, t.logits, self.temperature)},
        )
