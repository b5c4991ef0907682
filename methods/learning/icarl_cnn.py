"""iCaRL-CNN, a baseline of learning a unified classifier incrementally via rebalancing (Hou et al., CVPR 2019).

DOI 10.1109/CVPR.2019.00092.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy, kl
from kdbench.settings import Temperature
from kdbench.taps import Out, Taps
from methods.learning.icarl import Herding
from methods.learning.rehearsal import Mix


class ICaRLCNN(Herding):
    """L = CE(y, s) + β · T² · KL( softmax(t / T) || softmax(s / T) ) over old classes, with t the past self.

    On new samples and exemplars (chosen by `Herding`); the network itself classifies, not the nearest mean.
    """

    leaf = "learning/incremental"
    paper = "hou2019learning"
    title = "iCaRL-CNN"
    terms = ("ce", "kd")
    taps = Taps(student=("embed",))
    survey: ClassVar = {
        "knowledge": "softened old-class scores of the past self; herded exemplars",
        "objective": "CE + β KL(past/T, s/T)",
    }

    def __init__(self, temperature: Temperature = 2.0, mix: Mix = "union", **kwargs: Any) -> None:
        super().__init__(mix=mix, **kwargs)
        self.temperature = temperature

    def losses(self, s: Out, t: Out | None, batch: Batch) -> dict[str, Tensor]:
        old, seen = self.experience.old, self.experience.seen
        terms = {"ce": cross_entropy(s.logits[:, :seen], batch.y)}
        return terms | ({"kd": kl(s.logits[:, :old], t.logits[:, :old], self.temperature)} if t else {})
