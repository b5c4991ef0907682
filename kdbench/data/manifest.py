"""Folders of images that stay where they are: what is known of each file, and not a pixel of it.

A data set prepared so is the folder ``ROOT/NAME`` with

* ``manifest.csv``: a line per image with its split, path (from the folder of the images), bytes, digest (16-byte
  blake2b of the file, in hex), label, and the height and width that it has once it is upright;
* ``meta.json``: as of `kdbench.data.arrays`, and under ``images`` the folder of the images.

The content hash is made of what the files hold and of their labels. Where the files lie, and what they are called, has
no part in it, nor in the canonical order of the samples.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b, sha256
from itertools import accumulate
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kdbench.data.arrays import MANIFEST, Arrays, classes_hash, folder_of, load, read_classes, read_meta
from kdbench.data.kinds import KINDS, Kind
from kdbench.errors import Unreadable, UserError

FIELDS = ("split", "path", "bytes", "digest", "label", "height", "width")


@dataclass(frozen=True)
class Seen:
    """What is known of an image file: its bytes, the digest of these, and the height and width of the image."""

    size: int
    digest: bytes
    height: int
    width: int


def digest_of(content: bytes) -> bytes:
    """What a file is known by: 16 bytes of blake2b."""
    return blake2b(content, digest_size=16).digest()


@dataclass(frozen=True, eq=False)
class ImageFiles:
    """Image files, as compact as a million of them must be: workers are given a copy.

    Attributes:
        root: the folder in which all lie.
        folder: of the data set that was prepared, for messages.
        text: their paths from `root`, in UTF-8, one behind the other.
        start, stop: where each path lies in `text`, int64, (N,).
        size: bytes of each file, int64, (N,).
        digest: of each file, uint8, (N, 16).
        shapes: height and width of each image, int64, (N, 2).
        side: of the square that is shown of each image; 0 before that is known.
    """

    root: Path
    folder: Path
    text: bytes
    start: NDArray[np.int64]
    stop: NDArray[np.int64]
    size: NDArray[np.int64]
    digest: NDArray[np.uint8]
    shapes: NDArray[np.int64]
    side: int = 0

    @classmethod
    def of(cls, root: Path, folder: Path, paths: Sequence[str], found: Sequence[Seen]) -> ImageFiles:
        """ImageFiles by their paths from `root`, and what is known of each."""
        words = [path.encode("utf-8", "surrogateescape") for path in paths]
        stop = np.array(list(accumulate(map(len, words))), dtype=np.int64)
        return cls(
            root,
            folder,
            b"".join(words),
            stop - np.array([len(word) for word in words], dtype=np.int64),
            stop,
            np.array([each.size for each in found], dtype=np.int64),
            np.frombuffer(b"".join(each.digest for each in found), np.uint8).reshape(len(found), 16),
            np.array([(each.height, each.width) for each in found], dtype=np.int64).reshape(-1, 2),
        )

    def __len__(self) -> int:
        return len(self.size)

    def __getitem__(self, index: ArrayLike | slice) -> ImageFiles:
        """Some of them."""
        index = index if isinstance(index, slice) else np.asarray(index)
        parts = {name: getattr(self, name)[index] for name in ("start", "stop", "size", "digest", "shapes")}
        return replace(self, **parts)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of the images as they are shown, (N, H, W, C)."""
        return len(self), self.side, self.side, 3

    @property
    def paths(self) -> list[str]:
        """From `root`."""
        return [self._name(i) for i in range(len(self))]

    def path(self, i: int) -> Path:
        return self.root / self._name(i)

    def _name(self, i: int) -> str:
        return self.text[self.start[i] : self.stop[i]].decode("utf-8", "surrogateescape")

    def content(self, i: int, *, hashed: bool) -> bytes:
        """What is in a file.

        Args:
            hashed: compare its digest, not only its size, with what was prepared.

        Raises:
            UserError: it is not there any more, was changed, or cannot be read.
        """
        path = self.path(i)
        try:
            content = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise UserError(f"{path} is not there any more: put it back, or {anew(self.folder)}.") from error
        except OSError as error:
            raise Unreadable(path, error) from error
        if len(content) != self.size[i] or (hashed and digest_of(content) != self.digest[i].tobytes()):
            raise UserError(f"{path} was changed since it was prepared: put the old file back, or {anew(self.folder)}.")
        return content

    def sample_digests(self, labels: NDArray[np.int64]) -> list[bytes]:
        """For each sample, the 16-byte blake2b of its file's digest and its label (8 bytes, little-endian)."""
        tags = labels.astype("<i8")
        return [digest_of(digest.tobytes() + tag.tobytes()) for digest, tag in zip(self.digest, tags, strict=True)]


