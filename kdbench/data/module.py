"""A data set as Lightning wants it."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch

from kdbench.data.batch import Batch, DataSpec
from kdbench.data.datasets import Dataset, Split
from kdbench.data.views import Views

EVAL_BATCH = 500
"""Images that are evaluated at a time."""


class ArrayData(pl.LightningDataModule):
    """The loaders of a `Dataset`: training views, and the plain validation (if any) and test splits.

    Everything lies on the trainer's device; the epoch whose views are seen is the trainer's, also after a resume.

    Args:
        seed: of data order and views.
        drop_last: leave out a last training batch that is not full; RepDistiller keeps it.
        blind: training batches without data (see `Views`).
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        *,
        eval_batch_size: int = EVAL_BATCH,
        drop_last: bool = False,
        blind: bool = False,
    ) -> None:
        super().__init__()
        self.dataset, self.batch_size, self.seed = dataset, batch_size, seed
        self.eval_batch_size, self.drop_last, self.blind = eval_batch_size, drop_last, blind
        self._moved: dict[tuple[str, torch.device], Split] = {}

    @property
    def spec(self) -> DataSpec:
        return self.dataset.spec

    @property
    def images_per_epoch(self) -> int:
        """How many images an epoch trains on."""
        n = self.spec.n_train
        return n - n % self.batch_size if self.drop_last else n

    def train_dataloader(self) -> Views:
        data, trainer = self.dataset, self.trainer
        split = self._on_device("train")
        return Views(
            split.images,
            split.labels,
            self.batch_size,
            self.seed,
            mean=data.mean,
            std=data.std,
            augment=True,
            pad=data.pad,
            flip=data.flip,
            drop_last=self.drop_last,
            blind=self.blind,
            device=self._device,
            # Lightning's own count is one behind when the first batch after a resume is fetched
            epoch_of=(lambda: getattr(trainer.lightning_module, "epoch", trainer.current_epoch)) if trainer else None,
        )

    def val_dataloader(self) -> list[Views]:
        """Plain views of [test], or of [test, val] where there is a validation split."""
        return [self._plain(name) for name in ("test", "val") if getattr(self.dataset, name) is not None]

    def test_dataloader(self) -> Views:
        return self._plain("test")

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Batches are made on the device: nothing to move."""
        if isinstance(batch, Batch) and batch.x.device == device:
            return batch
        return super().transfer_batch_to_device(batch, device, dataloader_idx)

    def _plain(self, name: str) -> Views:
        data, split = self.dataset, self._on_device(name)
        return Views(
            split.images,
            split.labels,
            self.eval_batch_size,
            mean=data.mean,
            std=data.std,
            augment=False,
            device=self._device,
        )

    @property
    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    def _on_device(self, name: str) -> Split:
        """A split, moved once per device however many loaders ask for it."""
        key = name, self._device
        if key not in self._moved:
            self._moved[key] = getattr(self.dataset, name).to(self._device)
        return self._moved[key]
