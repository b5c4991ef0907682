"""SIGTERM as an interruption: at once, wherever the program stands, and told from Ctrl-C by the exit code."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from kdbench.errors import Interrupted


@contextmanager
def terminable() -> Iterator[list[int]]:
    """Meanwhile, the first SIGTERM raises `Interrupted`; a second one ends the process as ever.

    Lightning calls a handler that it finds from its own, which alone would wait for the end of a batch or an epoch.

    Yields the numbers of the signals that came.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)
        raise Interrupted

    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield received
        return
    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield received
    finally:
        signal.signal(signal.SIGTERM, previous)