@dataclass(frozen=True, eq=False)
class Manifest:
    """A data set of image files; to its readers like `Arrays`, but for the images.

    Attributes:
        files, labels: by split, the files and their labels, int64, (N,).
        classes: the name of each class index, composed (NFC).
        meta: the content of ``meta.json``.
        folder: where the manifest lies.
    """

    name: str
    files: Mapping[str, ImageFiles]
    labels: Mapping[str, NDArray[np.int64]]
    classes: tuple[str, ...]
    meta: Mapping[str, Any]
    folder: Path
    task: str = "classification"
    frames: int = 1
    ignore: int | None = None

    @property
    def outputs(self) -> int:
        return len(self.classes)

    @property
    def splits(self) -> tuple[str, ...]:
        """``train``, ``test`` and, if there is one, ``val``."""
        return tuple(self.files)

    def split(self, name: str) -> tuple[ImageFiles, NDArray[np.int64]]:
        """ImageFiles and labels of one of the `splits`."""
        return self.files[name], self.labels[name]

    @property
    def kind(self) -> Kind:
        return KINDS[self.task]

    @cached_property
    def digests(self) -> dict[str, list[bytes]]:
        """The digest of every sample of each split, in the order of the files."""
        return {name: files.sample_digests(self.labels[name]) for name, files in self.files.items()}

    @cached_property
    def content_hash(self) -> str:
        """64 hex digits that do not depend on the order of the samples, nor on where they lie.

        The sha256 of a line ``streamed SPLIT N DIGEST`` per split, where DIGEST is the sha256 of its sorted `digests`.
        """
        total = sha256()
        for name, digests in self.digests.items():
            total.update(f"streamed {name} {len(digests)} {sha256(b''.join(sorted(digests))).hexdigest()}\n".encode())
        return total.hexdigest()

    def verify(self) -> None:
        """Read and hash every file.

        Raises:
            UserError: one is not there any more, was changed, or cannot be read.
        """
        for files in self.files.values():
            for i in range(len(files)):
                files.content(i, hashed=True)

    def write(self, file: TextIO) -> None:
        """The lines of ``manifest.csv``."""
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(FIELDS)
        for split, files in self.files.items():
            for i, path in enumerate(files.paths):
                digest, label = files.digest[i].tobytes().hex(), self.labels[split][i]
                rows.writerow((split, path, files.size[i], digest, label, *files.shapes[i]))


def find(name: str, root: str | Path | None = None, sha256: str | None = None) -> Arrays | Manifest:
    """The prepared data set `name`: as of `load`, or the manifest of one whose images are streamed.

    No image is opened: workers compare each file's digest when they first read it.

    Raises:
        UserError: see `load`.
    """
    if not is_streamed(name, root):
        return load(name, root, sha256)
    manifest = read(folder_of(name, root))
    if sha256 is not None and manifest.content_hash != sha256:
        raise UserError(
            f"{manifest.folder} has the content hash {manifest.content_hash}, not the known {sha256}: "
            f"{anew(manifest.folder)}, or set dataset.sha256=null to accept these data."
        )
    known = manifest.meta.get("prepared")
    hashes = {"sha256": manifest.content_hash, "classes_sha256": classes_hash(manifest.classes)}
    if not isinstance(known, Mapping) or any(known.get(key) != value for key, value in hashes.items()):
        raise UserError(f"what lies in {manifest.folder} was changed since it was prepared: {anew(manifest.folder)}.")
    return manifest


def anew(folder: Path) -> str:
    """How to prepare it once more, which copies nothing, as the end of a sentence."""
    own = folder.name == "imagenet"  # which has a command of its own
    what = "imagenet --source DIR" if own else f"folder --stream --source DIR --name {folder.name}"
    return f"delete {folder} and run `kdbench data prepare {what}`"


def is_streamed(name: str, root: str | Path | None = None) -> bool:
    """Whether the images of a prepared data set stay files."""
    return (folder_of(name, root) / MANIFEST).is_file()


def read(folder: Path) -> Manifest:
    """The manifest in a folder.

    Raises:
        UserError: it is damaged, or may not be read.
    """
    meta = read_meta(folder / "meta.json")
    classes = read_classes(folder / "meta.json", meta, KINDS["classification"])
    path = folder / MANIFEST
    paths: dict[str, list[str]] = {}
    found: dict[str, list[Seen]] = {}
    labels: dict[str, list[int]] = {}
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            for split, name, size, digest, label, height, width in _rows(file):
                paths.setdefault(split, []).append(name)
                found.setdefault(split, []).append(Seen(int(size), bytes.fromhex(digest), int(height), int(width)))
                labels.setdefault(split, []).append(int(label))
        source = Path(meta["images"])
        files = {split: ImageFiles.of(source, folder, paths[split], found[split]) for split in paths}
    except OSError as error:
        raise Unreadable(path, error) from error
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise _corrupt(path, f"cannot be understood ({error})") from error
    numbers = {split: np.array(values, dtype=np.int64) for split, values in labels.items()}
    if not {"train", "test"} <= files.keys() <= {"train", "test", "val"}:
        raise _corrupt(path, f"has the splits {', '.join(files) or 'none'}, not train, test and perhaps val")
    if any(values.min() < 0 or values.max() >= len(classes) for values in numbers.values()):
        raise _corrupt(path, f"has labels outside of its {len(classes)} classes")
    return Manifest(folder.name, files, numbers, classes, meta, folder)


def _rows(file: TextIO) -> Iterator[list[str]]:
    rows = csv.reader(file)
    if tuple(next(rows, ())) != FIELDS:
        raise ValueError(f"its first line is not {','.join(FIELDS)}")
    return rows


def _corrupt(path: Path, what: str) -> UserError:
    return UserError(f"{path} {what}: {anew(path.parent)}.")
