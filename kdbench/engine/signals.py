"""Signals by which a scheduler ends a job."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from kdbench.errors import Interrupted

NAMES = ("SIGUSR1", "SIGUSR2")
"""Windows has neither."""


@contextmanager
def interrupting() -> Iterator[list[BaseException]]:
    """Meanwhile, SIGUSR1 and SIGUSR2 interrupt: what the program's handler of one raises, or the signal itself.

    A scheduler's handler (submitit's at the end of a job's time) raises wherever the program stands, as in a training
    step, where an exception of any other kind would be taken for the failure of one cell. Where there is no handler,
    the signal would end the process without a word; or Lightning, under Slurm, would put one there that queues the job
    again with a checkpoint of its own, which knows nothing of cells.

    Yields what the handler raised.
    """
    raised: list[BaseException] = []
    previous: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():  # only there may handlers be set
        for which in [signal.Signals[name] for name in NAMES if name in signal.Signals.__members__]:
            handler = signal.getsignal(which)
            if callable(handler) or handler == signal.SIG_DFL:
                previous[which] = handler
                signal.signal(which, _as_interruption(handler, raised))
    try:
        yield raised
    finally:
        for which, handler in previous.items():
            signal.signal(which, handler)


def _as_interruption(handler: Any, raised: list[BaseException]) -> Callable[[int, FrameType | None], None]:
    def handle(number: int, frame: FrameType | None) -> None:
        if not callable(handler):
            raise Interrupted
        try:
            handler(number, frame)
        except BaseException as error:
            raised.append(error)
            raise Interrupted(str(error)) from error

    return handle
