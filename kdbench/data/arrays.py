"""Prepared data sets: folders of memory-mappable arrays, checked when read.

A prepared data set is the folder ``ROOT/NAME`` with

* ``train_images.npy``, ``test_images.npy``: uint8, (N, H, W, C),
* ``train_labels.npy``, ``test_labels.npy``: int64, (N,), class indices from 0,
* ``val_images.npy``, ``val_labels.npy``: the same, where the data have a validation split of their own,
* ``meta.json``: an object with ``classes`` (their names, in order) and ``source``, and with ``prepared``, what
  `kdbench.data.prepare` made: its hashes are compared whenever the data are used. Other keys and files are left alone.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from hashlib import blake2b, sha256
from pathlib import Path
from stat import S_ISDIR
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from kdbench.errors import Unreadable, UserError
from kdbench.paths import conf_dir, data_root

EMBEDDED = "digits"
SPLITS = ("train", "test")
FILES = (*(f"{split}_{kind}.npy" for split in SPLITS for kind in ("images", "labels")), "meta.json")
VAL_FILES = ("val_images.npy", "val_labels.npy")
KNOWN_CLASSES = {
    "984f666cbed7c4b79e214dec73ca0a778f02feb3809ffda9afe0448076f82191": (  # cifar100
        "407f97f9f231f1a980f2c9a1126dd31617d34115d3458d0b5b5955a578140369"
    ),
    "42cabb2569bdefd89a604c5468fc7517926548edce03bc3baf5847e4c743a6a4": (  # fashion_mnist
        "2be74b4380e848391118341287815cf7ec84cb164f32c50c4f2ee27ff4bbaf33"
    ),
    "ba5027e871c3a1ac39c0f02daca755726aaadf4fba20fc5987464aaf97e46f53": (  # mnist
        "14a21a638a550aa3e57c4c8d12522cd74276f9c3191a8ea0644c9e31bcd14b37"
    ),
    "4b1a205892468cf1b01190f73cb56e2403ee92d435e00d4a4e3c4951667a6fcf": (  # usps
        "14a21a638a550aa3e57c4c8d12522cd74276f9c3191a8ea0644c9e31bcd14b37"
    ),
}
"""For the content hash of a public data set, in which names have no part, the `classes_hash` of its classes."""


@dataclass(frozen=True, eq=False)
class Arrays:
    """A whole data set as it lies on disk (images memory-mapped) or in memory.

    Attributes:
        train_images, test_images: uint8, (N, H, W, C).
        train_labels, test_labels: int64, (N,).
        val_images, val_labels: the same; None where the data have no validation split of their own.
        classes: the name of each class index, composed (NFC).
        meta: the content of ``meta.json``.
        folder: where it lies; None for the embedded data set.
    """

    name: str
    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int64]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int64]
    classes: tuple[str, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    val_images: NDArray[np.uint8] | None = None
    val_labels: NDArray[np.int64] | None = None

    @property
    def splits(self) -> tuple[str, ...]:
        """``train``, ``test`` and, if there is one, ``val``."""
        return SPLITS if self.val_labels is None else (*SPLITS, "val")

    def split(self, name: str) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Images and labels of one of the `splits`."""
        return getattr(self, f"{name}_images"), getattr(self, f"{name}_labels")

    @cached_property
    def digests(self) -> dict[str, list[bytes]]:
        """The digest of every sample of each split, in the order of the arrays."""
        return {name: sample_digests(*self.split(name)) for name in self.splits}

    @cached_property
    def content_hash(self) -> str:
        """64 hex digits that do not depend on the order of the samples.

        The sha256 of a line ``SPLIT N H W C DIGEST`` per split, where DIGEST is the sha256 of its sorted `digests`.
        """
        total = sha256()
        for name in self.splits:
            shape = " ".join(map(str, self.split(name)[0].shape))
            digest = sha256(b"".join(sorted(self.digests[name]))).hexdigest()
            total.update(f"{name} {shape} {digest}\n".encode())
        return total.hexdigest()

    @property
    def prepared(self) -> Mapping[str, Any]:
        """What ``meta.json`` says of how the data were prepared: nothing, where an older kdbench or a hand did it."""
        prepared = self.meta.get("prepared")
        return prepared if isinstance(prepared, Mapping) else {}


def classes_hash(names: Sequence[str]) -> str:
    """64 hex digits for class names in the order of their labels: the sha256 of their JSON list, in ASCII."""
    return sha256(json.dumps(list(names)).encode()).hexdigest()


