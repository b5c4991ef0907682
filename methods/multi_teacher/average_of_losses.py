"""Average of the losses to several teachers, the baseline of AE-KD (Du et al., NeurIPS 2020).

https://proceedings.neurips.cc/paper/2020/hash/91c77393975889bd08f301c9e13a44b7-Abstract.html
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy
from kdbench.taps import Out
from methods.multi_teacher.average import members_loss
from methods.multi_teacher.pool import Pool, logits_of


class AverageOfLosses(Pool):
    """L = CE(y, s) + α · `members_loss` over all teachers.

    Its gradient is that of AVG-KD's loss of the averaged probabilities at equal weights: the two differ by a constant.
    """

    leaf = "multi-teacher/ensemble-of-logits"
    paper = "du2020agree"
    title = "AVG-loss"
    extension = True
    survey: ClassVar = {
        "ensemble_logits": "mean of the teachers' losses",
        "ensemble_features": "none",
        "unify_data": "no",
        "customize": "no",
        "peers": "no",
        "online": "no",
        "objective": "CE + mean KL",
    }

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {"ce": cross_entropy(s.logits, batch.y), "kd": members_loss(s.logits, logits_of(t), self.temperature)}
