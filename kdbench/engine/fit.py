"""Train bound methods with Lightning, quietly."""

from __future__ import annotations

import logging
import math
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytorch_lightning as pl
import torch
from pytorch_lightning.profilers import AdvancedProfiler, PyTorchProfiler, SimpleProfiler
from torch import Tensor

from kdbench.compute.device import has_tf32, tf32
from kdbench.compute.fast import CompiledTap, fused, keep_freed_memory, stride_outside
from kdbench.compute.route import Route, avx512
from kdbench.engine.cohort import Cohort, Member
from kdbench.engine.crew import Crew
from kdbench.engine.signals import interrupting
from kdbench.errors import Interrupted, UserError
from kdbench.files import writing_to
from kdbench.method import Method, Samples
from kdbench.paths import CHOOSE_WORK
from kdbench.teaching.frozen import FrozenTeacher


@dataclass
class Fitted:
    """What training left behind.

    Attributes:
        curves: name -> one value per epoch, None where it was not measured.
        values: all measures of the final model on the test set, by name; empty if it diverged.
        examples: its score for each example, (N,), bool where that is right or wrong; empty if it diverged.
        seconds: time spent in training steps, evaluation and waiting left out, over all sittings.
        peak_memory_mb: of the device's allocator meanwhile on a GPU, else of the whole process so far.
        reason: why it diverged, or None.
    """

    curves: dict[str, list[float | None]] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    examples: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    seconds: float = 0.0
    peak_memory_mb: float = 0.0
    reason: str | None = None


def fit(
    members: Sequence[Member],
    data: pl.LightningDataModule,
    route: Route,
    *,
    trainer: Mapping[str, Any],
    teachers: Sequence[FrozenTeacher] = (),
    checkpoint_seconds: float = 30.0,
    on_epoch: Callable[[Sequence[Member], int], None] = lambda members, epochs: None,
    crew: Crew | None = None,
    **more: Any,
) -> list[Fitted | Exception]:
    """Train bound members of one protocol in lockstep, from the epoch where all of them stand to the protocol's last.

    Args:
        trainer: the user's settings of Lightning's trainer; `more` are the caller's.
        crew: other processes that train the only member with this one; who leads evaluates and writes checkpoints.

    Returns:
        for each member what training left behind (of a crew to the one that leads), or the exception that made it fail.

    Raises:
        Interrupted: on Ctrl-C, SIGTERM or a scheduler's signal; the checkpoints stay.
        Spoiled: a member spoilt the step of the others.
        UserError: a checkpoint cannot be written, or the trainer's settings are wrong.
    """
    protocol = members[0].method.protocol
    follows = crew is not None and crew.rank > 0
    for member in members:
        prepare(member.method, route)
        member.method.samples = data if isinstance(data, Samples) else None
        member.method.crew = crew
        if member.devices[-1:] != (route.devices,):
            member.devices += (route.devices,)
    cohort = Cohort(
        members, teachers, channels_last=route.fast, checkpoint_seconds=checkpoint_seconds, on_epoch=on_epoch, crew=crew
    )
    pl_trainer = make_trainer(
        trainer,
        max_epochs=protocol.epochs,
        precision=protocol.precision,
        check_val_every_n_epoch=math.gcd(protocol.eval_every, *(cohort.ends if len(cohort.ends) > 1 else ())),
        reload_dataloaders_every_n_epochs=int(len(cohort.ends) > 1),  # each experience has its own data
        inference_mode=False,  # else a meter that takes gradients (PGD) works in `fit` alone
        logger=False,  # each member has its own
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1_000_000_000,
        **({"limit_val_batches": 0} if follows else {}),
        **more,
    )
    forget_peak(pl_trainer.strategy.root_device)
    previous = signal.getsignal(signal.SIGINT)
    try:
        with interrupting(), tf32(protocol.precision == "tf32"):
            if all(member.method.idle for member in members):
                data.trainer = pl_trainer
                cohort.trainer = pl_trainer
                cohort.to(pl_trainer.strategy.root_device).train_nothing()
            elif cohort.epoch < protocol.epochs:
                progress = pl_trainer.fit_loop.epoch_progress.current
                progress.processed = progress.completed = cohort.epoch  # type: ignore[attr-defined]
                pl_trainer.fit(cohort, datamodule=data)
            if not follows and any(member.judged < protocol.epochs for member in cohort.members):
                pl_trainer.validate(cohort, datamodule=data, verbose=False)
    except (KeyboardInterrupt, SystemExit):
        raise Interrupted from None
    finally:
        signal.signal(signal.SIGINT, previous)
        for member in members:
            member.method.crew = None
    if follows:
        return [member.error or Fitted(reason=member.reason) for member in members]
    return [member.error or _fitted(member, peak_memory_mb(cohort.device)) for member in members]


def prepare(method: Method, route: Route) -> None:
    """Put a bound method on its route: memory format, fused optimisers, compiled forward passes."""
    if not route.fast:
        return
    keep_freed_memory()
    if not avx512():
        stride_outside(method)
    for parameter in method.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    method.optimize_with = fused
    if route.compiled:
        method.tap_with = compiled_tap(method.protocol.batch_size)


