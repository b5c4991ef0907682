"""What semi-supervised methods share that look at labelled and unlabelled images at once."""

from __future__ import annotations

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy


def everything(batch: Batch) -> Tensor:
    """The labelled images, then the unlabelled ones beside them, (N, C, H, W)."""
    return torch.cat([batch.x, batch["unlabelled"].x])


def everything_again(batch: Batch) -> Tensor:
    """`everything` in another view."""
    return torch.cat([batch["again"].x, batch["unlabelled"]["again"].x])


def labelled_share(batch: Batch) -> float:
    """How much of `everything` has a label: the M / N of uniformly drawn batches."""
    return len(batch) / (len(batch) + len(batch["unlabelled"]))


def masked_ce(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of the labelled samples, which come first, divided by the number of all: logits (N, K), y (M,)."""
    return cross_entropy(logits[: len(y)], y, reduction="sum") / len(logits)
