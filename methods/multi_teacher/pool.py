"""What methods with a pool of teachers share: the pool itself, and losses that weigh each teacher for each sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdbench.data.batch import DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import HOTTEST, divergence, in_float32
from kdbench.method import Method
from kdbench.settings import Temperature
from kdbench.taps import Out, Spec
from methods.multi_teacher.average import all_of_one_mind


@in_float32
def weighted_members_loss(student: Tensor, teachers: Sequence[Tensor], weights: Tensor, temperature: float) -> Tensor:
    """1/(B·m) · Σ_n Σ_k w_k(n) · T² · KL( softmax(t_k(n) / T) || softmax(s(n) / T) ): a weight for each sample.

    Summed over classes, averaged over the batch *and* over teachers, as in Rorozhl/CA-MKD, helper/loops.py: of weights
    that sum to 1 over the teachers it is 1/m of the weighted mean.

    Args:
        student, teachers: logits, (B, K).
        weights: w, (m, B).
    """
    temperature = min(temperature, HOTTEST)
    pool = torch.stack(list(teachers))
    q, x = (pool / temperature).softmax(2), (student - pool) / temperature
    apart = divergence(q.flatten(0, 1), x.flatten(0, 1)).view(weights.shape)
    return (weights * apart).mean() * temperature**2


def logits_of(t: Out) -> list[Tensor]:
    """What each teacher says, (B, K) each."""
    return [each.logits for each in t.each]


def tap_of_each(tap: str, student: Spec, teachers: Sequence[Spec]) -> tuple[str, list[str]]:
    """The student's name, and those of the teachers, for one tap pattern."""
    own, *theirs = (spec.resolve((tap,))[0] for spec in (student, *teachers))
    return own, theirs


class Pool(Method):
    """A base of methods: a frozen pool of teachers that all know the student's classes, and one temperature.

    Args:
        temperature: T of all of them.
    """

    needs = frozenset({"teachers", "labels"})
    terms: tuple[str, ...] = ("ce", "kd")
    least = 1
    """How many teachers make a pool of which the method is defined."""

    def __init__(self, temperature: Temperature = 4.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        all_of_one_mind(self.title, self.teachers)
        if len(self.teachers) < self.least:
            raise DoesNotFit(
                f"{self.title} weighs teachers against one another and there is one: add others with teachers=[...]."
            )


def images_of(method: str, data: DataSpec) -> int:
    """How many training images there are, for a method that keeps something for each.

    Raises:
        DoesNotFit: the data do not say.
    """
    if not data.n_train:
        raise DoesNotFit(
            f"{method} keeps what teachers say of every training image, and these data do not say how many there are: "
            "give a datamodule whose `spec` does, and batches with the positions of their images (x, y, index)."
        )
    return data.n_train
