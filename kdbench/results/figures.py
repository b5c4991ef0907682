"""What ``kdbench bench`` measured: one file, ``benchmarks.json``, with the latest figures of each device and pair."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from kdbench.errors import UserError
from kdbench.files import write_atomic, writing_to
from kdbench.sparse import Sparse

FILE: Final = "benchmarks.json"

Amount = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Spread(_Strict):
    """Median, smallest and largest value over the rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Rounded to four significant digits: more than a clock on a shared machine can tell."""
        values = list(values)
        numbers = statistics.median(values), min(values), max(values)
        return cls(**dict(zip(("median", "low", "high"), (float(f"{n:.4g}") for n in numbers), strict=True)))


class Machine(_Strict, Sparse):
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
    peak_kernels: dict[str, str] = {}


class Share(_Strict):
    """An operator's share of a step's time, in percent."""

    operator: str
    percent: Amount


class Measured(_Strict):
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
    profile: list[Share] = []


class Loop(_Strict):
    """What the training loop adds to a step of `student`: its time there against the same step in a plain loop."""

    student: str
    loop_ms: Spread
    plain_ms: Spread
    percent: Spread


class Memory(_Strict):
    """Peak memory of fresh processes (on a GPU: of the allocator), in MB: one method alone, and all in lockstep."""

    single: str
    single_mb: Amount
    cohort_mb: Amount
    ratio: Amount


class Figures(_Strict):
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


_LIST = TypeAdapter(list[Figures])


def load(path: Path) -> list[Figures]:
    """The figures in a file, by device and pair; none where there is no file.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        return sorted(_LIST.validate_json(path.read_bytes()), key=lambda figures: figures.key)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): name a file that you may read.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise UserError(
            f"{path} holds no figures of kdbench bench ({where}: {first['msg']}): restore or remove it."
        ) from None


def save(path: Path, figures: Figures) -> list[Figures]:
    """Enter `figures` in a file, in place of older ones of the same device and pair; returns all that it holds now.

    Raises:
        UserError: the file holds something else, or cannot be written.
    """
    kept = [other for other in load(path) if other.key != figures.key]
    together = sorted([*kept, figures], key=lambda each: each.key)
    with writing_to(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, dump(together), overwrite=True)
    return together


def dump(figures: Sequence[Figures]) -> str:
    """As the file holds them."""
    return json.dumps([each.model_dump(mode="json") for each in figures], indent=1, ensure_ascii=False) + "\n"
