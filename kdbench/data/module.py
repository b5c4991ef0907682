"""A data set as Lightning wants it."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import replace
from typing import Any, TypeVar

import pytorch_lightning as pl
import torch
from torch import Tensor

from kdbench.data.batch import WHOLE, Batch, DataSpec, Share
from kdbench.data.datasets import Dataset, Split
from kdbench.data.manifest import ImageFiles
from kdbench.data.mixed import Mixed
from kdbench.data.streamed import Streamed
from kdbench.data.views import Moved, Views
from kdbench.plan import ends_of

T = TypeVar("T")

EVAL_BATCH = 500
"""Images that are evaluated at a time."""
EVAL_PIXELS = 500 * 32 * 32
"""Of images whose every pixel has an output, evaluated at a time."""
EVAL_STREAMED = 100
"""Images that are streamed, so large ones, evaluated at a time."""


def eval_batch(dataset: Dataset) -> int:
    """How many samples are evaluated at a time: fewer where the outputs are maps, which take memory."""
    if dataset.crops:
        return EVAL_STREAMED
    if dataset.test.labels.dim() > 2:
        return max(1, min(EVAL_BATCH, EVAL_PIXELS // math.prod(dataset.spec.shape[1:])))
    return EVAL_BATCH


class ArrayData(pl.LightningDataModule):
    """The loaders of a `Dataset`: training views, and the plain validation (if any) and test splits.

    Everything lies on the trainer's device, but for images that are streamed to it; the epoch whose views are seen is
    the trainer's, also after a resume. Where data arrive in experiences, an epoch shows those of its experience alone,
    so loaders differ in length: have Lightning ask for them in each epoch (``reload_dataloaders_every_n_epochs=1``).

    Args:
        seed: of data order and views.
        epochs: how many the experiences share (see `kdbench.plan.ends_of`); needed where there are some.
        drop_last: leave out a last training batch that is not full; RepDistiller keeps it.
        blind: training batches without data (see `Views`).
        moved: what becomes of targets when their images move, as of `kdbench.tasks.Task.moved`.
        placed: what lies on a device, for several modules of one data set to share; filled in.
        share: the part of each training batch that is shown.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        *,
        epochs: int | None = None,
        eval_batch_size: int = EVAL_BATCH,
        drop_last: bool = False,
        blind: bool = False,
        moved: Moved | None = None,
        placed: dict[tuple[str, torch.device], Any] | None = None,
        share: Share = WHOLE,
    ) -> None:
        super().__init__()
        self.dataset, self.batch_size, self.seed, self.moved = dataset, batch_size, seed, moved
        self.eval_batch_size, self.drop_last, self.blind, self.share = eval_batch_size, drop_last, blind, share
        if dataset.experiences and not epochs:
            raise ValueError("experiences share the epochs: say how many there are")
        self._ends = ends_of(epochs, len(dataset.experiences)) if epochs and dataset.experiences else ()
        self._training: Views | Streamed | None = None
        self._placed = {} if placed is None else placed

    @property
    def spec(self) -> DataSpec:
        return self.dataset.spec

    def experience_at(self, epoch: int) -> int:
        """The experience to which an epoch belongs, from 0."""
        return min(bisect_right(self._ends, epoch), max(len(self._ends) - 1, 0))

    def positions(self, experience: int) -> Tensor:
        """Of the samples that arrive with an experience (all, where data come whole), int64, (N,), ascending."""
        return self._once(f"experience {experience}", lambda: self._arriving(experience))

    def images_seen(self, epochs: int, needs: AbstractSet[str] = frozenset()) -> int:
        """How many images the first `epochs` epochs show to a method that declares these `needs`.

        As `Batch.shown` counts: labelled samples in every lap, and declared streams with an order of their own.
        """
        own = self.dataset.beside
        per_batch = sum(own[name].per_batch for name in needs & own.keys() if not own[name].follow)
        seen = 0
        for epoch in range(epochs):
            samples = self.spec.epoch_size(self.experience_at(epoch))
            batches = samples // self.batch_size if self.drop_last else -(-samples // self.batch_size)
            seen += (batches * self.batch_size if self.drop_last else samples) + batches * per_batch
        return seen

    def train_dataloader(self) -> Views | Streamed | Mixed:
        self._training = self._shown_in_training()
        mix = self.dataset.mix
        if mix is None or self.blind:
            return self._training
        return Mixed(self._training, mix, self.spec.num_classes)

    def teardown(self, stage: str) -> None:
        """The processes that read images have done what they were for."""
        if isinstance(self._training, Streamed):
            self._training.close()

    def _shown_in_training(self) -> Views | Streamed:
        data, trainer = self.dataset, self.trainer
        split = self._on_device("train")
        # Lightning's own count is one behind when the first batch after a resume is fetched
        epoch_of = (lambda: getattr(trainer.lightning_module, "epoch", trainer.current_epoch)) if trainer else None
        common: dict[str, Any] = {
            "mean": data.mean,
            "std": data.std,
            "augment": True,
            "flip": data.flip,
            "drop_last": self.drop_last,
            "blind": self.blind,
            "device": self._device,
            "epoch_of": epoch_of,
            "share": self.share,
        }
        if data.crops:
            return self._streamed(split, self.batch_size, self.seed, **common)
        return Views(
            split.pixels,
            split.labels,
            self.batch_size,
            self.seed,
            **common,
            pad=data.pad,
            affine=data.affine,
            beside={name: replace(stream, split=self._on_device(name)) for name, stream in data.beside.items()},
            part_of=(lambda epoch: self.positions(self.experience_at(epoch))) if data.experiences else None,
            laps=data.laps,
            moved=self.moved,
        )

    def take(self, index: Tensor, epoch: int, *, plain: bool) -> Batch:
        """Any training samples, whatever their experience, as `epoch` shows them first, or plain; see `Views.take`."""
        views = self._shown_in_training()
        views.epoch_of = lambda: epoch
        return views.take(index, plain)

    def val_dataloader(self) -> list[Views | Streamed]:
        """Plain views of [test], or of [test, val] where there is a validation split."""
        return [self._plain(name) for name in ("test", "val") if getattr(self.dataset, name) is not None]

    def test_dataloader(self) -> Views | Streamed:
        return self._plain("test")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Batches are made on the device: nothing to move."""
        return batch.to(device) if isinstance(batch, Batch) else super().transfer_batch_to_device(batch, device, 0)

    def _plain(self, name: str) -> Views | Streamed:
        data, split = self.dataset, self._on_device(name)
        common: dict[str, Any] = {
            "mean": split.mean or data.mean,
            "std": split.std or data.std,
            "augment": False,
            "device": self._device,
        }
        if data.crops:
            return self._streamed(split, self.eval_batch_size, **common)
        return Views(split.pixels, split.labels, self.eval_batch_size, **common)

    def _streamed(self, split: Split, *settings: int, **common: Any) -> Streamed:
        assert isinstance(split.images, ImageFiles)
        crops, workers = self.dataset.crops, self.dataset.workers
        assert crops
        return Streamed(split.images, split.labels, *settings, crops=crops, workers=workers, **common)

    @property
    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def _on_device(self, name: str) -> Split:
        """A split, or a stream's, moved once per device however many loaders ask for it."""
        stream = self.dataset.beside.get(name)
        split = stream.split if stream else getattr(self.dataset, name)
        return self._once(name, lambda: split.to(self._device))

    def _arriving(self, experience: int) -> Tensor:
        parts = self.dataset.experiences
        whole = torch.arange(self.spec.n_train)
        return (parts[experience] if parts else whole).to(self._device)

    def _once(self, name: str, make: Callable[[], T]) -> T:
        key = name, self._device
        if key not in self._placed:
            self._placed[key] = make()
        return self._placed[key]
