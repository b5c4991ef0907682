"""The engine as it is measured: cells in lockstep, through Lightning, on one route."""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch.profiler import ProfilerActivity, profile

from kdbench.bench.reference import WARM, synchronise
from kdbench.bench.setting import SEED, Setting
from kdbench.compute.route import EngineConfig, Route
from kdbench.data.batch import Batch
from kdbench.data.module import ArrayData
from kdbench.engine.cohort import Member
from kdbench.engine.fit import fit
from kdbench.method import Method
from kdbench.results.figures import Share
from kdbench.teaching.frozen import FrozenTeacher
from kdbench.teaching.taught import open_cache

EPOCHS = 240
"""Of the cells whose route is measured: long ones, so that they are compiled where that is possible."""

COMPILED = "kernels of compiled graphs"
PROFILED = 6
"""Operators in a profile."""


def route_of(setting: Setting, *, cached: bool, compiled: bool) -> Route:
    """The fast route of a long cell; with `compiled` only where the machine has what it takes."""
    config = EngineConfig(compile="auto" if compiled else False, view_cache=cached)
    return Route.choose(config, setting.device, EPOCHS * setting.batches)


def frozen_teacher(setting: Setting, route: Route, folder: Path) -> FrozenTeacher:
    """The pair's teacher on a route, with an empty view cache under `folder` where the route has one."""
    data = setting.dataset
    frozen = FrozenTeacher(setting.network(setting.teacher), data.spec.shape, route, setting.protocol().batch_size)
    frozen.to(setting.device)
    if route.cached:
        frozen.cache = open_cache(folder, {"bench": setting.teacher}, frozen, data)
    return frozen


class Engine:
    """Cells in lockstep; their students keep learning from turn to turn, on the same batches.

    The same batches, so that a view cache that saw one turn is warm in the next.

    Args:
        names: methods, one student each.
        precision: of the students' protocol.
        teacher: on the same route; None if no method needs one.
        folder: for their checkpoints.
        student: its architecture, by default the pair's.
    """

    def __init__(
        self,
        setting: Setting,
        names: Sequence[str],
        precision: str,
        route: Route,
        teacher: FrozenTeacher | None,
        folder: Path,
        student: str | None = None,
    ) -> None:
        self.setting, self.route, self.teacher, self.folder = setting, route, teacher, folder
        self.protocol = setting.protocol(precision)
        self.methods = {
            name: setting.method(name, self.protocol, teacher if setting.taught(name) else None, student)
            for name in names
        }

    def turn(self, steps: int) -> float:
        """Seconds per step of all methods, over `steps` steps after `WARM` others."""
        clock = Clock(self.setting.device, steps)
        self.play(clock, WARM + steps)
        return clock.seconds / steps

    def profile(self, steps: int = 3) -> list[Share]:
        """The operators that take the most time of their own (on the device, if that is a GPU)."""
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else the profiler complains where there is no GPU
        on_gpu = self.setting.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        watch = profile(activities=activities)
        self.play(Clock(self.setting.device, steps, watch), WARM + steps)

        shares: Counter[str] = Counter()
        for event in watch.key_averages():
            name = COMPILED if event.key.startswith("## Call CompiledFxGraph") else event.key[:60]
            shares[name] += event.self_device_time_total if on_gpu else event.self_cpu_time_total
        total = shares.total() or 1.0
        return [Share(operator=name, percent=round(100 * own / total, 1)) for name, own in shares.most_common(PROFILED)]

    def play(self, callback: pl.Callback, batches: int) -> None:
        """Train for so many batches."""
        members = []
        for name, method in self.methods.items():
            method.epoch = 0
            (self.folder / name).mkdir(parents=True, exist_ok=True)
            members.append(Member(name, method, self.folder / name, torch.get_rng_state()))
        # a little evaluation at the end belongs to an epoch; it is not timed
        data = ArrayData(self.setting.dataset, self.protocol.batch_size, SEED, eval_batch_size=16)
        results = fit(
            members,
            data,
            self.route,
            trainer=self.setting.trainer,
            teachers=[self.teacher] if self.teacher else [],
            checkpoint_seconds=math.inf,
            callbacks=[callback],
            limit_train_batches=batches,
            limit_val_batches=1,
        )
        for result in results:
            if isinstance(result, Exception):
                raise result


class Clock(pl.Callback):
    """Times (or profiles) whole rounds of Lightning's loop: from the end of batch `WARM` to that of the last one."""

    def __init__(self, device: torch.device, steps: int, watch: profile | None = None) -> None:
        self.device, self.steps, self.watch = device, steps, watch
        self.seconds = self._began = 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        done = batch_idx + 1 - WARM
        if done == 0:
            synchronise(self.device)
            if self.watch:
                self.watch.start()
            self._began = time.perf_counter()
        elif done == self.steps:
            synchronise(self.device)
            self.seconds = time.perf_counter() - self._began
            if self.watch:
                self.watch.stop()


class LoopCost(pl.Callback):
    """Steps through the engine's loop and steps of the same method in a plain loop, in turns.

    Attributes:
        loop, plain: seconds per step, of each turn.
    """

    def __init__(self, method: Method, channels_last: bool, device: torch.device, steps: int) -> None:
        self.method, self.channels_last, self.device, self.steps = method, channels_last, device, steps
        self.loop: list[float] = []
        self.plain: list[float] = []
        self._began = 0.0

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        done = batch_idx + 1 - WARM
        if done < 0 or done % self.steps:
            return
        synchronise(self.device)
        now = time.perf_counter()
        if done:
            self.loop.append((now - self._began) / self.steps)
            batches = iter(trainer.datamodule.train_dataloader())
            optimizers = [wrapped.optimizer for wrapped in self.method._optimizers()]
            for _ in range(self.steps):
                with trainer.precision_plugin.train_step_context():
                    self.step(next(batches), optimizers)
            synchronise(self.device)
            self.plain.append((time.perf_counter() - now) / self.steps)
        self._began = time.perf_counter()

    def step(self, batch: Batch, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        """As `Method.training_step`, without Lightning."""
        if self.channels_last:
            batch.x = batch.x.contiguous(memory_format=torch.channels_last)
        (optimizer,) = optimizers
        for _, terms in self.method.turns(batch):
            loss = torch.stack([self.method._weight[name] * value for name, value in terms.items()]).sum()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            self.method._tally.add(terms)


def loop_cost(setting: Setting, route: Route, rounds: int, steps: int, folder: Path) -> LoopCost:
    """Measured on the smallest student, whose steps are the shortest."""
    engine = Engine(setting, [setting.smallest_method], "32-true", route, None, folder, setting.smallest)
    rounds = max(1, min(rounds, (setting.batches - WARM) // steps))
    (method,) = engine.methods.values()
    cost = LoopCost(method, route.fast, setting.device, steps)
    engine.play(cost, WARM + rounds * steps)
    return cost
