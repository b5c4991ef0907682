"""Cohorts: cells that train in lockstep behind one view of each batch and one pass of the teacher.

Lightning drives a cohort as one module. Every member keeps what is its own: networks, optimisers, random numbers,
curves, clock, checkpoint. So a cell's result does not depend on its company, and a member that diverges or fails leaves
without harm to the others. A cell on its own is a cohort of one.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.trainer.states import TrainerFn
from torch import Tensor

from kdbench.compute.clock import Clock, Mark
from kdbench.data.batch import Batch
from kdbench.engine.checkpoint import Unusable, pack, unpack
from kdbench.engine.logs import Log
from kdbench.errors import Diverged
from kdbench.files import sync_folder, write_beside, writing_to
from kdbench.method import Method
from kdbench.paths import CHOOSE_WORK
from kdbench.plan import ends_of
from kdbench.targets import first_line
from kdbench.teaching.frozen import CACHED, FrozenTeacher

if TYPE_CHECKING:
    from kdbench.engine.crew import Crew

CHECKPOINT = "last.ckpt"


class Spoiled(Exception):
    """A method changed a tensor in place that the members after it would have shared."""

    def __init__(self, member: Member, what: str) -> None:
        super().__init__(f"{what}, which the cells beside it share: have the method work on a clone")
        self.member = member


@dataclass
class Member:
    """One cell in training.

    Attributes:
        title: for messages and logs.
        method: bound, not yet on the device.
        folder: where its checkpoint lies.
        rng: state of torch's global generator at its next step.
        cuda_rng: and of that of the GPU where it trains.
        scaler: state of the gradient scaler, empty where there is none; a cell that has one has no company.
        identity: all that a checkpoint must share with this training if it is to go on from it.
        curves: name -> one value per epoch, None where it was not measured.
        seconds: time that its own training steps took the device, and an equal share of what the cohort does once for
            all; evaluation and waiting left out, over all sittings, as far as epochs are over.
        reason: why it diverged.
        error: what made it fail.
        loss: of the last epoch, its terms as they are weighted.
        judged: how many epochs it had trained when it was last evaluated in this sitting.
        devices: on how many it was trained, one after the other.
    """

    title: str
    method: Method
    folder: Path
    rng: Tensor
    identity: Mapping[str, Any] = field(default_factory=dict)
    log: Log | None = None
    cuda_rng: Tensor | None = None
    scaler: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, list[float | None]] = field(default_factory=dict)
    seconds: float = 0.0
    reason: str | None = None
    error: Exception | None = None
    loss: float | None = None
    judged: int = 0
    devices: tuple[int, ...] = ()
    _optimizers: list[dict[str, Any]] | None = None

    @property
    def checkpoint(self) -> Path:
        return self.folder / CHECKPOINT

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one.

        Raises:
            Unusable: it is damaged, or of another training; the method may be half loaded then, and is to be made anew.
            UserError: it cannot be read.
        """
        try:
            state = unpack(self.checkpoint, self.identity)
        except FileNotFoundError:
            return
        try:
            self.load(state)
        except Exception as error:
            raise Unusable(f"its checkpoint does not fit the method ({first_line(error)})") from error

    def load(self, state: dict[str, Any]) -> None:
        """Stand where a member stood that had this `state`."""
        self.method.on_load_checkpoint(state)
        self.method.load_state_dict(state["state"])
        self.curves, self.seconds = state["curves"], state["seconds"]
        self.rng, self.cuda_rng, self._optimizers = state["rng"], state["cuda_rng"], state["optimizers"]
        self.scaler, self.devices = state["scaler"], tuple(state.get("devices", (1,)))

    def state(self, optimizers: Sequence[torch.optim.Optimizer] | None = None) -> dict[str, Any]:
        """All that it takes to go on; without its `optimizers` before they are made."""
        made = self._optimizers or [] if optimizers is None else [optimizer.state_dict() for optimizer in optimizers]
        state = {
            "state": self.method.state_dict(),
            "optimizers": made,
            "curves": self.curves,
            "seconds": self.seconds,
            "rng": self.rng,
            "cuda_rng": self.cuda_rng,
            "scaler": self.scaler,
            "devices": list(self.devices),
        }
        self.method.on_save_checkpoint(state)
        return state

    def write(self, optimizers: Sequence[torch.optim.Optimizer]) -> Path:
        """Write a checkpoint beside the last one; `os.replace` makes it the last one.

        Raises:
            OSError: the folder cannot be written.
        """
        return write_beside(self.checkpoint, pack(self.identity, self.state(optimizers)))

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """The method's optimisers, in the state of the checkpoint."""
        optimizers = self.method.configure_optimizers()
        for optimizer, state in zip(optimizers, self._optimizers or [], strict=False):
            optimizer.load_state_dict(state)
        self._optimizers = None
        return optimizers

    @contextmanager
    def playing(self, device: torch.device) -> Iterator[None]:
        """The member's own random numbers, on the host and on the GPU where it trains."""
        torch.set_rng_state(self.rng)
        if self.cuda_rng is not None:
            torch.cuda.set_rng_state(self.cuda_rng, device)
        yield
        self.rng = torch.get_rng_state()
        if self.cuda_rng is not None:
            self.cuda_rng = torch.cuda.get_rng_state(device)

    def record(self, values: dict[str, Any], epoch: int) -> None:
        """Enter `values` into the curves at the 0-based `epoch`."""
        for name, value in values.items():
            number = float(value)
            curve = self.curves.setdefault(name, [])
            curve += [None] * (epoch + 1 - len(curve))
            curve[epoch] = number if math.isfinite(number) else None