def not_compiled(method: Method, route: Route) -> str | None:
    """Why a method's student ran eagerly although its route says otherwise, or None."""
    return compiled_tap(method.protocol.batch_size).why_not(method.student) if route.compiled else None


@lru_cache
def compiled_tap(batch_size: int) -> CompiledTap:
    """One for all cells of a process, so that no graph is compiled twice."""
    return CompiledTap(batch_size)


def _fitted(member: Member, peak: float) -> Fitted:
    epochs = member.method.epoch
    for curve in member.curves.values():
        curve += [None] * (epochs - len(curve))
    if member.reason is not None:
        return Fitted(member.curves, seconds=member.seconds, peak_memory_mb=peak, reason=member.reason)
    meter = member.method.meter("test")
    values = {name: float(value) for name, value in meter.compute().items()}
    return Fitted(member.curves, values, meter.examples().cpu(), member.seconds, peak)


class Place(NamedTuple):
    """A device, and the settings of a trainer on it."""

    settings: Mapping[str, Any]
    device: torch.device


def each_device(settings: Mapping[str, Any]) -> list[Place]:
    """The devices that the user's settings of a trainer name, with those of one on each.

    Raises:
        UserError: as of `make_trainer`.
    """
    # Lightning is told of one alone: of several it would ask a scheduler for as many processes
    one = _trainer({**settings, "devices": 1}, logger=False, enable_checkpointing=False)
    with _settings_to_blame():
        asked = settings.get("devices", "auto")
        accelerator: Any = one.accelerator
        parsed = accelerator.parse_devices(accelerator.auto_device_count() if asked == "auto" else asked)
        devices: list[torch.device] = accelerator.get_parallel_devices(parsed)
    if len(devices) == 1:
        return [Place(settings, devices[0])]
    return [Place({**settings, "devices": 1 if each.index is None else [each.index]}, each) for each in devices]


def make_trainer(settings: Mapping[str, Any], **bench: Any) -> pl.Trainer:
    """Lightning's trainer on one device, from the user's `settings` and the bench's own.

    Raises:
        UserError: a setting is unknown, asks for a device that is not there, or for a precision that it has not.
    """
    wanted = bench.get("precision")
    if wanted == "tf32":  # a way of float32's, of which Lightning has no word
        bench["precision"] = "32-true"
    trainer = _trainer(settings, **bench)
    if trainer.world_size > 1:
        raise UserError(
            f"this trainer has {trainer.world_size} devices: set trainer.devices=1, or train cells with kdbench run, "
            "which starts a process for each."
        )
    got = "tf32" if wanted == "tf32" and has_tf32(trainer.strategy.root_device) else trainer.precision
    if wanted and wanted != got:
        raise UserError(
            f"protocol.precision={wanted} would be {got} on this device: set that, or use another device "
            "(trainer.accelerator)."
        )
    return trainer


def _trainer(settings: Mapping[str, Any], **bench: Any) -> pl.Trainer:
    quiet()
    with _settings_to_blame():
        return pl.Trainer(**settings, **bench)


@contextmanager
def _settings_to_blame() -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of whatever a device's package raises where it is not there
        what = str(error).strip().splitlines()[0].rstrip(".!").replace("Trainer.__init__() ", "")
        raise UserError(
            f"trainer: {what}; mend trainer.accelerator, trainer.devices or what was added to them."
        ) from None


PROFILERS = {"simple": SimpleProfiler, "advanced": AdvancedProfiler, "pytorch": PyTorchProfiler}


def profiled(settings: Mapping[str, Any], folder: Path, title: str) -> Mapping[str, Any]:
    """The user's settings of the trainer, with a profiler that writes into `folder`: what it would log is not shown."""
    if not (name := settings.get("profiler")):
        return settings
    with writing_to(folder, CHOOSE_WORK):
        folder.mkdir(parents=True, exist_ok=True)
    file = re.sub(r"[^A-Za-z0-9._-]+", "-", title)[:100]
    return {**settings, "profiler": PROFILERS[name](dirpath=folder, filename=file)}


def forget_peak(device: torch.device) -> None:
    """From now on the peak is that of what comes, where the device counts by itself."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_mb(device: torch.device) -> float:
    """Of the allocator on a GPU since `forget_peak`, else of this process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with suppress(OSError):  # Linux counts in ru_maxrss also what the parent had before exec
        if found := re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE):
            return int(found[1]) / 2**10
    try:
        import resource
    except ImportError:  # Windows, whose own count psutil knows
        return psutil.Process().memory_info().peak_wset / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def quiet() -> None:
    """Lightning's hints are for interactive use; a grid of hundreds of cells has one progress bar instead."""
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric", "torch.utils.cpp_extension"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric)\..*")
    warnings.filterwarnings(
        "ignore", message=".*(does not have many workers|TensorFloat32|isinstance\\(treespec, LeafSpec\\)).*"
    )
