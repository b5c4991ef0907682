"""Distillation by soft targets alone (Hinton, Vinyals, Dean, NIPS 2014 workshop, arXiv:1503.02531)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import kl
from kdbench.method import Method
from kdbench.settings import Temperature
from kdbench.taps import Out


class KDUnlabelled(Method):
    """L = T² · KL( softmax(t / T) || softmax(s / T) ), on a transfer set without labels.

    The paper's simplest form (section 2), before labels are known: KD with α = 1. On images of another data set, or of
    noise, it is what data-free methods are compared with.
    """

    leaf = "logits/softened-labels"
    paper = "hinton2015distilling"
    title = "KD without labels"
    needs = frozenset({"teacher"})
    terms = ("kd",)
    survey: ClassVar = {
        "description": "softened class probabilities of one teacher, no labels",
        "objective": "T² KL(t/T, s/T)",
    }

    def __init__(self, temperature: Temperature = 4.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {"kd": kl(s.logits, t.logits, self.temperature)}
