"""Semantic segmentation: the right class among K for each pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.measures import Measure
from kdbench.tasks import maps
from kdbench.tasks.base import Meter, Scores, Task

if TYPE_CHECKING:
    from kdbench.data.batch import Batch, DataSpec


def mean_iou(confusion: Tensor) -> Tensor:
    """Mean over classes of intersection over union, from counts (..., K, K) of pixels of class i that were taken for j.

    A class that is neither in the targets nor in the predictions has no union and is left out, as in mmsegmentation and
    torchmetrics; one that is in the predictions alone counts as 0. NaN where no class is left.

    Returns:
        (...), a fraction.
    """
    hit = confusion.diagonal(dim1=-2, dim2=-1)
    union = confusion.sum(-1) + confusion.sum(-2) - hit
    shares = torch.where(union > 0, hit / union.clamp(min=1), 0.0)
    return shares.sum(-1) / (union > 0).sum(-1)


class Confusion(Meter):
    """``mIoU`` and ``pixel_accuracy`` of a whole split, in percent; unlabelled pixels are left out of both.

    An image's score is the mean IoU of its own pixels, in percent; an image without a labelled pixel has none. Their
    mean is not ``mIoU``, whose classes are counted over all images together (`mean_iou`).
    """

    confusion: Tensor

    def __init__(self, num_classes: int, ignore: int) -> None:
        super().__init__()
        self.num_classes, self.ignore = num_classes, ignore
        counts = torch.zeros(num_classes, num_classes, dtype=torch.int64)
        self.register_buffer("confusion", counts, persistent=False)
        self.images = Scores()

    def begin(self) -> None:
        super().begin()
        self.confusion.zero_()

    def update(self, net: nn.Module, batch: Batch) -> None:
        found = maps.resized(net(batch.x), batch.y).argmax(1)
        k, target = self.num_classes, batch.y.long()
        # one count for each image and pair of classes, and one more for what has no label; bincount would wait for CUDA
        cell = torch.where(target == self.ignore, k * k, target * k + found).flatten(1)
        counts = cell.new_zeros(len(cell), k * k + 1).scatter_add_(1, cell, torch.ones_like(cell))
        confusions = counts[:, :-1].view(-1, k, k)
        self.confusion.add_(confusions.sum(0))
        self.images.update(100 * mean_iou(confusions))

    def compute(self) -> dict[str, Tensor]:
        accuracy = self.confusion.trace() / self.confusion.sum()
        return {"mIoU": 100 * mean_iou(self.confusion), "pixel_accuracy": 100 * accuracy}

    def examples(self) -> Tensor:
        scores = self.images.rows()
        return scores[~scores.isnan()]


@dataclass(frozen=True)
class Segmentation(Task):
    """One of K classes for each pixel; outputs are class scores (B, K, h, w), targets class indices (B, H, W).

    Scores of a smaller map are resized bilinearly to the target's size, in the loss and in the meter.

    Attributes:
        ignore: the value of pixels without a label, also of those that a moved view brings in; 255 in Pascal VOC and
            Cityscapes, 11 in SegNet's CamVid.
    """

    name = zoo = "segmentation"
    primary = Measure("mIoU")

    ignore: int = 255

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross entropy, averaged over the labelled pixels of the batch; 0 where there are none."""
        target = target.long()
        total = F.cross_entropy(maps.resized(output, target), target, ignore_index=self.ignore, reduction="sum")
        return total / (target != self.ignore).sum().clamp(min=1)

    def moved(self, target: Tensor, view: Tensor, pad: int) -> Tensor:
        """As int64: a byte cannot hold every `ignore`."""
        return maps.moved(target.long(), view, pad, self.ignore)

    def meter(self, data: DataSpec) -> Meter:
        return Confusion(data.num_classes, self.ignore)
