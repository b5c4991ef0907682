"""Generalised distillation: soft labels of a teacher with privileged information (Lopez-Paz, Bottou, Schölkopf, Vapnik,
ICLR 2016, arXiv:1511.03643)."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method
from kdbench.settings import Temperature
from kdbench.taps import Out

Variant = Literal["paper", "code"]


@in_float32
def imitation_loss(student: Tensor, teacher: Tensor, temperature: float, own: float = 1.0) -> Tensor:
    """H( softmax(t / T), softmax(s / T_s) ) of logits (B, K), summed over classes, averaged over the batch.

    A cross-entropy, which keeps the entropy of the soft labels. There is no factor T².

    Args:
        temperature: T of the teacher.
        own: T_s of the student.
    """
    return cross_entropy(student / own, (teacher / temperature).softmax(1))


class GeneralisedDistillation(Method):
    """L = (1 - λ) · CE(y, s(x)) + λ · H( softmax(t(x*) / T), softmax(s(x)) ),  with λ in ``weights``

    The teacher's x* is information that the student will not have: by scenario=paired another modality of x. That is
    equation 3, in which the teacher alone is softened. The authors' ``code`` multiplies the second term by T², as in
    distillation, but leaves the student unsoftened, so that its gradient grows with T².

    Args:
        temperature: T.
    """

    leaf = "cross-modal/supervised"
    paper = "lopez2015unifying"
    title = "Generalised distillation"
    terms = ("ce", "imitation")
    survey: ClassVar = {
        "source": "privileged information",
        "target": "what is there at test time",
        "teachers": "1",
        "online": "no",
        "knowledge": "soft labels",
        "labels": "yes",
        "compression": "possible",
    }

    def __init__(self, temperature: Temperature = 2.0, variant: Variant = "paper", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature, self.variant = temperature, variant

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        imitation = imitation_loss(s.logits, t.logits, self.temperature)
        if self.variant == "code":
            imitation = self.temperature**2 * imitation
        return {"ce": cross_entropy(s.logits, batch.y), "imitation": imitation}
