"""Mini-batches of images that are mixed, each with the one before it in the order of the epoch; see
`kdbench.data.mix`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.data.mix import Mix, shares_of
from kdbench.data.streamed import Streamed
from kdbench.data.views import Views, order_of


class Mixed:
    """An iterable of `Batch` over training views that it mixes; one iteration is one epoch.

    The first image is mixed with the epoch's last, so that where a batch begins and ends is no matter. Nothing lies
    beside a batch.

    Args:
        num_classes: K of the labels, which are shares of classes: float32, (B, K).
    """

    def __init__(self, views: Views | Streamed, mix: Mix, num_classes: int) -> None:
        self.views, self.mix, self.num_classes = views, mix, num_classes

    def __len__(self) -> int:
        return len(self.views)

    def __iter__(self) -> Iterator[Batch]:
        views, epoch = self.views, self.views.epoch
        order = order_of(views.seed, epoch, len(views.labels))
        last = views.take(order[-1:])
        x, y = last.x, last.y
        for batch in views:
            if views.share.size > 1:  # the image before its first is in another share
                place = int((order == int(batch.index[0])).nonzero())
                last = views.take(order[place - 1 :][:1])
                x, y = last.x, last.y
            before, labels = torch.cat([x, batch.x[:-1]]), torch.cat([y, batch.y[:-1]])
            yield self._mixed(batch, before, labels, epoch)
            x, y = batch.x[-1:], batch.y[-1:]

    def _mixed(self, batch: Batch, before: Tensor, labels: Tensor, epoch: int) -> Batch:
        """A batch, with the images before and their labels."""
        height, width = batch.x.shape[2:]
        drawn = shares_of(self.mix, self.views.seed, epoch, batch.index.cpu(), (height, width))
        own, share = (each.to(batch.x.device) for each in drawn)
        one, other = (F.one_hot(y, self.num_classes).float() for y in (batch.y, labels))
        mixed = own * batch.x + (1 - own) * before
        return Batch(mixed, share * one + (1 - share) * other, batch.index, batch.view)
