"""What a training step and a network's builder need to know about data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass
class Batch:
    """One mini-batch.

    Attributes:
        x: normalised images, float32, (B, C, H, W); (B, 0) for methods that must not see data.
        y: class indices, int64, (B,).
        index: position of each sample in the training set, int64, (B,).
        view: the exact view of each sample as (dy, dx, flip), int64, (B, 3); zeros where nothing was augmented.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    view: Tensor

    def __len__(self) -> int:
        return len(self.x)

    @classmethod
    def of(cls, batch: Batch | Sequence[Tensor]) -> Batch:
        """A batch of any loader that yields ``(x, y)`` or ``(x, y, index)`` as a `Batch`."""
        if isinstance(batch, Batch):
            return batch
        x, y, *rest = batch
        index = rest[0] if rest else torch.full_like(y, -1)
        return cls(x, y, index, y.new_zeros(len(y), 3))


@dataclass(frozen=True)
class DataSpec:
    """A data set as methods and networks see it: image shape (C, H, W), number of classes, sizes of the splits.

    Attributes:
        task, settings: what is asked of a network, by name, and the settings of that.
        mean, std: per channel, of pixels scaled to 0..1; empty where they are not known.
        streams: names of what stands beside a batch.
        experiences: where data arrive in several, the number of classes seen after each; empty where they come whole.
        memory: how many samples of past experiences may be kept.
    """

    name: str
    shape: tuple[int, int, int]
    num_classes: int
    n_train: int
    n_test: int
    n_val: int = 0
    task: str = "classification"
    settings: Mapping[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    streams: tuple[str, ...] = ()
    experiences: tuple[int, ...] = ()
    memory: int = 0
