"""What ``kdbench bench`` measured: one file, ``benchmarks.json``, with the latest figures of each device and pair."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pydantic import AwareDatetime, Field

from kdbench.results.latest import Amount, Count, Entry, Latest, Strict, rounded
from kdbench.sparse import Sparse

FILE: Final = "benchmarks.json"


class Spread(Strict):
    """Median, smallest and largest value over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        values = list(values)
        numbers = statistics.median(values), min(values), max(values)
        return cls(**dict(zip(("median", "low", "high"), map(rounded, numbers), strict=True)))


class Machine(Strict, Sparse):
    """Where and with what it was measured.

    Attributes:
        threads: torch's.
        load: the system's load average over the last minute when it began, None where there is none. Another process
            on the same processors makes all figures worthless.
        peak_gflops: the highest that any operation reached in any round, by dtype.
        peak_kernels: which operation that was; empty in older figures, whose peak is that of a matrix product before
            the first round.
    """

    ADDED = frozenset({"peak_kernels"})

    device: str
    processors: Count
    threads: Count
    load: Amount | None
    platform: str
    python: str
    torch: str
    torchvision: str
    lightning: str
    kdbench: str
    commit: str | None
    peak_gflops: dict[str, Amount]
    peak_kernels: dict[str, str] = Field(default_factory=dict)


class Share(Strict):
    """An operator's share of a step's time, in percent."""

    operator: str
    percent: Amount


class Measured(Strict):
    """One way to train.

    Attributes:
        methods: one student each.
        precision: of the students, in Lightning's words.
        path: how it was computed; ``reference`` for the plain loop.
        step_ms: milliseconds for one step of all the methods.
        ratio: the reference loop's time for the same methods over this one's, of each round; None for the reference.
        warmup_seconds: set-up, compilation and first steps; in no other figure.
        gflop: of one step as it is really run: three forward passes per student, and the teacher's if it runs.
        peak_percent: how much of `step_ms` the same FLOPs would take at the machine's peak for their dtype.
        profile: the most expensive operators.
    """

    name: str
    methods: list[str]
    precision: str
    path: str
    step_ms: Spread
    ratio: Spread | None
    warmup_seconds: Amount
    gflop: Amount
    peak_percent: Amount
    profile: list[Share] = Field(default_factory=list)


class Loop(Strict):
    """What the training loop adds to a step of `student`: its time there against the same step in a plain loop."""

    student: str
    loop_ms: Spread
    plain_ms: Spread
    percent: Spread


class Memory(Strict):
    """Peak memory of fresh processes (on a GPU: of the allocator), in MB: one method alone, and all in lockstep."""

    single: str
    single_mb: Amount
    cohort_mb: Amount
    ratio: Amount


class Figures(Entry):
    """One run of ``kdbench bench``.

    Attributes:
        rounds, steps: every way to train had `rounds` turns of `steps` timed steps each.
        quick: a run for a look: nothing compiled, no memory measured.
    """

    created: AwareDatetime
    pair: str
    data: str
    batch_size: Count
    rounds: Count
    steps: Count
    quick: bool
    machine: Machine
    references: list[Measured]
    engine: list[Measured]
    loop: Loop | None
    memory: Memory | None

    @property
    def key(self) -> tuple[str, int, str]:
        """What later figures of the same key replace."""
        return self.machine.device, self.machine.threads, self.pair


KEPT: Final = Latest(Figures, "kdbench bench")
load, dump = KEPT.load, KEPT.dump


def save(path: Path, figures: Figures) -> list[Figures]:
    """Enter `figures` in a file, see `kdbench.results.latest.Latest.save`."""
    return KEPT.save(path, [figures])
