"""The processes that read image files: how many, whether shared memory holds what they read, and what if one dies."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from kdbench.errors import UserError

Workers = int | Literal["auto"]
"""How many processes read image files; 0: the one that trains; ``auto``: see `number_of`."""
MOST = 8
"""Processes where none are asked for, at most: one reads some 800 large photographs a second, fewer in a container."""
AHEAD = 2
"""Batches that each process reads ahead, as torch's DataLoader has it."""
SHARED = Path("/dev/shm")
"""Where Linux keeps what processes share."""


def usable_cores() -> int:
    """Those that this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # neither macOS nor Windows has it
        return os.cpu_count() or 1


def number_of(workers: Workers, share: int = 1) -> int:
    """How many are meant: by themselves one for each usable core, at most `MOST`.

    Args:
        share: among so many that train the cores are shared.
    """
    return max(1, min(usable_cores() // share, MOST)) if workers == "auto" else workers


def check_shared_memory(workers: int, batch: int) -> None:
    """Fail now rather than by a bus error.

    Args:
        batch: bytes of a batch.

    Raises:
        UserError: there is less than what is read ahead will take.
    """
    need = workers * AHEAD * batch
    with suppress(OSError):  # a system that keeps it elsewhere
        free = shutil.disk_usage(SHARED).free
        if need > free:
            raise UserError(
                f"{workers} processes that read images ahead need {need / 1e6:.0f} MB of shared memory, and {SHARED} "
                f"has {free / 1e6:.0f} MB free: enlarge it (docker run --shm-size=8g), or lower engine.workers; 0 does "
                "without."
            )


@contextmanager
def told_of_deaths() -> Iterator[None]:
    """Tell in a sentence that a process is gone: torch's DataLoader says so, or cannot fetch what it has announced.

    Raises:
        UserError: one is.
    """
    try:
        yield
    except (RuntimeError, ConnectionError, FileNotFoundError, EOFError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "a process that reads images died, perhaps for want of memory: run it again, it goes on from its last "
            "checkpoint; with engine.workers=1 it takes less, with 0 none."
        ) from error


@contextmanager
def deaths_left_to_the_reader() -> Iterator[None]:
    """Around the start of processes: torch's handler would raise their death in whatever cell happens to be at work;
    without it, who waits for their batch finds out."""
    child = getattr(signal, "SIGCHLD", None)  # not on Windows
    before = signal.getsignal(child) if child else None
    try:
        yield
    finally:
        with suppress(ValueError):  # not the main thread, in which torch sets none either
            if child and before is not None:
                signal.signal(child, before)
