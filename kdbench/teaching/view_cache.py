"""What a frozen teacher says of each view of each training image, kept on disk: exact, or not there at all."""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import shutil
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock
from numpy.typing import NDArray
from torch import Tensor

from kdbench.draws import random_bits
from kdbench.errors import UserError
from kdbench.files import write_atomic, writing_to
from kdbench.paths import CHOOSE_CACHE

FORMAT = 1
META, VALUES, SUMS = "meta.json", "values.bin", "sums.bin"
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_BLOCK = 4096
"""Bytes that a file system takes at least, for ever so little in a sparse file."""

# The checksum of a row is the upper half of sum_j c_j w_j + g (row + 1) mod 2^64 (multilinear hashing, as of Lemire and
# Kaser, 2014), for 32-bit words w_j and odd 64-bit constants: cheap, and the odds that damage passes are 2^-32.
# A flipped bit b of w_j moves the sum by 2^b c_j. The upper half of the sum stays only if that of the step is all zeros
# or all ones: bits 32-b .. 63-b of c_j. All these windows (b of 0 to 31) hold bit 32, which is set below, and bit 31 or
# 33, which are not: no flipped bit ever passes. Multiples k of g, the golden ratio, keep 2^64 / (sqrt(5) k) away from
# zero: nor does a row at the place of another, its checksum included, in a cache of less than 2^30 rows.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_SET, _CLEAR = np.uint64(1 << 32 | 1), np.uint64(1 << 31 | 1 << 33)


