"""Ensemble distillation for few-shot classification (Dvornik, Schmid and Mairal, ICCV 2019, arXiv:1903.11341)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method
from kdbench.settings import Temperature
from kdbench.taps import Out, Spec
from methods.multi_teacher.average import all_of_one_mind


@in_float32
def ensemble_loss(student: Tensor, members: Sequence[Tensor], temperature: float = 5.0) -> Tensor:
    """T² · H( mean_k softmax(t_k / T), softmax(s / T) ), summed over classes, averaged over the batch.

    `student` and each of `members` are logits (B, K); no gradient reaches the members.
    """
    target = torch.stack([(member.detach() / temperature).softmax(1) for member in members]).mean(0)
    return temperature**2 * cross_entropy(student / temperature, target)


class EnsembleToOne(Method):
    """L = (1 - γ) · CE(y, s) + γ · `ensemble_loss`(s, members), with γ in ``weights``.

    Teacher and student learn to classify base classes; new ones are recognised by the nearest centroid of the student's
    features. How the members are trained (alone, cooperating or diverse) is up to their recipes.
    """

    leaf = "learning/few-shot"
    paper = "dvornik2019diversity"
    title = "Ensemble to one"
    needs = frozenset({"teachers", "labels"})
    terms = ("ce", "ensemble")
    survey: ClassVar = {
        "knowledge": "mean softened prediction of an ensemble",
        "objective": "(1 - γ) CE(y, s) + γ T² CE(mean t/T, s/T)",
    }

    def __init__(self, temperature: Temperature = 5.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        all_of_one_mind("Ensemble to one", self.teachers)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        members = [each.logits for each in t.each]
        return {
            "ce": cross_entropy(s.logits, batch.y),
            "ensemble": ensemble_loss(s.logits, members, self.temperature),
        }
