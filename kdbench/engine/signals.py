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
    """Meanwhile, what the program's handler of SIGUSR1 or SIGUSR2 raises is an interruption.

    A scheduler's handler (submitit's at the end of a job's time) raises wherever the program stands, as in a training
    step, where an exception of any other kind would be taken for the failure of one cell.

    Yields what was raised.
    """
    raised: list[BaseException] = []
    previous: dict[signal.Signals, Callable[[int, FrameType | None], Any]] = {}
    if threading.current_thread() is threading.main_thread():  # only there may handlers be set
        for which in [signal.Signals[name] for name in NAMES if name in signal.Signals.__members__]:
            handler = signal.getsignal(which)
            if callable(handler):
                previous[which] = handler
                signal.signal(which, _as_interruption(handler, raised))
    try:
        yield raised
    finally:
        for which, handler in previous.items():
            signal.signal(which, handler)


def _as_interruption(
    handler: Callable[[int, FrameType | None], Any], raised: list[BaseException]
) -> Callable[[int, FrameType | None], None]:
    def handle(number: int, frame: FrameType | None) -> None:
        try:
            handler(number, frame)
        except BaseException as error:
            raised.append(error)
            raise Interrupted(str(error)) from error

    return handle