@dataclass(frozen=True)
class _Layout:
    """Where the rows lie, and what in them; `widths` in the order of the names."""

    samples: int
    pad: int
    flip: bool
    widths: tuple[tuple[str, int], ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, samples: int, pad: int, flip: bool, widths: Mapping[str, int], dtype: torch.dtype) -> _Layout:
        if dtype not in DTYPES:
            raise ValueError(f"a view cache cannot hold {dtype}")
        return cls(samples, pad, flip, tuple(sorted(widths.items())), dtype)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """How many samples, dy, dx and flips there are; the last varies fastest from row to row."""
        return self.samples, 2 * self.pad + 1, 2 * self.pad + 1, 1 + self.flip

    @property
    def rows(self) -> int:
        samples, height, width, flips = self.shape
        return samples * height * width * flips

    @property
    def words(self) -> int:
        """32-bit words of a row; the last one may be half used."""
        return -(-sum(width for _, width in self.widths) * self.dtype.itemsize // 4)

    def sizes(self) -> dict[str, int]:
        """Bytes of each file."""
        return {VALUES: self.rows * self.words * 4, SUMS: self.rows * 4}

    def described(self) -> dict[str, Any]:
        dtype = str(self.dtype).removeprefix("torch.")
        return {"samples": self.samples, "pad": self.pad, "flip": self.flip, "widths": self.widths, "dtype": dtype}


class ViewCache:
    """Values of a row for each (sample, dy, dx, flip), as raw bits in sparse files.

    A row is found again bit for bit, or it is a miss: each has a checksum, written after the values, over their words
    and the row's number. So no crash, torn write or damaged disk gives a wrong value, and what is damaged is written
    again when it is next computed. Any number of processes may use a cache at the same time: whoever writes a row
    writes the same.

    Files are written by plain calls rather than through a mapping, as a full disk is then an error and not the end of
    the process; values are read so too, as pages of a mapping would count as the process's memory. A cache that cannot
    be written is only read.

    Attributes:
        folder: where it lies.
        rebuilt: why what lay there was thrown away, as a clause, or None.
        only_read: why nothing more is stored, as a clause, or None.
    """

    def __init__(self, folder: Path, layout: _Layout, rebuilt: str | None, only_read: str | None = None) -> None:
        self.folder, self.rebuilt, self.only_read, self._layout = folder, rebuilt, only_read, layout
        self._fds = {}
        for name in (VALUES, SUMS):
            flags = (os.O_RDONLY if only_read else os.O_RDWR) | getattr(os, "O_BINARY", 0)
            self._fds[name] = os.open(folder / name, flags)
            weakref.finalize(self, os.close, self._fds[name])
        mapped = mmap.mmap(self._fds[SUMS], layout.sizes()[SUMS], access=mmap.ACCESS_READ)
        self._sums: NDArray[np.uint32] = np.frombuffer(mapped, np.uint32)
        columns = random_bits(0, 0, 0, torch.arange(layout.words)).numpy().view(np.uint64)
        self._factors = (columns << np.uint64(1) | _SET) & ~_CLEAR

    @classmethod
    def open(
        cls,
        root: Path,
        key: Mapping[str, Any],
        *,
        samples: int,
        pad: int,
        flip: bool,
        widths: Mapping[str, int],
        dtype: torch.dtype,
    ) -> ViewCache:
        """The cache of `key` (whatever JSON can hold) in a folder of its own under `root`, made if need be.

        Args:
            samples: number of images.
            pad, flip: of the views, see `kdbench.data.views.view_of`.
            widths: numbers of values by name.
            dtype: of the values; one of `DTYPES`.

        Raises:
            UserError: it is not there whole and cannot be made, or cannot be read.
        """
        layout = _Layout.of(samples, pad, flip, widths, dtype)
        identity = _canonical({"key": dict(key), **layout.described()})
        meta = _canonical({"format": FORMAT, **json.loads(identity)})
        folder = root / hashlib.sha256(identity.encode()).hexdigest()[:16]
        with writing_to(root, CHOOSE_CACHE):
            try:
                root.mkdir(parents=True, exist_ok=True)
                with FileLock(root / f"{folder.name}.lock"):
                    new = not os.path.lexists(folder)
                    wrong = None if new else _wrong(folder, meta, layout)
                    if new or wrong:
                        _make(folder, meta, layout)
                    return cls(folder, layout, wrong)
            except (OSError, NotImplementedError) as error:  # the latter of an older filelock, without flock
                with suppress(OSError):
                    if _wrong(folder, meta, layout) is None:
                        return cls(folder, layout, None, getattr(error, "strerror", None) or "without locks")
                if isinstance(error, NotImplementedError):
                    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from error
                raise

    @staticmethod
    def size(samples: int, pad: int, flip: bool, widths: Mapping[str, int], dtype: torch.dtype) -> int:
        """Bytes of a cache in which every row is filled."""
        return sum(_Layout.of(samples, pad, flip, widths, dtype).sizes().values())

    @property
    def nbytes(self) -> int:
        """Bytes when every row is filled; the files are sparse and take less until then."""
        return sum(self._layout.sizes().values())

    def filled(self) -> int:
        """How many rows have been written, by any process."""
        return int(np.count_nonzero(self._sums))

    def check_room(self, rows: int) -> None:
        """Fail now rather than after hours of training if the disk has no room for so many more rows.

        Raises:
            UserError: it has less than they will take.
        """
        taken = sum(_taken(os.fstat(fd)) for fd in self._fds.values())
        scattered = rows * (self._layout.words * 4 + 2 * _BLOCK)  # at worst each lies in blocks of its own
        need, free = min(self.nbytes - taken, scattered), shutil.disk_usage(self.folder).free
        if not self.only_read and need > free:
            raise UserError(
                f"The view cache may take {need / 1e9:.2f} GB more in {self.folder} and {free / 1e9:.2f} GB are free: "
                "free some space there, let KDBENCH_CACHE name a folder on another disk, or set "
                "engine.view_cache=false."
            )

    def lookup(self, index: Tensor, view: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What is known of views.

        Args:
            index: sample numbers, (B,), on any device.
            view: (dy, dx, flip) of each, (B, 3), on any device.

        Returns:
            Which rows are hits, bool (B,), and fresh values (B, width) by name; those of a miss mean nothing. On the
            CPU.

        Raises:
            ValueError: there is no such sample or view.
        """
        rows = self._rows(index, view)
        sums = self._sums[rows]
        block = torch.zeros(len(rows), self._layout.words, dtype=torch.int32)
        words = block.numpy().view(np.uint32)
        written = np.flatnonzero(sums)
        if len(written):
            fd, size = self._fds[VALUES], self._layout.words * 4
            raw = b"".join([_read(fd, size, row * size) for row in rows[written].tolist()])
            words[written] = np.frombuffer(raw, np.uint32).reshape(len(written), -1)
        hits = (sums != 0) & (sums == self._checksums(rows, words))
        cells, values, start = block.view(self._layout.dtype), {}, 0
        for name, width in self._layout.widths:
            values[name] = cells[:, start : start + width].contiguous()
            start += width
        return torch.from_numpy(hits), values

    def store(self, index: Tensor, view: Tensor, values: Mapping[str, Tensor]) -> None:
        """Keep the values of views: (B, width) by name, in the dtype of the cache, on any device; see `lookup`.

        Nothing becomes of them where the cache is only read.

        Raises:
            UserError: the disk is full or cannot be written.
            ValueError: there is no such sample or view, or values have another name, shape or dtype.
        """
        layout, rows = self._layout, self._rows(index, view)
        shapes = {name: (tuple(value.shape), value.dtype) for name, value in values.items()}
        wanted = {name: ((len(rows), width), layout.dtype) for name, width in layout.widths}
        if shapes != wanted:
            raise ValueError(f"the view cache holds {wanted}, not {shapes}")
        if self.only_read:
            return
        block = torch.zeros(len(rows), layout.words, dtype=torch.int32)
        cells, start = block.view(layout.dtype), 0
        for name, width in layout.widths:
            cells[:, start : start + width] = values[name].detach()
            start += width
        order = np.argsort(rows)
        rows, words = rows[order], block.numpy().view(np.uint32)[order]
        sums = self._checksums(rows, words)
        cuts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        with writing_to(self.folder):
            for name, data in ((VALUES, words), (SUMS, sums)):  # in this order: until its checksum a row is a miss
                size, raw = data.nbytes // max(len(rows), 1), memoryview(data.tobytes())
                for start, stop in pairwise(cuts):
                    if stop > start:
                        _write(self._fds[name], raw[start * size : stop * size], int(rows[start]) * size)

    def _rows(self, index: Tensor, view: Tensor) -> NDArray[np.int64]:
        dy, dx, flip = view.cpu().numpy().T
        rows = np.ravel_multi_index((index.cpu().numpy(), dy, dx, flip), self._layout.shape)
        return rows.astype(np.int64, copy=False)

    def _checksums(self, rows: NDArray[np.int64], words: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Of each row, uint32; where it is 0, which stands for an empty row, the row stays a miss (1 in 2^32)."""
        total = words.astype(np.uint64) @ self._factors + (rows + 1).astype(np.uint64) * _GOLDEN
        return (total >> np.uint64(32)).astype(np.uint32)


def _canonical(content: Any) -> str:
    """One text for equal contents, whatever the order of their keys."""
    return json.dumps(content, sort_keys=True, indent=1)


def _wrong(folder: Path, meta: str, layout: _Layout) -> str | None:
    """Why the folder is no cache that can be gone on with, as a clause, or None.

    Raises:
        PermissionError: it may not be read, which says nothing about what it holds.
    """
    name = META
    try:
        if _canonical(json.loads((folder / META).read_text(encoding="utf-8"))) != meta:
            return f"{META} tells of another cache or format"
        for name, size in layout.sizes().items():
            found = (folder / name).stat().st_size
            if not (folder / name).is_file():
                return f"{name} is not a file"
            if found != size:
                return f"{name} has {found} bytes instead of {size}"
    except FileNotFoundError:
        return f"{name} is missing"
    except PermissionError:
        raise
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    except (ValueError, RecursionError):
        return f"{META} cannot be understood"
    return None


def _make(folder: Path, meta: str, layout: _Layout) -> None:
    """An empty cache. Fresh files, never cut ones: another process may still have the old ones in use."""
    if folder.is_dir():
        shutil.rmtree(folder)
    else:
        folder.unlink(missing_ok=True)
    folder.mkdir()
    for name, size in layout.sizes().items():
        with (folder / name).open("xb") as file:
            file.truncate(size)
    write_atomic(folder / META, meta + "\n", overwrite=False)


def _write(fd: int, data: memoryview, offset: int) -> None:
    while data:
        done = _pwrite(fd, data, offset)  # less than all on a disk that has just become full; then an OSError
        data, offset = data[done:], offset + done


def _read(fd: int, size: int, offset: int) -> bytes:
    """So many bytes; zeros, which a checksum will tell, for what cannot be read."""
    try:
        return _pread(fd, size, offset).ljust(size, b"\0")
    except OSError:
        return bytes(size)


def _pwrite(fd: int, data: memoryview, offset: int) -> int:
    if hasattr(os, "pwrite"):
        return os.pwrite(fd, data, offset)
    os.lseek(fd, offset, os.SEEK_SET)  # Windows; no other thread or process has this descriptor
    return os.write(fd, data)


def _pread(fd: int, size: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(fd, size, offset)
    os.lseek(fd, offset, os.SEEK_SET)
    return os.read(fd, size)


def _taken(status: os.stat_result) -> int:
    """Bytes on the disk; Windows does not say, and gives such a file all of its room at once."""
    return status.st_blocks * 512 if hasattr(status, "st_blocks") else status.st_size
