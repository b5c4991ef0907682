"""Time as the work itself takes it, also where a program runs ahead of its device."""

from __future__ import annotations

import time
from typing import Any

import torch

Mark = Any
"""A moment on a `Clock`."""


class Clock:
    """Marks, and the seconds of work between them.

    A GPU is given its work and does it later, so the time in which a step was launched says little. There a mark is an
    event in the queue of work, which passes when all that was launched before it is done: to set one costs no waiting,
    to ask for the seconds does. Hence they are asked for once an epoch.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> Mark:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def seconds(self, began: Mark, ended: Mark) -> float:
        """Between two marks; waits until the second has passed."""
        if isinstance(began, float):
            return float(ended - began)
        ended.synchronize()
        return float(began.elapsed_time(ended)) / 1000  # milliseconds
