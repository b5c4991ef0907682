"""Mini-batches cut, flipped and normalised on the device, from random numbers that anyone can recompute.

Order and views are pure functions of (seed, epoch, sample index), see `kdbench.draws`. They depend on nothing else: not
on the batch size, nor on how many epochs were run before, nor on what a method draws from torch's generators.

Streams beside the labelled batch are such functions too, each with random numbers of its own (a *draw*). Where an epoch
shows samples more than once, each pass counts on from the one before: sample i of n is number ``i + n * pass``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.data.batch import AGAIN, WHOLE, Batch, Beside, Share
from kdbench.data.datasets import Affine, Split, Stream
from kdbench.draws import random_bits, uniform

ORDER, DY, DX, FLIP = range(4)
DRAWS = 4
"""The independent streams of random numbers of a sample in an epoch; those of draw k are ``DRAWS * k`` further on."""
WARP = range(1 << 20, (1 << 20) + 5)
"""Further on than any draw: the angle, the shifts down and to the right, the zooms of height and width."""

Moved = Callable[[Tensor, Tensor, int], Tensor]
"""(targets, views, pad) -> the targets of images that are seen so, see `kdbench.tasks.Task.moved`."""


def order_of(seed: int, epoch: int, n: int, device: torch.device | str = "cpu") -> Tensor:
    """The order in which `n` samples are seen in `epoch`, int64, (n,)."""
    index = torch.arange(n, device=device)
    return torch.argsort(random_bits(seed, epoch, ORDER, index), stable=True)


def view_of(seed: int, epoch: int, index: Tensor, pad: int, flip: bool, draw: int = 0) -> Tensor:
    """The view of each sample as (dy, dx, flip), int64, (N, 3): dy and dx uniform over 0..2*pad, flip over 0 and 1.

    Zero where there is nothing to draw (`pad` is 0, `flip` is false).
    """
    sides = 2 * pad + 1
    dy, dx = (random_bits(seed, epoch, stream + DRAWS * draw, index) % sides for stream in (DY, DX))
    flipped = random_bits(seed, epoch, FLIP + DRAWS * draw, index) % (2 if flip else 1)
    return torch.stack([dy, dx, flipped], dim=1)


def warp_of(seed: int, epoch: int, index: Tensor, draw: int = 0) -> Tensor:
    """The draws of the affine map of each sample, random bits as of `WARP`, int64, (N, 5)."""
    return torch.stack([random_bits(seed, epoch, stream + len(WARP) * draw, index) for stream in WARP], dim=1)


def warp(x: Tensor, drawn: Tensor, affine: Affine) -> Tensor:
    """Images (B, C, H, W), turned, moved and zoomed about their middle by what was `drawn`, (B, 5).

    As Keras's ``ImageDataGenerator`` (``random_transform``, fill mode ``nearest``): the place at which an image is read
    is zoomed first, then moved, then turned; bilinear between pixels, beyond the edge as on it.
    """
    unit = 2 * uniform(drawn) - 1
    angle = math.radians(affine.rotate) * unit[:, 0]
    height, width = x.shape[2:]
    down, right = height * affine.shift * unit[:, 1], width * affine.shift * unit[:, 2]
    tall, wide = 1 + affine.zoom * unit[:, 3], 1 + affine.zoom * unit[:, 4]
    y = torch.arange(height, device=x.device) - (height - 1) / 2
    z = torch.arange(width, device=x.device) - (width - 1) / 2
    rows = (tall[:, None] * y + down[:, None])[:, :, None]
    columns = (wide[:, None] * z + right[:, None])[:, None, :]
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    read = torch.stack(
        [(sin * rows + cos * columns) * (2 / (width - 1)), (cos * rows - sin * columns) * (2 / (height - 1))], dim=3
    )  # x before y, in units of half the image
    return F.grid_sample(x, read, mode="bilinear", padding_mode="border", align_corners=True)


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


class Passes:
    """What one epoch shows of some samples: their order and views, in as many passes over all of them as are asked for.

    Args:
        positions: which samples, out of `n`: int64, ascending, on the device where all is computed.
        pad, flip: see `view_of`.
        draw: which random numbers are used.
        shuffle: in random order; else as in `positions`.
        warped: views go on with `warp_of`, (N, 8).
    """

    def __init__(
        self,
        seed: int,
        epoch: int,
        positions: Tensor,
        n: int,
        pad: int,
        flip: bool,
        draw: int,
        shuffle: bool = True,
        warped: bool = False,
    ) -> None:
        self._seed, self._epoch, self._positions, self._n, self._draw = seed, epoch, positions, n, draw
        self._pad, self._flip, self._shuffle, self._warped = pad, flip, shuffle, warped
        self._made: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def __len__(self) -> int:
        """How many samples a pass has."""
        return len(self._positions)

    def __getitem__(self, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """Of the samples from ``part.start`` to before ``part.stop``: numbers (see the module) and positions, int64,
        (B,), and views, (B, 3)."""
        found = []
        for number in range(part.start // len(self), (part.stop - 1) // len(self) + 1):
            start, stop = part.start - len(self) * number, part.stop - len(self) * number
            found.append([values[max(start, 0) : stop] for values in self._pass(number)])
        counter, index, view = found[0] if len(found) == 1 else map(torch.cat, zip(*found, strict=True))
        return counter, index, view

    def views(self, counter: Tensor, *, again: bool = False) -> Tensor:
        """The views of numbered samples, (B, 3): those that the epoch shows, or those of the next draw."""
        view = view_of(self._seed, self._epoch, counter, self._pad, self._flip, self._draw + again)
        if not self._warped:
            return view
        return torch.cat([view, warp_of(self._seed, self._epoch, counter, self._draw + again)], dim=1)

    def _pass(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        if number not in self._made:
            counter = self._positions + self._n * number
            if self._shuffle:
                bits = random_bits(self._seed, self._epoch, ORDER + DRAWS * self._draw, counter)
                counter = counter[torch.argsort(bits, stable=True)]
            # batches go forward, and one may begin in one pass and end in the next
            self._made = {k: made for k, made in self._made.items() if k == number - 1}
            self._made[number] = counter, counter - self._n * number, self.views(counter)
        return self._made[number]


@dataclass(frozen=True)
class _Samples:
    """Of a split, on the device: images (N, H, W, C), targets (N, ...), mean and std (C,)."""

    images: Tensor
    targets: Tensor
    mean: Tensor
    std: Tensor


class OfEpochs:
    """Whose iterations are epochs, numbered by `epoch_of` or, where that is None, by `set_epoch` (at first 0)."""

    epoch_of: Callable[[], int] | None = None
    _epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the iterations to come, where there is no `epoch_of`."""
        self._epoch = epoch

    @property
    def epoch(self) -> int:
        """The one in course, or to come."""
        return self.epoch_of() if self.epoch_of else self._epoch


