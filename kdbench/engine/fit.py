"""Train one bound method with Lightning: resumable, quiet, counted."""

from __future__ import annotations

import logging
import math
import os
import resource
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor

from kdbench.errors import Diverged, Interrupted, UserError
from kdbench.method import Method
from kdbench.results.store import writing_to

CHECKPOINT = "last.ckpt"


@dataclass
class Fitted:
    """What training left behind.

    Attributes:
        curves: name -> one value per epoch, None where it was not measured.
        correct: per-example correctness of the final model on the test set, bool, (N,); empty if it diverged.
        seconds: time spent in training steps, evaluation and waiting left out, over all sittings.
        peak_memory_mb: of the device's allocator on a GPU, else of the whole process so far.
        reason: why it diverged, or None.
    """

    curves: dict[str, list[float | None]] = field(default_factory=dict)
    correct: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    reason: str | None = None


class Progress(Checkpoint):
    """Curves and training time of a cell, and its checkpoint; state survives a kill.

    A `Checkpoint` by type, because Lightning calls those last, when the epoch's values are all logged.
    """

    def __init__(self, folder: Path, every_seconds: float, on_epoch: Callable[[], None]) -> None:
        self.folder, self.every_seconds, self.on_epoch = folder, every_seconds, on_epoch
        self.curves: dict[str, list[float | None]] = {}
        self.seconds = 0.0
        self._saved = time.monotonic()
        self._since: float | None = None
        self._rng: Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        state = {"curves": self.curves, "seconds": self.seconds, "rng": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda_rng"] = torch.cuda.get_rng_state_all()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.curves, self.seconds = state["curves"], state["seconds"]
        self._rng, self._cuda_rng = state["rng"], state.get("cuda_rng")

    def on_train_start(self, trainer: pl.Trainer, method: pl.LightningModule) -> None:
        if self._rng is not None:
            torch.set_rng_state(self._rng)
            if self._cuda_rng is not None and torch.cuda.is_available():
                torch.cuda.set_rng_state_all(self._cuda_rng)

    def on_train_epoch_start(self, trainer: pl.Trainer, method: pl.LightningModule) -> None:
        # Lightning fills this again behind our epoch's end, with values that the new epoch may not measure
        trainer.callback_metrics.clear()
        self._since = time.monotonic()

    def _stop_clock(self) -> None:
        if self._since is not None:
            self.seconds += time.monotonic() - self._since
            self._since = None

    def on_validation_start(self, trainer: pl.Trainer, method: pl.LightningModule) -> None:
        self._stop_clock()

    def on_train_epoch_end(self, trainer: pl.Trainer, method: pl.LightningModule) -> None:
        assert isinstance(method, Method)
        self._stop_clock()
        self.record(trainer, method.epoch - 1)
        last = method.epoch == trainer.max_epochs
        if last or time.monotonic() - self._saved >= self.every_seconds:
            self.save(trainer)
        self.on_epoch()

    def record(self, trainer: pl.Trainer, epoch: int) -> None:
        """Enter what was logged as the values of the 0-based `epoch`; where a curve was not measured it holds None."""
        for name, value in trainer.callback_metrics.items():
            number = float(value)
            curve = self.curves.setdefault(name, [])
            curve += [None] * (epoch + 1 - len(curve))
            curve[epoch] = number if math.isfinite(number) else None
        trainer.callback_metrics.clear()

    def save(self, trainer: pl.Trainer) -> None:
        partial = self.folder / (CHECKPOINT + ".partial")
        with writing_to(self.folder):
            trainer.save_checkpoint(partial)
            os.replace(partial, self.folder / CHECKPOINT)
        self._saved = time.monotonic()


def fit(
    method: Method,
    data: pl.LightningDataModule,
    work: Path,
    *,
    trainer: Mapping[str, Any],
    logger: Logger | None = None,
    checkpoint_seconds: float = 30.0,
    on_epoch: Callable[[], None] = lambda: None,
) -> Fitted:
    """Train a bound method from its protocol's first epoch, or from the checkpoint in `work`, to the last.

    Raises:
        Interrupted: on Ctrl-C or SIGTERM; the checkpoint stays.
        UserError: the checkpoint cannot be read or written.
    """
    protocol = method.protocol
    progress = Progress(work, checkpoint_seconds, on_epoch)
    pl_trainer = make_trainer(
        trainer,
        max_epochs=protocol.epochs,
        precision=protocol.precision,
        check_val_every_n_epoch=protocol.eval_every,
        logger=logger or False,
        callbacks=[progress],
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1_000_000_000,  # values are logged per epoch: a step must not wait for the device
    )
    checkpoint = work / CHECKPOINT
    previous = signal.getsignal(signal.SIGINT)
    reason = None
    try:
        _fit_or_resume(pl_trainer, method, data, checkpoint)
        if method.epoch % protocol.eval_every or not _evaluated(method):
            pl_trainer.validate(method, datamodule=data, verbose=False)
            progress.record(pl_trainer, method.epoch - 1)
    except Diverged as error:
        reason = str(error)
        progress.record(pl_trainer, method.epoch)
    except (KeyboardInterrupt, SystemExit):
        raise Interrupted from None
    finally:
        signal.signal(signal.SIGINT, previous)
    for curve in progress.curves.values():
        curve += [None] * (method.epoch - len(curve))
    return Fitted(
        curves=progress.curves,
        correct=torch.cat(method.correct["test"]).cpu() if reason is None else torch.zeros(0, dtype=torch.bool),
        seconds=progress.seconds,
        peak_memory_mb=peak_memory_mb(method.device),
        reason=reason,
    )


def make_trainer(settings: Mapping[str, Any], **bench: Any) -> pl.Trainer:
    """Lightning's trainer from the user's `settings` and the bench's own.

    Raises:
        UserError: a setting is unknown, or asks for a device that is not there.
    """
    quiet()
    try:
        trainer = pl.Trainer(**settings, **bench)
    except (TypeError, ValueError, MisconfigurationException) as error:
        what = str(error).strip().splitlines()[0].rstrip(".").replace("Trainer.__init__() ", "")
        raise UserError(
            f"trainer: {what}; mend trainer.accelerator, trainer.devices or what was added to them."
        ) from None
    if trainer.world_size > 1:
        raise UserError(
            "a cell trains on one device: set trainer.devices=1, and start several sweeps on one store to "
            "use more of them."
        )
    return trainer


def _fit_or_resume(trainer: pl.Trainer, method: Method, data: pl.LightningDataModule, checkpoint: Path) -> None:
    if not checkpoint.exists():
        trainer.fit(method, datamodule=data)
        return
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=False)
    except Exception:
        raise UserError(f"the checkpoint {checkpoint} cannot be read: delete it to start this cell anew.") from None
    trainer.fit(method, datamodule=data, ckpt_path=str(checkpoint))


def _evaluated(method: Method) -> bool:
    """False for a cell that was killed between its last epoch and its record."""
    return bool(getattr(method, "correct", {}).get("test"))


def peak_memory_mb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def quiet() -> None:
    """Lightning's hints are for interactive use; a grid of hundreds of cells has one progress bar instead."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric)\..*")
    warnings.filterwarnings("ignore", message=".*(does not have many workers|isinstance\\(treespec, LeafSpec\\)).*")
