"""Making prepared data sets: ``kdbench data list | prepare | verify`` as functions that return data."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tarfile import TarError
from typing import Any
from urllib.error import URLError
from zipfile import BadZipFile

import numpy as np
import psutil
from numpy.typing import NDArray
from omegaconf import OmegaConf
from torchvision import datasets as tv
from torchvision.datasets.utils import check_integrity, download_and_extract_archive, download_url

from kdbench.data.arrays import (
    EMBEDDED,
    SPLITS,
    Arrays,
    canonical_order,
    check,
    classes_hash,
    folder_of,
    holdout,
    is_name,
    load,
    prepare_command,
    read,
    sample_digests,
)
from kdbench.data.folders import Files, Folder, scan
from kdbench.data.images import read_square
from kdbench.errors import Unreadable, UserError
from kdbench.paths import cache_dir, conf_dir, data_root, expanded

FOLDER = "folder"
SIZE = 64
"""Side of the images of a folder, where none is asked for."""
READER = 2
"""Version of how image files and folders are read: 1 knew neither orientation, nor 16 bits, nor validation splits."""
NAMED = 10
"""So many of the files that cannot be read are named."""
DIGITS = tuple("0123456789")
# The md5 is the one that public loaders check (Avalanche and others); the maker publishes none.
TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
WRITE_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
}
READ_ERRORS = {errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENOMEM}


@dataclass(frozen=True)
class Row:
    """One data set, as ``kdbench data`` shows it.

    Attributes:
        status: ``embedded``, ``prepared``, ``already prepared``, ``verified`` (has the known content hash), ``intact``
            (has the hash that was prepared, if one was kept), ``missing``, ``corrupt``, ``unreadable`` (the system does
            not let us) or ``misnamed``.
        folder: where it lies or would lie; None for the embedded one.
        shape: (H, W, C); this and the sizes are None unless it is there.
        sha256: its content hash where it was computed (prepare, verify), else the known one (list), if any.
        note: the mend, where it is not well.
        told: what was assumed or left out when it was made, or cannot be known.
    """

    name: str
    status: str
    folder: Path | None
    shape: tuple[int, ...] | None = None
    num_classes: int | None = None
    n_train: int | None = None
    n_val: int | None = None
    n_test: int | None = None
    sha256: str | None = None
    note: str = ""
    told: tuple[str, ...] = ()


@dataclass(frozen=True)
class Archive:
    """A file that a data set is made from: its place in the download folder, its md5 and its address."""

    path: str
    md5: str
    url: str


@dataclass(frozen=True)
class Source:
    """How a public data set is made: the archives it needs, and what reads (and if need be downloads) them."""

    archives: Callable[[], list[Archive]]
    read: Callable[[Path], Arrays]


def list_datasets(root: str | Path | None = None) -> list[Row]:
    """The data sets that have a configuration, then those that lie in `root` without one. Nothing is hashed.

    Raises:
        UserError: `root` may not be read.
    """
    root = data_root(root)
    files = (conf_dir() / "dataset").glob("*.yaml")
    names = sorted(path.stem for path in files if "_target_" not in OmegaConf.load(path))  # the others need no folder
    return [_listed(name, root) for name in [*names, *sorted(_found(root).difference(names))]]


def _found(root: Path) -> set[str]:
    """The folders in `root` that hold a prepared data set, or that do not let us see whether they do."""
    try:
        names = os.listdir(root)
    except (FileNotFoundError, NotADirectoryError):
        return set()
    except OSError as error:
        raise Unreadable(root, error) from error
    return {
        name
        for name in names
        if not name.endswith(".partial")
        and (os.path.exists(root / name / "train_images.npy") or not os.access(root / name, os.R_OK | os.X_OK))
        and os.path.isdir(root / name)
    }


def _listed(name: str, root: Path) -> Row:
    known = known_hash(name)
    folder = root / name
    try:
        arrays = read(name, root)
    except UserError as error:
        if isinstance(error, Unreadable):
            status = "unreadable"
        elif not os.path.exists(folder):
            status = "missing"
        else:
            status = "corrupt" if is_name(name) else "misnamed"
        return Row(name, status, folder, sha256=known, note=str(error))
    return _row(arrays, "prepared" if arrays.folder else "embedded", known)


def verify(name: str, root: str | Path | None = None) -> Row:
    """Read, check and hash a prepared data set.

    Raises:
        UserError: it is missing, corrupt, or differs from the known content hash or from what was prepared.
    """
    known = known_hash(name)
    arrays = load(name, root, known)
    told = (
        []
        if known or "sha256" in arrays.prepared
        else ["no hash was kept when it was made: later changes are not seen"]
    )
    return _row(arrays, "verified" if known else "intact", arrays.content_hash, *told)


def prepare(
    kind: str,
    root: str | Path | None = None,
    source: str | Path | None = None,
    *,
    name: str | None = None,
    size: int | None = None,
) -> Row:
    """Make the prepared data set `kind` under `root`; the same one that is there already is checked and left as it is.

    Args:
        kind: a public data set (downloaded by torchvision), or ``folder`` for a folder of images.
        root: see `kdbench.paths.data_root`.
        source: for ``folder``, the images, as ``train/CLASS/*`` with ``test/CLASS/*`` and perhaps ``val/CLASS/*``
            (which alone is the test split), or as ``CLASS/*`` (a fifth of each class becomes the test split, chosen by
            content); else the download folder, by default ``downloads`` in the cache folder, where archives that lie
            there are not downloaded again.
        name: for ``folder``, what to call the result (default ``folder``).
        size: for ``folder``, images are resized to this shorter side and centre-cropped to a square (default 64).

    Raises:
        UserError: unknown kind, no network and no archive, unreadable images, nowhere to write, or what is there was
            made from other images or in another size.
    """
    if kind == EMBEDDED:
        return _row(load(kind), "embedded", known_hash(kind))
    if kind == FOLDER:
        name = name or FOLDER
        if name in SOURCES or name == EMBEDDED:
            raise UserError(f"'{name}' is the name of a public data set: give the folder another --name.")
        if source is None:
            raise UserError("no images given: say where they are with --source DIR.")
        if size is not None and size < 1:
            raise UserError(f"size={size} is no image size: give a positive number of pixels.")
    elif kind not in SOURCES:
        raise UserError(f"unknown data set '{kind}': choose one of {', '.join([EMBEDDED, *SOURCES, FOLDER])}.")
    elif name is not None or size is not None:
        raise UserError(f"name and size are for a folder of images: leave them out for {kind}.")
    final = folder_of(name or kind, root)
    images = expanded(source, "--source") if source else cache_dir() / "downloads"
    if os.path.exists(final):
        arrays = load(final.name, root)
        if kind == FOLDER:
            _check_request(arrays, images, size or SIZE)
        return _row(arrays, "already prepared", arrays.content_hash)

    with _writing(final.parent):
        final.parent.mkdir(parents=True, exist_ok=True)
    told: list[str] = []
    made: dict[str, Any] = {}
    if kind == FOLDER:
        folder = scan(images)
        arrays, told = _read_folder(folder, images, size or SIZE)
        made = {"reader": READER, "size": size or SIZE, "images": folder.digest()}
    else:
        arrays = _fetch(kind, images)
    arrays = replace(arrays, name=final.name, folder=final)
    check(arrays)
    known = known_hash(arrays.name)
    if known and arrays.content_hash != known:
        raise UserError(
            f"what was downloaded for {kind} has the content hash {arrays.content_hash}, not the known {known}: its "
            f"source has changed; set sha256 in conf/dataset/{kind}.yaml to null to accept it."
        )
    _write(arrays, final, made)
    return _row(arrays, "prepared", arrays.content_hash, *told)


def known_hash(name: str) -> str | None:
    """The content hash in ``conf/dataset/NAME.yaml``, if there is one."""
    path = conf_dir() / "dataset" / f"{name}.yaml"
    return OmegaConf.select(OmegaConf.load(path), "sha256") if path.is_file() else None


def _row(arrays: Arrays, status: str, sha256: str | None, *told: str) -> Row:
    n_train, n_test, *n_val = (len(arrays.split(split)[1]) for split in arrays.splits)
    return Row(
        arrays.name,
        status,
        arrays.folder,
        arrays.train_images.shape[1:],
        len(arrays.classes),
        n_train,
        n_val[0] if n_val else 0,
        n_test,
        sha256,
        told=told,
    )


def _write(arrays: Arrays, final: Path, made: Mapping[str, Any]) -> None:
    """Write to ``NAME.partial``, then rename: a folder without that ending is complete.

    Args:
        made: what the data were made of, for ``meta.json``.
    """
    partial = final.with_name(final.name + ".partial")
    hashes = {"sha256": arrays.content_hash, "classes_sha256": classes_hash(arrays.classes)}
    meta = {**arrays.meta, "classes": list(arrays.classes), "prepared": {**hashes, **made}}
    with _writing(final.parent):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            for split in arrays.splits:
                images, labels = arrays.split(split)
                np.save(partial / f"{split}_images.npy", images)
                np.save(partial / f"{split}_labels.npy", labels)
            (partial / "meta.json").write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")
            partial.rename(final)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> UserError:
    why = error.strerror or error
    return UserError(f"cannot write to {folder} ({why}): free some space there, or choose another folder.")


def _tell_of_the_disk(error: OSError, folder: Path) -> None:
    """Raise what became of reading from or writing to `folder`, if that is what went wrong."""
    file = error.filename
    if error.errno in READ_ERRORS or (isinstance(file, str) and os.path.exists(file) and not os.access(file, os.R_OK)):
        raise Unreadable(file or folder, error) from error
    if error.errno in WRITE_ERRORS:
        raise _unwritable(folder, error) from error


def _sound(path: Path, md5: str) -> bool:
    try:
        return check_integrity(path, md5)
    except OSError as error:
        raise Unreadable(path, error) from error


# --- public data sets -------------------------------------------------------------------------------------------------


def _fetch(kind: str, downloads: Path) -> Arrays:
    source = SOURCES[kind]
    try:
        downloads.mkdir(parents=True, exist_ok=True)
        return source.read(downloads)
    except (RuntimeError, OSError, ValueError, EOFError, LookupError, AssertionError, TarError, BadZipFile) as error:
        if isinstance(error, OSError) and not isinstance(error, URLError):
            _tell_of_the_disk(error, downloads)
        lacking = [a for a in source.archives() if not _sound(downloads / a.path, a.md5)]
        reason = " ".join(str(error).split()) or type(error).__name__
        if not lacking:
            raise UserError(
                f"what was unpacked from the archives of {kind} in {downloads} cannot be read ({reason}): delete "
                f"everything there but the archives and run {prepare_command(kind)} again."
            ) from error
        files = ", ".join(f"{downloads / a.path} (md5 {a.md5}, from {a.url})" for a in lacking)
        raise UserError(
            f"{kind} could not be downloaded ({reason}): without network, put {files} there by hand and run "
            f"{prepare_command(kind)} again."
        ) from error


Pair = tuple[NDArray[np.uint8], NDArray[np.int64]]


def _arrays(train: Pair, test: Pair, classes: Sequence[str], source: str) -> Arrays:
    """Arrays without a name yet, from images and labels of each split."""
    return Arrays("", *train, *test, tuple(classes), {"source": source})


def _pair(images: Any, labels: Any, axes: Sequence[int] = ()) -> Pair:
    """Images as (N, H, W, C), brought there by the permutation `axes` or, where they are (N, H, W), by a new axis."""
    pixels = np.asarray(images)
    pixels = pixels.transpose(axes) if axes else pixels
    pixels = pixels if pixels.ndim == 4 else pixels[..., None]
    return np.ascontiguousarray(pixels), np.asarray(labels, dtype=np.int64)


def _cifar(cls: type[tv.CIFAR10], text: str) -> Source:
    def read(downloads: Path) -> Arrays:
        train, test = (cls(downloads, train=part, download=True) for part in (True, False))
        return _arrays(_pair(train.data, train.targets), _pair(test.data, test.targets), train.classes, text)

    return Source(lambda: [Archive(cls.filename, cls.tgz_md5, cls.url)], read)


def _mnist(cls: type[tv.MNIST], text: str, classes: Sequence[str]) -> Source:
    def archives() -> list[Archive]:
        folder = f"{cls.__name__}/raw"
        return [Archive(f"{folder}/{file}", md5, f"{cls.mirrors[0]}{file}") for file, md5 in cls.resources]

    def read(downloads: Path) -> Arrays:
        train, test = (cls(downloads, train=part, download=True) for part in (True, False))
        return _arrays(_pair(train.data, train.targets), _pair(test.data, test.targets), classes, text)

    return Source(archives, read)


def _svhn() -> Source:
    def read(downloads: Path) -> Arrays:
        train, test = (tv.SVHN(downloads, split=part, download=True) for part in SPLITS)
        text = "SVHN cropped digits (Netzer et al. 2011), without the extra split"
        axes = (0, 2, 3, 1)
        return _arrays(_pair(train.data, train.labels, axes), _pair(test.data, test.labels, axes), DIGITS, text)

    return Source(lambda: _split_list(tv.SVHN.split_list), read)


def _stl10() -> Source:
    def read(downloads: Path) -> Arrays:
        train, test = (tv.STL10(downloads, split=part, download=True) for part in SPLITS)
        text = "STL-10 (Coates et al. 2011), the labelled images"
        axes = (0, 2, 3, 1)
        return _arrays(_pair(train.data, train.labels, axes), _pair(test.data, test.labels, axes), train.classes, text)

    return Source(lambda: [Archive(tv.STL10.filename, tv.STL10.tgz_md5, tv.STL10.url)], read)


def _usps() -> Source:
    def read(downloads: Path) -> Arrays:
        # Not through tv.USPS: it cuts grey levels off where others round them, and does not check files that are there.
        from sklearn.datasets import load_svmlight_file

        parts = []
        for split in SPLITS:
            url, file, md5 = tv.USPS.split_list[split]
            download_url(url, downloads, file, md5)
            values, labels = load_svmlight_file(str(downloads / file), n_features=256)
            grey = np.rint((values.toarray() + 1) / 2 * 255).astype(np.uint8)
            parts.append(_pair(grey.reshape(-1, 16, 16), labels - 1))
        return _arrays(parts[0], parts[1], DIGITS, "USPS (Hull 1994), -1..1 scaled to 0..255 and rounded")

    return Source(lambda: _split_list(tv.USPS.split_list), read)


def _split_list(splits: dict[str, list[str]]) -> list[Archive]:
    return [Archive(file, md5, url) for url, file, md5 in (splits[split] for split in SPLITS)]


def _tiny_imagenet() -> Source:
    def read(downloads: Path) -> Arrays:
        base = downloads / "tiny-imagenet-200"
        download_and_extract_archive(TINY_URL, downloads, filename=base.name + ".zip", md5=TINY_MD5)
        classes = sorted(path.name for path in (base / "train").iterdir() if path.is_dir())
        train = [(path, k) for k, c in enumerate(classes) for path in sorted((base / "train" / c / "images").iterdir())]
        lines = (base / "val" / "val_annotations.txt").read_text().splitlines()
        test = [(base / "val" / "images" / file, classes.index(c)) for file, c, *_ in map(str.split, lines)]
        text = "Tiny ImageNet (Stanford CS231n), its validation split as the test split"
        parts = _decode({"train": train, "test": test}, 64, Counter())
        return _arrays(parts["train"], parts["test"], classes, text)

    return Source(lambda: [Archive("tiny-imagenet-200.zip", TINY_MD5, TINY_URL)], read)


SOURCES: dict[str, Source] = {
    "cifar10": _cifar(tv.CIFAR10, "CIFAR-10 (Krizhevsky 2009)"),
    "cifar100": _cifar(tv.CIFAR100, "CIFAR-100 (Krizhevsky 2009), fine labels"),
    "mnist": _mnist(tv.MNIST, "MNIST (LeCun et al. 1998)", DIGITS),
    "fashion_mnist": _mnist(tv.FashionMNIST, "Fashion-MNIST (Xiao et al. 2017)", tv.FashionMNIST.classes),
    "svhn": _svhn(),
    "stl10": _stl10(),
    "tiny_imagenet": _tiny_imagenet(),
    "usps": _usps(),
}


# --- folders of images ------------------------------------------------------------------------------------------------


def _check_request(arrays: Arrays, source: Path, size: int) -> None:
    """Whether a prepared folder is what the images in `source` give.

    Raises:
        UserError: it has another size, or was made from other images.
    """
    anew = f"give another --name, or delete {arrays.folder} to make it anew"
    height, width = arrays.train_images.shape[1:3]
    if (height, width) != (size, size):
        raise UserError(
            f"{arrays.folder} has images of {height}x{width}, not {size}x{size}: give --size {height}, or {anew}."
        )
    folder = scan(source)
    if arrays.prepared.get("reader") == READER:
        if folder.digest() != arrays.prepared.get("images"):
            raise UserError(f"{arrays.folder} was made from other images than {source} has: {anew}.")
        return
    today = _read_folder(folder, source, size)[0]
    if (today.content_hash, today.classes) != (arrays.content_hash, arrays.classes):
        raise UserError(
            f"{arrays.folder} was made from other images than {source} has, or by an older kdbench, which read some "
            f"otherwise: {anew}."
        )


def _read_folder(folder: Folder, source: Path, size: int) -> tuple[Arrays, list[str]]:
    """The data set that a folder of images gives, and what a user should know of it."""
    counts: Counter[str] = Counter()
    parts = _decode(folder.files, size, counts)
    if "all" in parts:
        images, labels = parts["all"]
        order = canonical_order(sample_digests(images, labels))
        images, labels = images[order], labels[order]
        held = holdout(labels, round(len(labels) / 5))
        parts = {"train": (images[~held], labels[~held]), "test": (images[held], labels[held])}
    text = f"images of {source.resolve().name}, shorter side {size}, centre crop"
    arrays = _arrays(parts["train"], parts["test"], folder.classes, text)
    if "val" in parts:
        arrays = replace(arrays, val_images=parts["val"][0], val_labels=parts["val"][1])
    told = [*folder.notes, *(f"{n} images {what}" for what, n in sorted(counts.items())), *_repeated(arrays)]
    if folder.left_out:
        told.append("left out: " + ", ".join(f"{n} {what}" for what, n in folder.left_out.most_common()))
    return arrays, told


def _repeated(arrays: Arrays) -> Iterator[str]:
    """Images that stand under several labels, or in more than one split: either makes a measure wrong."""
    pixels: dict[str, list[bytes]] = {}
    labels: dict[bytes, set[int]] = {}
    for split in arrays.splits:
        images, classes = arrays.split(split)
        pixels[split] = sample_digests(images, np.zeros_like(classes))
        for digest, label in zip(pixels[split], classes.tolist(), strict=True):
            labels.setdefault(digest, set()).add(label)
    several = sum(len(labels[digest]) > 1 for digests in pixels.values() for digest in digests)
    if several:
        yield f"{several} images have the same pixels as one of another class"
    for split, judged in (("train", "val"), ("train", "test"), ("val", "test")):
        seen = set(pixels.get(split, ()))
        leaked = sum(digest in seen for digest in pixels.get(judged, ()))
        if leaked:
            yield f"{leaked} {judged} images have the same pixels as one of the {split} split"


def _decode(splits: Mapping[str, Files], size: int, counts: Counter[str]) -> dict[str, Pair]:
    """RGB images (N, size, size, 3) and labels (N,) of each split, see `read_square`.

    Raises:
        UserError: files that cannot be read, or too large a `size`.
    """
    number = sum(map(len, splits.values()))
    need, free = number * size * size * 3, psutil.virtual_memory().available
    if need > free:
        raise UserError(
            f"{number} images of {size}x{size} need {need / 1e9:.1f} GB of memory, of which {free / 1e9:.1f} are free: "
            "choose a smaller --size."
        )
    broken: list[tuple[Path, str]] = []
    parts: dict[str, Pair] = {}
    for split, files in splits.items():
        images = np.empty((len(files), size, size, 3), dtype=np.uint8)
        for i, (path, _) in enumerate(files):
            try:
                images[i] = read_square(path, size, counts)
            except ValueError as error:
                broken.append((path, str(error)))
        parts[split] = images, np.array([label for _, label in files], dtype=np.int64)
    if broken:
        raise UserError(f"{len(broken)} of {number} images cannot be read: {_named(broken)}: mend or remove them.")
    return parts


def _named(broken: Sequence[tuple[Path, str]]) -> str:
    """Files and what is wrong with them: the first with its whole path, the others from the folder of all."""
    above = Path(os.path.commonpath([path.parent for path, _ in broken]))
    names = [f"{path if k == 0 else path.relative_to(above)} ({why})" for k, (path, why) in enumerate(broken)]
    return ", ".join(names[:NAMED]) + (f" and {len(broken) - NAMED} more" if len(broken) > NAMED else "")
