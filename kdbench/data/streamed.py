"""Mini-batches of images that are read from their files while others are trained on.

Processes read, decode, crop and resize; the device mirrors, jitters and normalises. What is read is said by numbers
that are drawn here, in the process that trains: neither the number of the others nor the batch size has a part in a
view, and an epoch can be begun without the ones before it. Nothing here grows with the number of images but what is
known of each.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info
from torch.utils.data import Dataset as TorchDataset
from torchvision.transforms.v2 import functional as TF

from kdbench.data.batch import AGAIN, WHOLE, Batch, Beside, Share
from kdbench.data.crops import AUGMENT, FLIP, JITTER, VIEW, Crops, jitter_of, jittered, view_of
from kdbench.data.images import MOST_PIXELS, read_whole
from kdbench.data.manifest import ImageFiles, anew
from kdbench.data.randaugment import augmented
from kdbench.data.views import OfEpochs, normalise, order_of
from kdbench.data.workers import (
    AHEAD,
    SHARED,
    Workers,
    check_shared_memory,
    deaths_left_to_the_reader,
    number_of,
    told_of_deaths,
)
from kdbench.errors import UserError

Work = tuple[NDArray[np.int64], NDArray[np.int64] | None]
"""A batch to be read: which files, (B,), and how each is seen, (B, 8), see `VIEW`, or None: the middle."""


class Reader(TorchDataset[Tensor | str]):
    """Reads batches of image files, as uint8, (B, size, size, 3); or says in a sentence why it cannot.

    A sentence, as an exception would come out of a process with its traceback. When a reader first reads a file, it
    compares its digest with what was prepared; afterwards its size.

    Crops are resized as torchvision does it with PIL images: bilinear, antialiased. Where RandAugment changes them,
    they are mirrored here, before that, as in torchvision's recipes: shears about a corner know left from right.
    """

    def __init__(self, files: ImageFiles, crops: Crops) -> None:
        self.files, self.crops = files, crops
        self._hashed = np.zeros(len(files), dtype=np.bool_)

    def __getitem__(self, work: Work) -> Tensor | str:
        index, views = work
        batch = torch.empty(len(index), self.crops.size, self.crops.size, 3, dtype=torch.uint8)
        if get_worker_info():
            try:
                batch.share_memory_()
            except RuntimeError as error:  # others have filled it since it was looked at
                return f"{SHARED} is full ({error}): enlarge it, or lower engine.workers; 0 does without."
        pixels = batch.numpy()
        try:
            for row, i in enumerate(index.tolist()):
                pixels[row] = self._shown(i, None if views is None else views[row].tolist())
        except UserError as error:
            return str(error)
        return batch

    def _shown(self, i: int, view: list[int] | None) -> NDArray[np.uint8]:
        """One image, (size, size, 3)."""
        content = self.files.content(i, hashed=not self._hashed[i])
        self._hashed[i] = True
        path, size = self.files.path(i), [self.crops.size, self.crops.size]
        try:
            image = read_whole(path, content, Counter())
        except ValueError as error:
            raise UserError(
                f"{path} cannot be read any more ({error}), though it is what it was when it was prepared: install the "
                "version of Pillow that read it then."
            ) from error
        if view is not None:
            image = TF.resized_crop(image, *view[:FLIP], size)
            if more := self.crops.randaugment:
                image = augmented(TF.hflip(image) if view[FLIP] else image, view[AUGMENT], more)
            return np.asarray(image)
        side = self.crops.resize
        if side**2 * max(image.size) > MOST_PIXELS * min(image.size):
            raise UserError(
                f"{path} is {image.width}x{image.height}, too long to be cropped from the middle: take it away, and "
                f"{anew(self.files.folder)}."
            )
        return np.asarray(TF.center_crop(TF.resize(image, [side]), size))


class Streamed(OfEpochs):
    """An iterable of `Batch` over image files; one iteration is one epoch. See `kdbench.data.views.Views`, which is the
    same for images in memory.

    Beside each batch of training lies ``again``: its samples in other views, which are read when they are asked for, by
    the process that asks.

    Args:
        labels: int64, (N,).
        mean, std: per channel, on the scale 0..1.
        flip: mirror half of the training images.
        augment: shuffle and crop as of (seed, epoch, index), for training; else the middle of each, in order.
        workers: processes that read.
        drop_last, blind, epoch_of, share: as of `Views`; what is not in the share is not read.
    """

    def __init__(
        self,
        files: ImageFiles,
        labels: Tensor,
        batch_size: int,
        seed: int = 0,
        *,
        crops: Crops,
        mean: Sequence[float],
        std: Sequence[float],
        augment: bool,
        flip: bool = False,
        workers: Workers = 0,
        drop_last: bool = False,
        blind: bool = False,
        device: torch.device | str = "cpu",
        epoch_of: Callable[[], int] | None = None,
        share: Share = WHOLE,
    ) -> None:
        self.device = torch.device(device)
        self.labels, self.batch_size, self.seed = labels.to(self.device), batch_size, seed
        self.crops, self.flip, self.augment, self.workers = crops, flip, augment, number_of(workers)
        self.drop_last, self.blind, self.epoch_of, self.share = drop_last, blind, epoch_of, share
        self.mean, self.std = (torch.tensor(values, dtype=torch.float32, device=self.device) for values in (mean, std))
        self._sizes = torch.from_numpy(files.shapes)
        self._reader = Reader(files, crops)
        self._loader: DataLoader[Tensor | str] | None = None
        self._work = _Work()

    def close(self) -> None:
        """End the processes that read; another iteration starts new ones."""
        self._loader = None

    def __len__(self) -> int:
        whole, rest = divmod(len(self.labels), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[Batch]:
        epoch, n = self.epoch, len(self.labels)
        order = order_of(self.seed, epoch, n) if self.augment else torch.arange(n)
        parts = [self.share.of(index) for index in order.split(self.batch_size)[: len(self)]]
        if self.blind:
            for index in parts:
                yield self._blind(index, self._views(epoch, index))
            return
        asked: deque[tuple[Tensor, Tensor]] = deque()

        def work() -> Iterator[Work]:
            for index in parts:
                asked.append((index, self._views(epoch, index)))
                yield self._to_read(*asked[-1])

        for images in self._read(work):
            index, view = asked.popleft()
            again = partial(self.take, index, epoch=epoch, draw=1)
            yield self._look(images, index, view, Beside({AGAIN: again} if self.augment else {}))

    def take(self, index: Tensor, plain: bool = False, *, epoch: int | None = None, draw: int = 0) -> Batch:
        """Any of the samples, as the epoch shows them, or plain: the middle of each. They are read here and now.

        Args:
            index: int64, (B,).
            draw: 1 is another view.
        """
        index, epoch = index.cpu(), self.epoch if epoch is None else epoch
        view = index.new_zeros(len(index), len(VIEW)) if plain else self._views(epoch, index, draw)
        images = _told(self._reader[self._to_read(index, view, plain)])
        beside = {} if plain or draw else {AGAIN: partial(self.take, index, epoch=epoch, draw=1)}
        return self._look(images, index, view, Beside(beside))

    def _views(self, epoch: int, index: Tensor, draw: int = 0) -> Tensor:
        if not self.augment:
            return index.new_zeros(len(index), len(VIEW))
        return view_of(self.crops, self.flip, self.seed, epoch, index, self._sizes[index], draw)

    def _to_read(self, index: Tensor, view: Tensor, plain: bool = False) -> Work:
        return index.numpy(), None if plain or not self.augment else view.numpy()

    def _read(self, work: Callable[[], Iterator[Work]]) -> Iterator[Tensor]:
        """What is to be read, in order. Processes are started once where one trains, and for each pass where not."""
        self._work.begin = work
        if self._loader is None:
            check_shared_memory(self.workers, min(self.batch_size, len(self.labels)) * 3 * self.crops.size**2)
            self._loader = DataLoader(
                self._reader,
                batch_size=None,
                sampler=self._work,
                num_workers=self.workers,
                persistent_workers=self.augment and self.workers > 0,
                prefetch_factor=AHEAD if self.workers else None,
                pin_memory=self.device.type == "cuda",
                # of its own: a draw from the global one would move what methods draw
                generator=torch.Generator(),
            )
        with told_of_deaths(), deaths_left_to_the_reader():
            batches = iter(self._loader)
        while True:
            with told_of_deaths():
                batch = next(batches, None)
            if batch is None:
                return
            yield _told(batch)

    def _look(self, images: Tensor, index: Tensor, view: Tensor, beside: Beside) -> Batch:
        """Images as they were read, mirrored (unless they were before), jittered and normalised."""
        x = images.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        mirrored = view[:, FLIP]
        if mirrored.any() and not self.crops.randaugment:
            x = torch.where(mirrored.to(self.device)[:, None, None, None] != 0, x.flip(3), x)
        if self.crops.jitter and view[:, JITTER].any():
            x = jittered(x, *jitter_of(view[:, JITTER], self.crops.jitter))
        index, view = index.to(self.device), view.to(self.device)
        return Batch(normalise(x, self.mean, self.std), self.labels[index], index, view, beside)

    def _blind(self, index: Tensor, view: Tensor) -> Batch:
        index, view = index.to(self.device), view.to(self.device)
        return Batch(self.mean.new_empty(len(index), 0), view.new_empty(len(index), 0), index, view)


class _Work:
    """A sampler whose samples are said anew before each pass."""

    begin: Callable[[], Iterator[Work]]

    def __iter__(self) -> Iterator[Work]:
        return self.begin()


def _told(batch: Tensor | str) -> Tensor:
    if isinstance(batch, str):
        raise UserError(batch)
    return batch
