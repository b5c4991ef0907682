"""Mini-batches cut, flipped and normalised on the device, from random numbers that anyone can recompute.

Order and views are pure functions of (seed, epoch, sample index), see `kdbench.draws`. They depend on nothing else: not
on the batch size, nor on how many epochs were run before, nor on what a method draws from torch's generators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.draws import random_bits

ORDER, DY, DX, FLIP = range(4)
"""The independent streams of random numbers of a sample in an epoch."""


def order_of(seed: int, epoch: int, n: int, device: torch.device | str = "cpu") -> Tensor:
    """The order in which `n` samples are seen in `epoch`, int64, (n,)."""
    index = torch.arange(n, device=device)
    return torch.argsort(random_bits(seed, epoch, ORDER, index), stable=True)


def view_of(seed: int, epoch: int, index: Tensor, pad: int, flip: bool) -> Tensor:
    """The view of each sample as (dy, dx, flip), int64, (N, 3): dy and dx uniform over 0..2*pad, flip over 0 and 1.

    Zero where there is nothing to draw (`pad` is 0, `flip` is false).
    """
    sides = 2 * pad + 1
    dy, dx = (random_bits(seed, epoch, stream, index) % sides for stream in (DY, DX))
    flipped = random_bits(seed, epoch, FLIP, index) % (2 if flip else 1)
    return torch.stack([dy, dx, flipped], dim=1)


def crop(images: Tensor, dy: Tensor, dx: Tensor, flip: Tensor, pad: int) -> Tensor:
    """Pad with zeros, crop at (dy, dx), then flip left to right: uint8, (B, H, W, C) to (B, C, H, W).

    As torchvision's ``RandomCrop(padding=pad)`` and ``RandomHorizontalFlip`` on PIL images, for given draws.
    """
    b, h, w, c = images.shape
    wide = w + 2 * pad
    padded = images.new_zeros(b, c, h + 2 * pad, wide)
    padded[:, :, pad : pad + h, pad : pad + w] = images.permute(0, 3, 1, 2)
    column = torch.arange(w, device=images.device)
    x = torch.where(flip[:, None] != 0, w - 1 - column, column) + dx[:, None]
    y = torch.arange(h, device=images.device) + dy[:, None]
    # One gather over flattened pixels: measured twice as fast as indexing windows, four times as advanced indexing.
    source = (y[:, :, None] * wide + x[:, None, :]).view(b, 1, h * w).expand(b, c, h * w)
    return padded.view(b, c, -1).gather(2, source).view(b, c, h, w)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """``(images / 255 - mean) / std`` in float32; uint8 (B, C, H, W), `mean` and `std` (C,) on the same device."""
    # A tensor as divisor: by a plain number, CUDA multiplies with the rounded reciprocal and differs in the last bit.
    scale = torch.full((), 255.0, device=images.device)
    floats = images.to(torch.float32, memory_format=torch.contiguous_format)
    return floats.div_(scale).sub_(mean[:, None, None]).div_(std[:, None, None])


def apply_views(images: Tensor, dy: Tensor, dx: Tensor, flip: Tensor, pad: int, mean: Tensor, std: Tensor) -> Tensor:
    """Network inputs of given views: uint8 (B, H, W, C) to contiguous float32 (B, C, H, W); see `crop`, `normalise`.

    Args:
        dy, dx, flip: int64, (B,), as `view_of` draws them.
        mean, std: float32, (C,).
    """
    return normalise(crop(images, dy, dx, flip, pad), mean, std)


class Views:
    """An iterable of `Batch` over images that lie on `device` as uint8; one iteration is one epoch.

    Args:
        images: uint8, (N, H, W, C).
        labels: int64, (N,).
        mean, std: per channel, on the scale 0..1.
        augment: shuffle, crop (`pad`) and flip as of (seed, epoch, index), for training; else plain and in order.
        drop_last: leave out a last batch that is not full.
        blind: yield x and y of shape (B, 0), for methods that must not see data.
        epoch_of: asked for the epoch when the first batch of an iteration is fetched; without it, `set_epoch` says (at
            first 0). Not when the iterator is made: Lightning does that before it counts the epoch of a resumed fit.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        seed: int = 0,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        augment: bool,
        pad: int = 0,
        flip: bool = False,
        drop_last: bool = False,
        blind: bool = False,
        device: torch.device | str = "cpu",
        epoch_of: Callable[[], int] | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.images, self.labels = images.to(self.device), labels.to(self.device)
        self.mean = torch.tensor(mean, dtype=torch.float32, device=self.device)
        self.std = torch.tensor(std, dtype=torch.float32, device=self.device)
        self.batch_size, self.seed, self.augment = batch_size, seed, augment
        self.pad, self.flip = (pad, flip) if augment else (0, False)
        self.drop_last, self.blind, self.epoch_of = drop_last, blind, epoch_of
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the iterations to come, where there is no `epoch_of`."""
        self._epoch = epoch

    def __len__(self) -> int:
        whole, rest = divmod(len(self.labels), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        epoch = self.epoch_of() if self.epoch_of else self._epoch
        n = len(self.labels)
        order = order_of(self.seed, epoch, n, self.device) if self.augment else torch.arange(n, device=self.device)
        labels = self.labels[order]
        views = view_of(self.seed, epoch, order, self.pad, self.flip)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            part = slice(start, start + self.batch_size)
            index, y, view = order[part], labels[part], views[part]
            if self.blind:
                yield Batch(self.mean.new_empty(len(index), 0), y.new_empty(len(index), 0), index, view)
                continue
            images = self.images.index_select(0, index)
            if self.pad or self.flip:
                x = apply_views(images, view[:, 0], view[:, 1], view[:, 2], self.pad, self.mean, self.std)
            else:
                x = normalise(images.permute(0, 3, 1, 2), self.mean, self.std)
            yield Batch(x, y, index, view)