def sample_digests(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> list[bytes]:
    """For each sample, the 16-byte blake2b of its pixels (H, W, C order) and its label (8 bytes, little-endian)."""
    pixels = np.ascontiguousarray(images).reshape(-1).data
    tags = labels.astype("<i8").tobytes()
    size = images[0].size
    digests = []
    for i in range(len(images)):
        digest = blake2b(pixels[i * size : (i + 1) * size], digest_size=16)
        digest.update(tags[i * 8 : i * 8 + 8])
        digests.append(digest.digest())
    return digests


def canonical_order(digests: list[bytes]) -> NDArray[np.int64]:
    """The positions of the samples by increasing digest: pseudo-random, yet the same however the files are sorted."""
    return np.array(sorted(range(len(digests)), key=digests.__getitem__), dtype=np.int64)


def holdout(labels: NDArray[np.int64], n: int) -> NDArray[np.bool_]:
    """Mark `n` samples, the last of each class, in proportion to the classes (largest remainder).

    One sample of every class always stays unmarked.

    Raises:
        UserError: fewer than `n` samples can be marked.
    """
    classes, counts = np.unique(labels, return_counts=True)
    free = counts - 1
    if n > free.sum():
        raise UserError(
            f"{n} images cannot be held out of {len(labels)} in {len(classes)} classes: at most {free.sum()} can."
        )
    share = free * n / max(1, free.sum())
    quota = np.floor(share).astype(np.int64)
    most = np.argsort(quota - share, kind="stable")[: n - quota.sum()]
    quota[most] += 1
    marked = np.zeros(len(labels), dtype=np.bool_)
    for label, count in zip(classes, quota, strict=True):
        members = np.flatnonzero(labels == label)
        marked[members[len(members) - count :]] = True
    return marked


def load(name: str, root: str | Path | None = None, sha256: str | None = None) -> Arrays:
    """The prepared data set `name` under `root`, or the embedded ``digits``, hashed and compared with what is known.

    Args:
        root: see `kdbench.paths.data_root`.
        sha256: the content hash that the data must have, if it is known.

    Raises:
        UserError: it is missing, corrupt, may not be read, or its content or its class names are not those that are
            known, or not those that were prepared.
    """
    arrays = read(name, root)
    if sha256 is not None and arrays.content_hash != sha256:
        raise UserError(
            f"{arrays.folder or name} has the content hash {arrays.content_hash}, not the known {sha256}: "
            f"delete the folder and run {prepare_command(name)}, or set dataset.sha256=null to accept these data."
        )
    if arrays.folder is None:
        return arrays
    prepared = arrays.prepared.get("sha256")
    if prepared is not None and arrays.content_hash != prepared:
        raise UserError(
            f"{arrays.folder} has the content hash {arrays.content_hash}, not the {prepared} that was prepared, so its "
            f"arrays were changed since: delete the folder and run {prepare_command(name)} to make it anew, or drop "
            '"prepared" from its meta.json to accept these data.'
        )
    names = KNOWN_CLASSES.get(arrays.content_hash, arrays.prepared.get("classes_sha256"))
    if names is not None and classes_hash(arrays.classes) != names:
        raise _corrupt(arrays.folder / "meta.json", "names other classes, or in another order, than belong to the data")
    return arrays


def read(name: str, root: str | Path | None = None) -> Arrays:
    """As `load`, but nothing is hashed.

    Raises:
        UserError: it is missing, corrupt, or may not be read.
    """
    return digits() if name == EMBEDDED else _read(*_stamp(folder_of(name, root)))


def folder_of(name: str, root: str | Path | None = None) -> Path:
    """Where the prepared data set `name` lies.

    Raises:
        UserError: `name` is not a plain folder name.
    """
    if not is_name(name):
        raise UserError(f"{name!r} is no name of a data set: use letters, digits, '_', '-' and '.'.")
    return data_root(root) / name


def is_name(name: str) -> bool:
    """Whether `name` is a plain folder name: no path, not hidden, no option, nothing to be quoted in a shell."""
    return bool(re.fullmatch(r"\w[\w.-]*", name))


def prepare_command(name: str) -> str:
    """What a user types to prepare `name`: a public data set, or else a folder of images."""
    if name != "folder" and (conf_dir() / "dataset" / f"{name}.yaml").is_file():
        return f"`kdbench data prepare {name}`"
    return f"`kdbench data prepare folder --source DIR --name {name}`"


def _stamp(folder: Path) -> tuple[Path, tuple[tuple[int, int], ...]]:
    """The folder with the size and time of each of its files, so that a second `load` of the same files is free."""
    try:
        if not S_ISDIR(folder.stat().st_mode):
            raise UserError(f"{folder} is no folder: move it away and run {prepare_command(folder.name)}.")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"the data set '{folder.name}' is not in {folder.parent} ($KDBENCH_DATA or dataset.root choose another "
            f"folder): run {prepare_command(folder.name)}."
        ) from error
    except OSError as error:
        raise Unreadable(folder, error) from error
    stamps = []
    for file in (*FILES, *_val_files(folder)):
        with _reading(folder / file):
            stat = (folder / file).stat()
        stamps.append((stat.st_size, stat.st_mtime_ns))
    return folder, tuple(stamps)


