"""Making prepared data sets: ``kdbench data list | prepare | verify`` as functions that return data."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tarfile import TarError
from typing import Any
from urllib.error import URLError
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray
from omegaconf import OmegaConf
from PIL import Image
from torchvision import datasets as tv
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.datasets.utils import check_integrity, download_and_extract_archive, download_url
from torchvision.transforms import functional as TF

from kdbench.data.arrays import (
    EMBEDDED,
    SPLITS,
    Arrays,
    canonical_order,
    check,
    folder_of,
    holdout,
    load,
    prepare_command,
    sample_digests,
)
from kdbench.errors import UserError
from kdbench.paths import cache_dir, conf_dir, data_root

FOLDER = "folder"
DIGITS = tuple("0123456789")
# The md5 is the one that public loaders check (Avalanche and others); the maker publishes none.
TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST}


@dataclass(frozen=True)
class Row:
    """One data set, as ``kdbench data`` shows it.

    Attributes:
        status: ``embedded``, ``prepared``, ``already prepared``, ``verified`` (the known content hash),
            ``intact`` (its content hash is not known), ``missing`` or ``corrupt``.
        folder: where it lies or would lie; None for the embedded one.
        shape: (H, W, C); this and the sizes are None unless it is there.
        sha256: its content hash where it was computed (prepare, verify), else the known one (list), if any.
        note: the mend, where it is missing or corrupt.
    """

    name: str
    status: str
    folder: Path | None
    shape: tuple[int, ...] | None = None
    num_classes: int | None = None
    n_train: int | None = None
    n_test: int | None = None
    sha256: str | None = None
    note: str = ""


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
    """The data sets that have a configuration, then those that lie in `root` without one. Nothing is hashed."""
    names = sorted(path.stem for path in (conf_dir() / "dataset").glob("*.yaml"))
    found = {
        path.parent.name for path in data_root(root).glob("*/train_images.npy") if path.parent.suffix != ".partial"
    }
    rows = []
    for name in [*names, *sorted(found.difference(names))]:
        known = known_hash(name)
        try:
            arrays = load(name, root)
            rows.append(_row(arrays, "prepared" if arrays.folder else "embedded", known))
        except UserError as error:
            folder = folder_of(name, root)
            rows.append(Row(name, "corrupt" if folder.exists() else "missing", folder, sha256=known, note=str(error)))
    return rows


def verify(name: str, root: str | Path | None = None) -> Row:
    """Read, check and hash a prepared data set.

    Raises:
        UserError: it is missing, corrupt, or differs from the known content hash.
    """
    known = known_hash(name)
    arrays = load(name, root, known)
    return _row(arrays, "verified" if known else "intact", arrays.content_hash)


def prepare(
    kind: str,
    root: str | Path | None = None,
    source: str | Path | None = None,
    *,
    name: str | None = None,
    size: int | None = None,
) -> Row:
    """Make the prepared data set `kind` under `root`; one that is there already is checked and left as it is.

    Args:
        kind: a public data set (downloaded by torchvision), or ``folder`` for a folder of images.
        root: see `kdbench.paths.data_root`.
        source: for ``folder``, the images, as ``train/CLASS/*`` with ``test/CLASS/*`` or ``val/CLASS/*``, or as
            ``CLASS/*`` (a fifth of each class becomes the test split, chosen by content); else the download folder,
            by default ``downloads`` in the cache folder, where archives that lie there are not downloaded again.
        name: for ``folder``, what to call the result (default ``folder``).
        size: for ``folder``, images are resized to this shorter side and centre-cropped to a square (default 64).

    Raises:
        UserError: unknown kind, no network and no archive, unreadable images, nowhere to write.
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
    if final.exists():
        arrays = load(final.name, root)
        return _row(arrays, "already prepared", arrays.content_hash)

    with _writing(final.parent):
        final.parent.mkdir(parents=True, exist_ok=True)
    if kind == FOLDER:
        arrays = _read_folder(Path(source or "").expanduser(), size or 64)
    else:
        arrays = _fetch(kind, Path(source).expanduser() if source else cache_dir() / "downloads")
    arrays = replace(arrays, name=final.name, folder=final)
    check(arrays)
    known = known_hash(arrays.name)
    if known and arrays.content_hash != known:
        raise UserError(
            f"what was downloaded for {kind} has the content hash {arrays.content_hash}, not the known {known}: its "
            f"source has changed; set sha256 in conf/dataset/{kind}.yaml to null to accept it."
        )
    _write(arrays, final)
    return _row(arrays, "prepared", arrays.content_hash)


def known_hash(name: str) -> str | None:
    """The content hash in ``conf/dataset/NAME.yaml``, if there is one."""
    path = conf_dir() / "dataset" / f"{name}.yaml"
    return OmegaConf.select(OmegaConf.load(path), "sha256") if path.is_file() else None


def _row(arrays: Arrays, status: str, sha256: str | None) -> Row:
    sizes = len(arrays.train_labels), len(arrays.test_labels)
    shape = arrays.train_images.shape[1:]
    return Row(arrays.name, status, arrays.folder, shape, len(arrays.classes), *sizes, sha256)


def _write(arrays: Arrays, final: Path) -> None:
    """Write to ``NAME.partial``, then rename: a folder without that ending is complete."""
    partial = final.with_name(final.name + ".partial")
    with _writing(final.parent):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir()
            for split in SPLITS:
                images, labels = arrays.split(split)
                np.save(partial / f"{split}_images.npy", images)
                np.save(partial / f"{split}_labels.npy", labels)
            meta = {**arrays.meta, "classes": list(arrays.classes)}
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


# --- public data sets -------------------------------------------------------------------------------------------------


def _fetch(kind: str, downloads: Path) -> Arrays:
    source = SOURCES[kind]
    try:
        downloads.mkdir(parents=True, exist_ok=True)
        return source.read(downloads)
    except (RuntimeError, OSError, ValueError, EOFError, LookupError, AssertionError, TarError, BadZipFile) as error:
        if isinstance(error, OSError) and not isinstance(error, URLError) and error.errno in DISK_ERRORS:
            raise _unwritable(downloads, error) from error
        lacking = [a for a in source.archives() if not check_integrity(downloads / a.path, a.md5)]
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
        return _arrays(_decode(train, 64), _decode(test, 64), classes, text)

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


def _read_folder(source: Path, size: int) -> Arrays:
    if not source.is_dir():
        raise UserError(f"{source} is no folder: give --source a folder of images.")
    text = f"images of {source.name}, shorter side {size}, centre crop"
    if not (source / "train").is_dir():
        classes = _class_names(source)
        images, labels = _decode(_listing(source, classes), size)
        order = canonical_order(sample_digests(images, labels))
        images, labels = images[order], labels[order]
        held = holdout(labels, round(len(labels) / 5))
        return _arrays((images[~held], labels[~held]), (images[held], labels[held]), classes, text)
    tests = [source / split for split in ("test", "val") if (source / split).is_dir()]
    if not tests:
        raise UserError(f"{source} has train/ but neither test/ nor val/: add one, in folders of the same classes.")
    classes = _class_names(source / "train")
    train, test = (_decode(_listing(folder, classes), size) for folder in (source / "train", tests[0]))
    return _arrays(train, test, classes, text)


def _class_names(folder: Path) -> tuple[str, ...]:
    names = tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))
    if len(names) < 2:
        raise UserError(f"{folder} holds {len(names)} class folders: at least two are needed, one folder per class.")
    return names


def _listing(folder: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """Every image file below each class folder, with its label."""
    differing = set(classes).symmetric_difference(_class_names(folder))
    if differing:
        raise UserError(
            f"{folder} and train/ differ in the classes {', '.join(sorted(differing))}: make them the same."
        )
    files = [
        (path, k)
        for k, name in enumerate(classes)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in IMG_EXTENSIONS
    ]
    empty = [name for k, name in enumerate(classes) if all(label != k for _, label in files)]
    if empty:
        raise UserError(f"{folder} has no images of {', '.join(empty)}: add some ({', '.join(IMG_EXTENSIONS)}).")
    return files


def _decode(files: Sequence[tuple[Path, int]], size: int) -> Pair:
    """RGB images (N, size, size, 3), resized (bilinear) to the shorter side and centre-cropped, and labels (N,)."""
    images = np.empty((len(files), size, size, 3), dtype=np.uint8)
    for i, (path, _) in enumerate(files):
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"{path} cannot be read as an image ({error}): mend or remove it.") from error
        images[i] = np.asarray(TF.center_crop(TF.resize(image, [size]), [size, size]))
    return images, np.array([label for _, label in files], dtype=np.int64)
