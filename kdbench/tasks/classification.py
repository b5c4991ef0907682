"""Classification: the right class among K."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError

from kdbench.losses import cross_entropy
from kdbench.measures import TOP1
from kdbench.tasks.base import Meter, Scores, Task

if TYPE_CHECKING:
    from kdbench.data.batch import Batch, DataSpec

BINS = 15
"""Of the expected calibration error, as in Guo et al. (ICML 2017, arXiv:1706.04599)."""


class Accuracy(Meter):
    """``top1`` and, with more than five classes, ``top5`` in percent; ``nll`` in nats; ``ece`` in percent.

    ``nll`` is the mean of -log p(y). ``ece`` is the expected calibration error of Guo et al. 2017, that is the mean
    over examples of the distance between accuracy and confidence in their bin, of 15 of equal width. An example's score
    is whether it is right.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        names = {"top1": 1, "top5": 5} if num_classes > 5 else {"top1": 1}
        self.accuracies = MetricCollection(
            {name: MulticlassAccuracy(num_classes, k, "micro", validate_args=False) for name, k in names.items()},
            compute_groups=False,  # it would look at the first batch to see whether their states agree
        )
        self.calibration = MulticlassCalibrationError(num_classes, n_bins=BINS, norm="l1", validate_args=False)
        self.right, self.surprise = Scores(), Scores()

    def update(self, net: nn.Module, batch: Batch) -> None:
        self.judge(net(batch.x), batch.y)

    def judge(self, logits: Tensor, y: Tensor) -> None:
        """The next logits (B, K) and their classes (B,)."""
        self.accuracies.update(logits, y)
        self.right.update(logits.argmax(1) == y)
        log_p = F.log_softmax(logits.float(), dim=1)
        self.surprise.update(F.nll_loss(log_p, y, reduction="none"))
        # torchmetrics' bins are open above, and a confidence of exactly 1 would have one of its own
        below_one = 1 - torch.finfo(log_p.dtype).eps
        self.calibration.update(log_p.exp().clamp(max=below_one), y)

    def compute(self) -> dict[str, Tensor]:
        found = {name: 100 * share for name, share in self.accuracies.compute().items()}
        return {**found, "nll": self.surprise.rows().mean(), "ece": 100 * self.calibration.compute()}

    def examples(self) -> Tensor:
        return self.right.rows()


@dataclass(frozen=True)
class Classification(Task):
    """One of K classes; outputs are class scores (B, K), targets class indices (B,)."""

    name = "classification"
    primary = TOP1

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(output, target)

    def meter(self, data: DataSpec) -> Meter:
        return Accuracy(data.num_classes)
