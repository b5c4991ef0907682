"""Adversarial training (Madry, Makelov, Schmidt, Tsipras, Vladu, ICLR 2018, arXiv:1706.06083)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy
from kdbench.settings import Count, Positive
from methods.learning.ard import ARD


class AdversarialTraining(ARD):
    """L = CE(y, s(x + δ)), with δ as for ARD: what that is compared with, no teacher and attacked images alone.

    Args:
        eps, step: radius and step of the attack, in pixel values of 255.
        steps: forward and backward passes more for every batch.
    """

    paper = "madry2018towards"
    title = "Adversarial training"
    extension = True
    needs = frozenset({"labels"})
    terms = ("ce",)  # type: ignore[assignment]
    survey: ClassVar = {
        "gan": "none: adversarial images",
        "purpose": "a network that is robust, without a teacher",
        "discriminator_input": "none",
        "generators": "none",
        "discriminators": "none",
        "online": "no",
    }

    def __init__(self, eps: Positive = 8.0, step: Positive = 2.0, steps: Count = 7, **kwargs: Any) -> None:
        super().__init__(eps=eps, step=step, steps=steps, **kwargs)

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        yield "student", {"ce": cross_entropy(self.student_out(self.attacked(batch)).logits, batch.y)}