class Views(OfEpochs):
    """An iterable of `Batch` over images that lie on `device` as uint8; one iteration is one epoch.

    Beside each batch of training lie its streams, cut when they are asked for: ``again`` shows its samples in views of
    the next draw; one that follows shows the same samples of another split in the same views; one with an order of its
    own goes through its split ``per_batch`` images at a time, in an order that is new with each epoch and each pass.

    Args:
        images: uint8, (N, H, W, C).
        labels: int64, (N,), or other targets (N, ...): whole numbers become int64.
        mean, std: per channel, on the scale 0..1.
        augment: shuffle, crop (`pad`) and flip as of (seed, epoch, index), for training; else plain and in order.
        drop_last: leave out a last batch that is not full.
        blind: yield x and y of shape (B, 0), for methods that must not see data.
        epoch_of: asked for the epoch when the first batch of an iteration is fetched; without it, `set_epoch` says (at
            first 0). Not when the iterator is made: Lightning does that before it counts the epoch of a resumed fit.
        beside: streams by name; where their splits have no statistics of their own, `mean` and `std` are theirs.
        part_of: from an epoch to the samples that it shows, int64, ascending, on `device`; None: all of them.
        laps: how often an epoch shows each of them, each time in another view.
        moved: what becomes of targets when their images move; None: nothing.
        affine: for training, images are turned, moved and zoomed behind all that.
        share: the part of each batch that is shown; streams with an order of their own are shown whole.
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
        beside: Mapping[str, Stream] | None = None,
        part_of: Callable[[int], Tensor] | None = None,
        laps: int = 1,
        moved: Moved | None = None,
        affine: Affine | None = None,
        share: Share = WHOLE,
    ) -> None:
        self.device = torch.device(device)
        self.images, self.labels = images.to(self.device), labels.to(self.device)
        self.mean, self.std = self._per_channel(mean), self._per_channel(std)
        self.batch_size, self.seed, self.augment = batch_size, seed, augment
        self.pad, self.flip = (pad, flip) if augment else (0, False)
        self.drop_last, self.blind, self.epoch_of = drop_last, blind, epoch_of
        self.laps, self.moved, self.affine, self.share = laps, moved, affine if augment else None, share
        everything = torch.arange(len(self.labels), device=self.device)
        self._part_of = part_of or (lambda epoch: everything)
        self._samples = _Samples(self.images, self.labels, self.mean, self.std)
        streams = (beside or {}).items()
        self._follow = {name: self._samples_of(stream.split) for name, stream in streams if stream.follow}
        self._own = {name: (self._samples_of(stream.split), stream) for name, stream in streams if not stream.follow}

    def __len__(self) -> int:
        whole, rest = divmod(len(self._part_of(self.epoch)) * self.laps, self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        epoch = self.epoch
        passes = self._passes(epoch, self._part_of(epoch), len(self.labels))
        own: dict[str, Passes] = {}
        for name, (samples, stream) in self._own.items():
            whole = torch.arange(len(samples.targets), device=self.device)
            own[name] = self._passes(epoch, whole, len(whole), stream.draw)
        size, end = self.batch_size, len(passes) * self.laps
        for number in range(end // size if self.drop_last else -(-end // size)):
            counter, index, view = map(self.share.of, passes[size * number : min(size * (number + 1), end)])
            if self.blind:
                yield Batch(self.mean.new_empty(len(view), 0), view.new_empty(len(view), 0), index, view)
                continue
            cuts = {name: partial(self._of_own_order, name, of_stream, number) for name, of_stream in own.items()}
            yield self._batch(passes, counter, index, view, cuts)

    def take(self, index: Tensor, plain: bool = False) -> Batch:
        """Any of the samples, as the first pass of the epoch shows them, or plain.

        Beside them lie the streams that follow, and ``again`` where they are not plain.

        Args:
            index: int64, (B,).
            plain: neither moved nor flipped: the view is that of the middle, (pad, pad, 0).
        """
        index = index.to(self.device)
        if plain:
            view = torch.tensor([self.pad, self.pad, 0], device=self.device).expand(len(index), 3)
            return self._look(self._samples, index, view, self._followers(index, view))
        passes = self._passes(self.epoch, self._part_of(self.epoch), len(self.labels))
        return self._batch(passes, index, index, passes.views(index), {})

    def _passes(self, epoch: int, positions: Tensor, n: int, draw: int = 0) -> Passes:
        warped = self.affine is not None
        return Passes(self.seed, epoch, positions, n, self.pad, self.flip, draw, shuffle=self.augment, warped=warped)

    def _batch(
        self,
        passes: Passes,
        counter: Tensor,
        index: Tensor,
        view: Tensor,
        own: Mapping[str, Callable[[], Batch]],
    ) -> Batch:
        if not self.augment:
            return self._look(self._samples, index, view)

        def again() -> Batch:
            view = passes.views(counter, again=True)
            return self._look(self._samples, index, view, self._followers(index, view))

        sizes = {name: self._own[name][1].per_batch for name in own}
        return self._look(self._samples, index, view, {**self._followers(index, view), AGAIN: again, **own}, sizes)

    def _followers(self, index: Tensor, view: Tensor) -> dict[str, Callable[[], Batch]]:
        return {name: partial(self._look, samples, index, view) for name, samples in self._follow.items()}

    def _of_own_order(self, name: str, passes: Passes, number: int) -> Batch:
        samples, stream = self._own[name]
        counter, index, view = passes[stream.per_batch * number : stream.per_batch * (number + 1)]
        return self._look(
            samples, index, view, {AGAIN: lambda: self._look(samples, index, passes.views(counter, again=True))}
        )

    def _look(
        self,
        samples: _Samples,
        index: Tensor,
        view: Tensor,
        beside: Mapping[str, Callable[[], Batch]] | None = None,
        own: Mapping[str, int] | None = None,
    ) -> Batch:
        """Samples in given views."""
        images = samples.images.index_select(0, index)
        if self.pad or self.flip:
            x = apply_views(images, view[:, 0], view[:, 1], view[:, 2], self.pad, samples.mean, samples.std)
        else:
            x = normalise(images.permute(0, 3, 1, 2), samples.mean, samples.std)
        if self.affine and view.shape[1] > 3:  # a plain view has no more
            x = warp(x, view[:, 3:], self.affine)
        y = samples.targets[index]
        y = y if y.is_floating_point() else y.long()
        return Batch(x, self.moved(y, view, self.pad) if self.moved else y, index, view, Beside(beside or {}, own))

    def _samples_of(self, split: Split) -> _Samples:
        mean, std = (
            own if given is None else self._per_channel(given)
            for own, given in ((self.mean, split.mean), (self.std, split.std))
        )
        return _Samples(split.pixels.to(self.device), split.labels.to(self.device), mean, std)

    def _per_channel(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=self.device)
