"""Files that are whole or not there: how all that kdbench keeps is written and read, and what becomes of leftovers."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from kdbench.errors import UserError

STALE_AFTER = 3600.0
"""Seconds after which a temporary file must be the leftover of a killed process: a write takes far less."""
PROBE = b"probe\n" * 1000
"""More than fits beside a file's name in its inode, so that a full disk refuses it."""


@contextmanager
def writing_to(folder: Path, otherwise: str = "") -> Iterator[None]:
    """Turn an `OSError` while writing to `folder` into a `UserError` that names the folder and the mend.

    Args:
        otherwise: how to choose another folder, as a clause; it ends the mend.
    """
    try:
        yield
    except OSError as error:
        otherwise = f" ({otherwise})" if otherwise else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            mend = "free some space there, or choose another folder"
        elif error.errno in (errno.ENOTDIR, errno.EEXIST):
            mend = "a part of that path is a file; choose another folder"
        elif error.errno in (errno.ENOLCK, errno.ENOSYS):
            mend = "its file system knows no locks; choose a folder on another"
        else:
            mend = "choose a folder that you may write to"
        raise UserError(f"Cannot write to {folder} ({error.strerror or error}): {mend}{otherwise}.") from error


def write_atomic(path: Path, content: str | bytes, overwrite: bool) -> None:
    """Write `content` (text as UTF-8) so that `path` holds all of it or, whatever happens, is left as it was.

    It is on the disk before it has its name, and has its name on the disk when this returns: what was written survives
    a power cut. Any number of processes may write the same file at the same time.

    Raises:
        FileExistsError: `path` exists and `overwrite` is false.
        OSError: the folder cannot be written; nothing is left behind.
    """
    temporary = write_beside(path, content)
    try:
        if overwrite:
            os.replace(temporary, path)
        else:
            _publish(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_beside(path: Path, content: str | bytes) -> Path:
    """Write `content` into a temporary file that `os.replace` can give the name `path`; it is on the disk.

    Raises:
        OSError: the folder cannot be written; nothing is left behind.
    """
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    return temporary


def load_yaml(text: str) -> Any:
    """What a YAML document holds, by libyaml where there is one: it is ten times as fast as PyYAML's own.

    Raises:
        yaml.YAMLError: it is none.
    """
    return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def sync_folder(folder: Path) -> None:
    """Have the names in `folder` on the disk, where the system can be asked for that."""
    with suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _publish(temporary: Path, path: Path) -> None:
    """Give a finished file its name unless the name is taken; `os.replace` could not tell."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EACCES):
            raise
        # A file system without hard links. Two writers of one cell may both get here; the file is whole either way.
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.replace(temporary, path)


def probe(folder: Path) -> float:
    """Write a little into `folder`, to know that it can be done; the time by its file system's own clock.

    Raises:
        OSError: it cannot be written.
    """
    temporary = write_beside(folder / "probe", PROBE)
    try:
        return temporary.stat().st_mtime
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files in `folder` that are older than `STALE_AFTER` by the file system's own clock.

    Raises:
        OSError: there are some, and the folder cannot be written.
    """
    found = [*folder.glob(".*.tmp"), *folder.glob("*.partial")]  # the latter of earlier versions
    if not found:
        return
    now = probe(folder)
    for path in found:
        with suppress(OSError):  # another process may be faster
            if now - path.stat().st_mtime > STALE_AFTER:
                path.unlink()


def tracked_by_git(paths: Sequence[Path]) -> list[Path]:
    """Those of some files, all of one folder, that git tracks there; none where there is no git."""
    if not paths:
        return []
    command = ["git", "-C", os.fspath(paths[0].parent), "ls-files", "-z", "--", *(path.name for path in paths)]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return []
    names = set(found.stdout.split("\0"))
    return [path for path in paths if path.name in names]


def check_room(folder: Path, need: int, what: str, otherwise: str) -> None:
    """Fail now rather than after hours of training.

    Args:
        need: bytes, at least.
        what: takes them, for the message.
        otherwise: how to choose another folder, as in `writing_to`.

    Raises:
        UserError: the folder cannot be written, or its disk has not so much room.
    """
    with writing_to(folder, otherwise):
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        probe(folder)
        free = shutil.disk_usage(folder).free
    if need > free:
        raise UserError(
            f"{what} will take at least {need / 1e6:.2f} MB in {folder}, and {free / 1e6:.2f} MB are free: free some "
            f"space there, or choose another folder ({otherwise})."
        )
