"""Cross-quality distillation (Su and Maji, BMVC 2017, arXiv:1604.00433)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy
from kdbench.method import Method
from kdbench.settings import Temperature
from kdbench.taps import Out
from methods.cross_modal.generalised_distillation import imitation_loss


class CrossQuality(Method):
    """L = CE(y, s(x)) + λ · H( softmax(t(z) / T), softmax(s(x) / T) )

    z is the image in full quality and x the same one degraded, by scenario=paired. Without the factor T² a λ of 50 at
    T = 10 has the gradient of half of KD's term. In the paper the student may begin as the teacher, too; here it does
    not, as they may be of different architectures.

    Args:
        temperature: T.
    """

    leaf = "cross-modal/supervised"
    paper = "su2016adapting"
    title = "Cross-quality"
    terms = ("ce", "imitation")
    survey: ClassVar = {
        "source": "images in full quality",
        "target": "the same ones degraded",
        "teachers": "1",
        "online": "no",
        "knowledge": "soft labels",
        "labels": "yes",
        "compression": "possible",
    }

    def __init__(self, temperature: Temperature = 10.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {
            "ce": cross_entropy(s.logits, batch.y),
            "imitation": imitation_loss(s.logits, t.logits, self.temperature, own=self.temperature),
        }