def _val_files(folder: Path) -> tuple[str, ...]:
    """The files of a validation split, where there is at least one of them."""
    return VAL_FILES if any(os.path.exists(folder / file) for file in VAL_FILES) else ()


@lru_cache(maxsize=8)
def _read(folder: Path, stamp: tuple[tuple[int, int], ...]) -> Arrays:
    meta = _meta(folder / "meta.json")
    files = [file for file in (*FILES, *_val_files(folder)) if file.endswith(".npy")]
    parts = {file.removesuffix(".npy"): _array(folder / file) for file in files}
    arrays = Arrays(folder.name, **parts, classes=tuple(meta["classes"]), meta=meta, folder=folder)
    check(arrays)
    return arrays


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Tell what is missing, or of the wrong kind, from what cannot be read."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise _corrupt(path, f"cannot be read ({error.strerror})") from error
    except OSError as error:
        raise Unreadable(path, error) from error


def _meta(path: Path) -> dict[str, Any]:
    try:
        with _reading(path):
            meta = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"is not valid JSON ({error})") from error
    classes = meta.get("classes") if isinstance(meta, dict) else None
    if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes) or len(set(classes)) < 2:
        raise _corrupt(path, 'has no list of two or more class names under "classes"')
    meta["classes"] = [normalize("NFC", name) for name in classes]
    if len(set(meta["classes"])) != len(classes):
        raise _corrupt(path, "names a class twice")
    return meta


def _array(path: Path) -> NDArray[Any]:
    try:
        # not np.load, which takes archives and whose messages recommend to unpickle
        with _reading(path):
            return np.lib.format.open_memmap(path, mode="r")
    except UserError:
        raise
    except Exception as error:  # a damaged header is read as Python: it may raise anything
        raise _corrupt(path, f"is truncated or no .npy file ({' '.join(str(error).split())})") from error


def check(arrays: Arrays) -> None:
    """Whether the arrays are a data set.

    Raises:
        UserError: wrong dtype or shape, counts that differ, no samples, or labels out of range.
    """
    folder = arrays.folder or Path(arrays.name)
    last = len(arrays.classes) - 1
    for name in arrays.splits:
        images, labels = arrays.split(name)
        _check_array(folder / f"{name}_images.npy", images, np.dtype(np.uint8), "(N, H, W, C)")
        _check_array(folder / f"{name}_labels.npy", labels, np.dtype(np.int64), "(N,)")
        path = folder / f"{name}_labels.npy"
        if len(images) != len(labels):
            raise _corrupt(path, f"has {len(labels)} labels for {len(images)} images")
        if labels.min() < 0 or labels.max() > last:
            raise _corrupt(path, f"has labels {labels.min()}..{labels.max()}, but its classes are 0..{last}")
        if images.shape[1:] != arrays.train_images.shape[1:]:
            raise _corrupt(
                folder / f"{name}_images.npy",
                f"has images of {images.shape[1:]}, the training images are {arrays.train_images.shape[1:]}",
            )


def _check_array(path: Path, array: NDArray[Any], dtype: np.dtype[Any], shape: str) -> None:
    if array.dtype != dtype or array.ndim != len(shape.split()) or array.size == 0:
        raise _corrupt(path, f"holds {array.dtype} {array.shape}, not {dtype} {shape}")


def _corrupt(path: Path, what: str) -> UserError:
    return UserError(
        f"{path} {what}: delete the folder {path.parent} and run {prepare_command(path.parent.name)} to make it anew."
    )


@lru_cache(maxsize=1)
def digits() -> Arrays:
    """scikit-learn's 1797 grey 8x8 digits (the test part of UCI Optdigits), grey levels 0..16 scaled to 0..255.

    The test split is 500 stratified images, chosen by content: the last of each class in the order of their digests.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int64)
    order = canonical_order(sample_digests(images, labels))
    images, labels = images[order], labels[order]
    test = holdout(labels, 500)
    classes = tuple(str(c) for c in bunch.target_names)
    source = "scikit-learn load_digits: UCI Optdigits, test part (Alpaydin and Kaynak 1998)"
    return Arrays(
        EMBEDDED,
        images[~test],
        labels[~test],
        images[test],
        labels[test],
        classes,
        {"classes": classes, "source": source},
    )
