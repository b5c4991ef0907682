"""Averaged soft targets of several teachers (You et al., KDD 2017, DOI 10.1145/3097983.3098135)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import cross_entropy, in_float32, kl, kl_of_logs
from kdbench.method import Method
from kdbench.settings import Temperature
from kdbench.taps import Out, Spec


@torch.no_grad()
def spread(teachers: Sequence[Tensor], temperature: float) -> Tensor:
    """T² · mean over teachers of KL( q_k || q̄ ): how far teachers (logits, each (B, K)) are from their average.

    Batch mean. In float64, for of nearly equal distributions differences of logarithms would be left with no digits.
    """
    log_q = torch.stack([(teacher.double() / temperature).log_softmax(1) for teacher in teachers])
    log_mean = log_q.logsumexp(0) - math.log(len(teachers))
    return torch.stack([kl_of_logs(log_mean, log_k) for log_k in log_q]).mean() * temperature**2


@in_float32
def members_loss(student: Tensor, teachers: Sequence[Tensor], temperature: float) -> Tensor:
    """Mean over teachers of T² · KL( q_k || softmax(student / T) ), of logits (B, K): the average of losses."""
    return torch.stack([kl(student, teacher, temperature) for teacher in teachers]).mean()


@in_float32
def average_loss(student: Tensor, teachers: Sequence[Tensor], temperature: float = 4.0) -> Tensor:
    """T² · KL( q̄ || softmax(student / T) ), q̄ = mean over teachers of softmax(teacher / T): the loss of the average.

    Summed over classes, averaged over the batch; probabilities are averaged, not logits (B, K). It is `members_loss`
    less `spread`, a constant: for every p, mean_k KL(q_k || p) = KL(q̄ || p) + mean_k KL(q_k || q̄).
    """
    return members_loss(student, teachers, temperature) - spread(teachers, temperature).to(student.dtype)


class AverageKD(Method):
    """L = (1 - α) · CE(y, s) + α · `average_loss` over all teachers, with α in ``weights``; of one teacher it is KD."""

    leaf = "multi-teacher/ensemble-of-logits"
    paper = "you2017learning"
    title = "AVG-KD"
    needs = frozenset({"teachers", "labels"})
    terms = ("ce", "kd")
    survey: ClassVar = {
        "ensemble_logits": "mean of softened probabilities",
        "ensemble_features": "none",
        "unify_data": "no",
        "customize": "no",
        "peers": "no",
        "online": "no",
        "objective": "CE + KL",
    }

    def __init__(self, temperature: Temperature = 4.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        all_of_one_mind("AVG-KD", self.teachers)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        teachers = [each.logits for each in t.each]
        return {"ce": cross_entropy(s.logits, batch.y), "kd": average_loss(s.logits, teachers, self.temperature)}


def all_of_one_mind(method: str, teachers: Sequence[Spec]) -> None:
    """Raises `DoesNotFit` if a teacher knows other classes than the student, so that outputs cannot be averaged."""
    for teacher in teachers:
        if teacher.classes is not None:
            raise DoesNotFit(
                f"{method} averages what teachers say of the same classes, and {teacher.name} knows only "
                f"{len(teacher.classes)} of the student's: train it on all of them, or choose a method that unifies."
            )
