"""Ensemble distillation, the baseline (Malinin, Mlodozeniec, Gales, ICLR 2020, arXiv:1905.00076)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.method import Method
from kdbench.settings import Temperature
from kdbench.taps import Out, Spec
from methods.multi_teacher.average import all_of_one_mind, average_loss


class EnD(Method):
    """L = `methods.multi_teacher.average.average_loss`: the ensemble's mean prediction, and of its spread nothing.

    That is T² · KL( q̄ || softmax(s / T) ), the term of AVG-KD alone: no labels, as for EnD², with which it is compared.

    Args:
        temperature: T.
    """

    leaf = "logits/distribution-ensemble"
    paper = "malinin2019ensemble"
    title = "EnD"
    needs = frozenset({"teachers"})
    terms = ("kd",)
    survey: ClassVar = {
        "description": "the mean prediction of an ensemble",
        "objective": "T² KL(mean softmax(t_k / T), s / T)",
    }

    def __init__(self, temperature: Temperature = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        all_of_one_mind("EnD", self.teachers)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {"kd": average_loss(s.logits, [each.logits for each in t.each], self.temperature)}
