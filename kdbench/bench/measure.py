"""Measure everything in turns, and put it into `Figures`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import torch

import kdbench
from kdbench.bench.contender import Engine, LoopCost, frozen_teacher, loop_cost, route_of
from kdbench.bench.peak import Peaks
from kdbench.bench.reference import WARM
from kdbench.bench.setting import Setting
from kdbench.bench.worker import Worker
from kdbench.compute.flops import forward_flops
from kdbench.compute.route import Route, native_bf16
from kdbench.engine.making import commit, device_name
from kdbench.errors import UserError
from kdbench.results.figures import Figures, Loop, Machine, Measured, Memory, Share, Spread
from kdbench.teaching.frozen import CACHED, FrozenTeacher

BACKWARD = 3
"""A training step costs three forward passes: the gradients of weights and of inputs cost one each."""

DTYPES = {"32-true": torch.float32, "bf16-mixed": torch.bfloat16}
LOOP_ROUNDS = 4
"""Turns of the small student per round: its steps are short, and a difference of per cents is looked for."""

Say = Callable[[str], None]


@dataclass
class Way:
    """A way to train: `methods`, one student each, in `precision`; seconds per step of each round in `times`."""

    name: str
    methods: Sequence[str]
    precision: str = "32-true"
    cached: bool = False
    warmup: float = 0.0
    times: list[float] = field(default_factory=list)


def measure(setting: Setting, rounds: int, steps: int, quick: bool, say: Say) -> Figures:
    """Everything that ``kdbench bench`` shows. `say` is told what is being done.

    Raises:
        UserError: there are fewer batches than `steps`, or a process failed.
    """
    if steps + WARM > setting.batches:
        raise UserError(f"an epoch has {setting.batches} steps: choose --steps up to {setting.batches - WARM}.")
    device = setting.device
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    dtypes = (torch.float32, *([torch.bfloat16] if native_bf16(device) else []))
    peaks = Peaks.of(device, dtypes)
    ways = engine_ways(setting)
    references = [Way(name, [name]) for name in dict.fromkeys((setting.single, *setting.cohort))]
    with tempfile.TemporaryDirectory(prefix="kdbench-bench-") as temporary:
        folder = Path(temporary)
        engines = engines_of(setting, ways, steps, not quick, folder, say)
        take_turns(setting, ways, engines, references, peaks, rounds, steps, say)
        loop = None
        if not setting.images:  # where images are read, that is what a short step waits for
            say(f"the loop's own cost, on {setting.smallest}")
            route = route_of(setting, cached=False, compiled=not quick)
            loop = _loop(setting.smallest, loop_cost(setting, route, rounds * LOOP_ROUNDS, steps, folder / "loop"))
        measured = []
        for way in ways:
            say(f"{way.name}: profile")
            engine = engines[way.name]
            seconds = {each.name: each.times for each in references}
            measured.append(
                _measured(
                    way,
                    engine.route.describe(len(way.methods), teacher=engine.teacher is not None),
                    ratios([seconds[name] for name in way.methods], way.times),
                    step_flops(setting, way, engine.route),
                    peaks,
                    [] if quick else engine.profile(),
                )
            )
    return Figures(
        created=datetime.now(timezone.utc).replace(microsecond=0),
        pair=setting.pair,
        data=setting.data_note,
        batch_size=setting.protocol().batch_size,
        rounds=rounds,
        steps=steps,
        quick=quick,
        machine=machine(device, peaks, load),
        references=[_measured(way, "reference", None, step_flops(setting, way), peaks, []) for way in references],
        engine=measured,
        loop=loop,
        memory=None if quick else memory(setting, steps, say),
    )


def _loop(student: str, cost: LoopCost) -> Loop:
    return Loop(
        student=student,
        loop_ms=Spread.of(1e3 * t for t in cost.loop),
        plain_ms=Spread.of(1e3 * t for t in cost.plain),
        percent=Spread.of(100 * (a - b) / a for a, b in zip(cost.loop, cost.plain, strict=True)),
    )


def engine_ways(setting: Setting) -> list[Way]:
    """How the engine is measured: alone and in lockstep, teacher live and views cached, students in fp32 and bf16.

    Views of streamed images do not come round again, and are not cached.
    """
    alone, several = f"{setting.single} alone", f"cohort of {len(setting.cohort)}"
    found = [
        Way(f"{alone}, live teacher", [setting.single]),
        Way(f"{alone}, view cache warm", [setting.single], cached=True),
        Way(f"{alone}, view cache warm, bf16", [setting.single], "bf16-mixed", cached=True),
        Way(f"{several}, live teacher", setting.cohort),
        Way(f"{several}, live teacher, bf16", setting.cohort, "bf16-mixed"),
    ]
    if {tap for name in setting.cohort for tap in setting.entries[name].cls.taps.teacher} <= CACHED:
        found.insert(4, Way(f"{several}, view cache warm", setting.cohort, cached=True))
    found = [way for way in found if not (way.cached and setting.images)]
    # emulated, bf16 is slower than float32
    return [way for way in found if way.precision == "32-true" or native_bf16(setting.device)]


def engines_of(
    setting: Setting, ways: Sequence[Way], steps: int, compiled: bool, folder: Path, say: Say
) -> dict[str, Engine]:
    """An engine for each way, by name, after a first turn: all is compiled, and the view cache is warm."""
    teachers: dict[Route, FrozenTeacher] = {}
    engines = {}
    for way in ways:
        say(f"{way.name}: set-up")
        began = time.perf_counter()
        route = route_of(setting, cached=way.cached, compiled=compiled)
        if route not in teachers:
            teachers[route] = frozen_teacher(setting, route, folder / "views")
        teacher = teachers[route] if any(map(setting.taught, way.methods)) else None
        engines[way.name] = Engine(setting, way.methods, way.precision, route, teacher, folder / way.name)
        engines[way.name].turn(steps)
        way.warmup = time.perf_counter() - began
    return engines


def take_turns(
    setting: Setting,
    ways: Sequence[Way],
    engines: Mapping[str, Engine],
    references: Sequence[Way],
    peaks: Peaks,
    rounds: int,
    steps: int,
    say: Say,
) -> None:
    """Fill in `times` and `peaks`: in each round all have one turn, so that what slows the machine down meets all."""
    with Worker(setting) as worker:
        for way in references:
            say(f"reference {way.name}: set-up")
            began = time.perf_counter()
            worker.ask(what="reference", method=way.name, steps=1)
            way.warmup = time.perf_counter() - began
        for k in range(rounds):
            say(f"round {k + 1} of {rounds}: the machine's peak")
            peaks.turn()
            for way in references:
                say(f"round {k + 1} of {rounds}: reference {way.name}")
                way.times.append(worker.ask(what="reference", method=way.name, steps=steps))
            for way in ways:
                say(f"round {k + 1} of {rounds}: {way.name}")
                way.times.append(engines[way.name].turn(steps))


def ratios(references: Sequence[Sequence[float]], contender: Sequence[float]) -> list[float]:
    """For each round, the references' times in sum over the contender's: (methods, rounds) and (rounds,)."""
    return [sum(times) / own for *times, own in zip(*references, contender, strict=True)]


def step_flops(setting: Setting, way: Way, route: Route | None = None) -> dict[torch.dtype, int]:
    """FLOPs of one step by the dtype in which they are computed, on a route or (None) in the reference loop.

    Those of the networks; adapters and losses are left out.
    """
    images, spec = setting.protocol().batch_size, setting.dataset.spec
    student, teacher = (forward_flops(setting.network(name), spec.shape) for name in (setting.student, setting.teacher))
    flops = {DTYPES[way.precision]: BACKWARD * images * len(way.methods) * student}
    if any(map(setting.taught, way.methods)) and not way.cached:
        dtype = route.teacher_dtype if route else torch.float32
        flops[dtype] = flops.get(dtype, 0) + images * teacher
    return flops


def _measured(
    way: Way,
    path: str,
    against: Sequence[float] | None,
    flops: Mapping[torch.dtype, int],
    peaks: Peaks,
    profile: list[Share],
) -> Measured:
    step = Spread.of(1e3 * t for t in way.times)
    ideal = sum(count / peaks[dtype] for dtype, count in flops.items())
    return Measured(
        name=way.name,
        methods=list(way.methods),
        precision=way.precision,
        path=path,
        step_ms=step,
        ratio=None if against is None else Spread.of(against),
        warmup_seconds=round(way.warmup, 1),
        gflop=round(sum(flops.values()) / 1e9, 2),
        peak_percent=round(100 * ideal / (step.median / 1e3), 1),
        profile=profile,
    )


def memory(setting: Setting, steps: int, say: Say) -> Memory:
    """Peak memory of the single cell and of the cohort, each in a process of its own, on the fp32 protocol."""
    peaks = []
    for methods in ((setting.single,), setting.cohort):
        say(f"peak memory of {len(methods)} in lockstep")
        with Worker(setting) as worker:
            peaks.append(worker.ask(what="peak", methods=list(methods), steps=steps))
    single, cohort = peaks
    return Memory(
        single=setting.single, single_mb=round(single, 1), cohort_mb=round(cohort, 1), ratio=round(cohort / single, 2)
    )


def machine(device: torch.device, peaks: Peaks, load: float | None) -> Machine:
    version = importlib.metadata.version
    return Machine(
        device=device_name(device),
        processors=os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        load=load,
        platform=platform.platform(),
        python=platform.python_version(),
        torch=torch.__version__,
        torchvision=version("torchvision"),
        lightning=version("pytorch-lightning"),
        kdbench=kdbench.__version__,
        commit=commit(),
        peak_gflops={_name(dtype): round(peak / 1e9, 1) for dtype, (peak, _) in peaks.best.items()},
        peak_kernels={_name(dtype): kernel for dtype, (_, kernel) in peaks.best.items()},
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
