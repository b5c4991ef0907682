"""Knowledge distillation (Hinton, Vinyals, Dean, NIPS 2014 workshop, arXiv:1503.02531)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import kl
from kdbench.method import Method
from kdbench.settings import Temperature
from kdbench.taps import Out


class KD(Method):
    """L = (1 - α) · CE(y, s) + α · T² · KL( softmax(t / T) || softmax(s / T) ), with α in ``weights``.

    The divergence is summed over classes and averaged over the batch (`kdbench.losses.kl`), of maps over pixels too.
    """

    leaf = "logits/softened-labels"
    paper = "hinton2015distilling"
    title = "KD"
    control = "kd"
    tasks = frozenset({"classification", "segmentation"})
    terms = ("ce", "kd")
    survey: ClassVar = {
        "description": "softened class probabilities of one teacher",
        "objective": "(1 - α) CE(y, s) + α T² KL(t/T, s/T)",
    }

    def __init__(self, temperature: Temperature = 4.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {"ce": self.task.loss(s.logits, batch.y), "kd": kl(s.logits, t.logits, self.temperature)}
