"""One process at a time: locks on files, which the system frees when their holder dies, and who holds them."""

from __future__ import annotations

import errno
import json
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from kdbench.files import writing_to

PATIENCE = 1.0
"""Seconds of waiting before it is told for whom."""


class BusyError(Exception):
    """Another process is training this cell or teacher."""


@contextmanager
def locked(
    lock: Path, what: str, *, wait: bool, say: Callable[[str], None] = lambda sentence: None, otherwise: str = ""
) -> Iterator[None]:
    """Hold the file `lock`, which no other process (nor another lock of this one) does meanwhile.

    Args:
        what: is done under it, for those who wait.
        wait: for another holder.
        say: told once for whom, if it takes more than a second.
        otherwise: how to choose another folder, as in `kdbench.files.writing_to`.

    Raises:
        BusyError: there is another holder and `wait` is false.
        UserError: the folder cannot be written, or its file system knows no locks.
    """
    holder = lock.with_suffix(".holder")
    with writing_to(lock.parent, otherwise):
        lock.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(lock)
        try:
            _acquire(held, lock, what, wait, say)
        except NotImplementedError as error:  # of an older filelock
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(lock)) from error
    try:
        with suppress(OSError):  # it only serves a message
            holder.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        yield
    finally:
        with suppress(OSError):
            holder.unlink(missing_ok=True)
        held.release()


def _acquire(held: FileLock, lock: Path, what: str, wait: bool, say: Callable[[str], None]) -> None:
    try:
        held.acquire(timeout=PATIENCE if wait else 0)
    except Timeout:
        if not wait:
            raise BusyError from None
        say(f"waiting for {holder_of(lock)}, which trains {what} (lock {lock}).")
        held.acquire()


def holder_of(lock: Path) -> str:
    """Who holds a lock that is held: what its holder wrote, unless that process is known to be gone."""
    try:
        found = json.loads(lock.with_suffix(".holder").read_text())
        pid, host = int(found["pid"]), str(found["host"])
        if host != socket.gethostname() or psutil.pid_exists(pid):
            return f"process {pid} on {host}"
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        pass
    return "another process"


def forget_dead(folder: Path) -> None:
    """Remove what holders of locks in `folder` wrote who have died since.

    Raises:
        OSError: it cannot be written.
    """
    for holder in folder.glob("*.holder"):
        with suppress(Timeout, NotImplementedError), FileLock(holder.with_suffix(".lock"), timeout=0):
            holder.unlink(missing_ok=True)
