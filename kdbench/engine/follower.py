"""What another process of a crew does: read its order, build the cell, and train it with the one that leads.

An order is a line of JSON on standard input::

    {"rank": 1, "size": 2, "port": 40001, "parent": 17, "threads": 1,
     "bench": {"store": PATH, "work": PATH, ...}, "cell": {"name": NAME, "config": {...}, "pins": [...]}}
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch

from kdbench.compute.route import EngineConfig
from kdbench.construct import method_class
from kdbench.engine.cell import Cell
from kdbench.engine.crew import Meeting
from kdbench.engine.run import Bench
from kdbench.errors import UserError
from kdbench.results.store import Store
from kdbench.targets import first_line

SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")
"""What a scheduler may send to all processes of a job is for the one that leads, who ends the others."""


def follow(order: Mapping[str, Any]) -> int:
    """Do what is asked; returns the exit code."""
    for name in SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(order["parent"],), daemon=True).start()
    torch.set_num_threads(order["threads"])
    meeting = Meeting(order["rank"], order["size"], order["port"])
    try:
        bench, cell = _bench(order), order["cell"]
        cls = method_class(cell["name"], cell["config"]["method"])
        bench.follow(Cell(cell["name"], cls, cell["config"], tuple(cell["pins"])), meeting)
    except Exception as error:
        traceback.print_exc()
        meeting.fail(str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {first_line(error)}")
        return 1
    return 0


def _bench(order: Mapping[str, Any]) -> Bench:
    """As of the one that leads, on another device."""
    told = order["bench"]
    return Bench(
        Store(Path(told["store"])),
        Path(told["work"]),
        trainer=told["trainer"],
        data_root=told["data_root"],
        engine=EngineConfig(**told["engine"]),
        cache=Path(told["cache"]),
        images=told["images"],
        rank=order["rank"],
    )


def _end_with(parent: int) -> None:
    """End this process, and those that read images for it, as soon as the one that leads is gone."""
    while os.getppid() == parent and psutil.pid_exists(parent):
        time.sleep(0.5)
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(follow(json.loads(sys.stdin.readline())))