class Cohort(pl.LightningModule):
    """The members as Lightning trains them; all of them stand at the same epoch.

    Args:
        teachers: those that the members' methods were bound to.
        channels_last: hand images over in that memory format.
        checkpoint_seconds: how much work a kill may cost, at most one epoch more.
        on_epoch: told which members have finished how many more epochs.
        crew: trains the only member in several processes, this one among them.
    """

    def __init__(
        self,
        members: Sequence[Member],
        teachers: Sequence[FrozenTeacher],
        *,
        channels_last: bool,
        checkpoint_seconds: float,
        on_epoch: Callable[[Sequence[Member], int], None],
        crew: Crew | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.members = list(members)
        self._teachers = tuple(teachers)  # a tuple hides them: frozen, and each method moves them to the device
        self.channels_last, self.checkpoint_seconds, self.on_epoch = channels_last, checkpoint_seconds, on_epoch
        self.crew = crew
        self.epochs = members[0].method.protocol.epochs
        self.epoch = members[0].method.epoch
        self.ends = ends_of(self.epochs, max(len(members[0].method.data.experiences), 1))
        for k, member in enumerate(members):
            self.add_module(f"member{k}", member.method)
        self._saved = time.monotonic()
        self._began: Mark = None
        self._turns: list[tuple[Member, Mark, Mark]] = []

    # ---- training -----------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        self._optimizers_of: dict[str, list[torch.optim.Optimizer]] = {}
        optimizers: list[torch.optim.Optimizer] = []
        for member in self.members:
            member.method._first_optimizer = len(optimizers)
            self._optimizers_of[member.title] = member.configure_optimizers()
            optimizers += self._optimizers_of[member.title]
        return optimizers

    def on_fit_start(self) -> None:
        for member in self.members:
            member.method.start(self.epochs)
            if member.scaler:
                self.trainer.precision_plugin.load_state_dict(member.scaler)
            if self.device.type == "cuda" and member.cuda_rng is None:
                member.cuda_rng = torch.cuda.get_rng_state(self.device)

    def on_train_epoch_start(self) -> None:
        self._start_clock()
        self._played_by_all(lambda method: method.on_train_epoch_start())

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self._laid_out(batch)
        shared, version = batch.x, batch.x._version
        for teacher in self._teachers:
            teacher.serve(batch.for_teacher, whole=not self._asked_of(teacher) <= CACHED)
        for member in self.members[:]:
            self._turn(member, lambda method: self._step(method, batch, batch_idx))
            spoiled = "the batch's 'x' was changed in place" if shared._version != version else None
            if stream := batch.beside.changed():  # type: ignore[attr-defined]  # a `Beside`, whatever was given
                spoiled = spoiled or f"the stream '{stream}' was changed in place"
            spoiled = spoiled or next(filter(None, (teacher.spoiled() for teacher in self._teachers)), None)
            if spoiled and len(self.members) > 1:
                raise Spoiled(member, spoiled)
        for teacher in self._teachers:
            teacher.serve(None)

    def _step(self, method: Method, batch: Batch, batch_idx: int) -> None:
        if self.crew:
            self.crew.step(method, batch, batch_idx)
        else:
            method.training_step(batch, batch_idx)

    def _asked_of(self, teacher: FrozenTeacher) -> set[str]:
        """The taps that some member reads of a teacher."""
        pairs = [pair for m in self.members for pair in zip(m.method._teachers, m.method._teacher_taps, strict=True)]
        return {name for each, names in pairs if each is teacher for name in names}

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if self.trainer.is_last_batch:
            self._played_by_all(lambda method: method.close_epoch())

    def _played_by_all(self, turn: Callable[[Method], None]) -> None:
        """What every member does for itself, with its own random numbers and on its own clock."""
        for member in self.members[:]:
            self._turn(member, turn)
        if self.crew:
            for member in self.members:
                self.crew.begun(member.method)

    def _turn(self, member: Member, turn: Callable[[Method], None]) -> None:
        began = self._clock.mark()
        with member.playing(self.device):
            try:
                turn(member.method)
            except Exception as error:
                self._leave(member, error=error)
        self._turns.append((member, began, self._clock.mark()))

    def _leave(self, member: Member, *, error: Exception | None = None, reason: str | None = None) -> None:
        member.error, member.reason = error, reason
        self.members.remove(member)
        if not self.members:
            self.trainer.should_stop = True

    def _start_clock(self) -> None:
        self._clock = Clock(self.device)
        self._began, self._turns = self._clock.mark(), []

    def _stop_clock(self) -> None:
        if self._began is None:
            return
        shared = self._clock.seconds(self._began, self._clock.mark())
        for member, began, ended in self._turns:
            took = self._clock.seconds(began, ended)
            member.seconds += took
            shared -= took
        for member in self.members:
            member.seconds += shared / len(self.members)
        self._began = None

    def on_train_epoch_end(self) -> None:
        self._stop_clock()
        for member in self.members[:]:
            if self.crew:
                self.crew.agree(member.method)
            means = member.method.term_means()
            member.record(means | member.method.epoch_bounds(means), self.epoch)
            member.loss = sum(member.method._weight[name.removeprefix("loss/")] * mean for name, mean in means.items())
            try:
                member.method.finish_epoch(means)
            except Diverged as error:
                self._leave(member, reason=str(error))
        self.epoch += 1
        if self.epoch == self.epochs or time.monotonic() - self._saved >= self.checkpoint_seconds:
            self.save()
        for member in self.members:
            if member.log:
                member.log.write(min(self.epoch, self.epochs - 1))  # the last one may still be evaluated
        self.on_epoch(self.members, 1)

    def save(self) -> None:
        """A checkpoint of every member. All are written before any takes effect: they stay at one epoch."""
        if self.crew and self.crew.rank:
            return
        partials: dict[Path, Path] = {}
        try:
            for member in self.members:
                member.scaler = self.trainer.precision_plugin.state_dict()
                with writing_to(member.folder, CHOOSE_WORK):
                    partials[member.write(self._optimizers_of[member.title])] = member.checkpoint
            for partial, checkpoint in partials.items():
                with writing_to(checkpoint.parent, CHOOSE_WORK):
                    os.replace(partial, checkpoint)
        finally:
            for partial, checkpoint in partials.items():
                with suppress(OSError):
                    partial.unlink(missing_ok=True)
                sync_folder(checkpoint.parent)
        self._saved = time.monotonic()

    def train_nothing(self) -> None:
        """What members do whose plans have no epochs: all of it, at once."""
        self._start_clock()
        for member in self.members:
            member.method.start(self.epochs)
        self._played_by_all(lambda method: method.on_train_epoch_start())
        self._stop_clock()
        self.epoch = self.epochs
        for member in self.members:
            member.method.epoch = self.epochs
        self.on_epoch(self.members, self.epochs)

    # ---- evaluation ---------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self._stop_clock()
        # while training, the epoch that is evaluated does not count yet; afterwards it does
        self._trained = self.epoch + (self.trainer.state.fn == TrainerFn.FITTING)
        every = self.members[0].method.protocol.eval_every if self.members else 1
        due = self._trained % every == 0 or self._trained in self.ends
        # who is never trained is judged once, alone as in company
        self._judged = [m for m in self.members if due and (self._trained == self.epochs or not m.method.idle)]
        for member in self._judged:
            member.method.on_validation_epoch_start()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._laid_out(batch)
        for member in self._judged:
            member.method.validation_step(batch, batch_idx, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        for member in self._judged:
            member.record(member.method.scores(), self._trained - 1)
            member.judged = self._trained

    def _laid_out(self, batch: Batch) -> None:
        if self.channels_last and batch.x.dim() == 4:
            batch.x = batch.x.contiguous(memory_format=torch.channels_last)
