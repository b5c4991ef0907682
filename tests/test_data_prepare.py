"""Preparing data sets: the real download code on small archives, without network."""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import http.server
import io
import json
import pickle
import shutil
import struct
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from numpy.typing import NDArray
from PIL import Image
from torchvision import datasets as tv

from kdbench.cli import program
from kdbench.data import arrays, public
from kdbench.data import prepare as module
from kdbench.data.arrays import load
from kdbench.data.datasets import DatasetConfig
from kdbench.data.listing import Row, known_hash, list_datasets
from kdbench.data.prepare import prepare, verify
from kdbench.data.public import SOURCES
from kdbench.errors import UserError

RNG = np.random.default_rng(0)
FILES = [f"{split}_{part}.npy" for split in ("train", "test") for part in ("images", "labels")]
NOWHERE = "file:///nonexistent/"


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A cache folder of its own, no known hashes, and addresses that lead nowhere; returns the download folder."""
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KDBENCH_DATA", raising=False)
    monkeypatch.setattr(module, "known_hash", lambda name: None)
    for cls in (tv.CIFAR10, tv.CIFAR100, tv.STL10):
        monkeypatch.setattr(cls, "url", NOWHERE + cls.filename)
    for cls in (tv.MNIST, tv.FashionMNIST):
        monkeypatch.setattr(cls, "mirrors", [NOWHERE])
    for cls in (tv.SVHN, tv.USPS):
        splits = {key: [NOWHERE + file, file, md5] for key, (_, file, md5) in cls.split_list.items()}
        monkeypatch.setattr(cls, "split_list", splits)
    monkeypatch.setattr(public, "TINY_URL", NOWHERE + "tiny-imagenet-200.zip")
    monkeypatch.setattr(tv.Omniglot, "download_url_prefix", NOWHERE)
    return tmp_path / "cache" / "downloads"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address at which a local server offers it."""
    folder = tmp_path / "www"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        yield folder, f"http://127.0.0.1:{httpd.server_address[1]}/"
        httpd.shutdown()


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def pixels(*shape: int) -> NDArray[np.uint8]:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def tar(folder: str, files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def expect(row: Row, train: tuple[Any, Any], test: tuple[Any, Any]) -> None:
    """The prepared arrays are exactly these images (N, H, W, C) and labels."""
    stored = load(row.name)
    for (images, labels), found in ((train, stored.split("train")), (test, stored.split("test"))):
        assert np.array_equal(found[0], images)
        assert np.array_equal(found[1], labels)
    assert row.status == "prepared"
    assert row.sha256 == stored.content_hash
    assert (row.n_train, row.n_test, row.shape) == (len(train[1]), len(test[1]), train[0].shape[1:])
    assert not list(row.folder.parent.glob("*.partial")) if row.folder else False


def fake_mnist(monkeypatch: pytest.MonkeyPatch, cls: type[tv.MNIST], folder: Path) -> dict[str, tuple[Any, Any]]:
    """Gzipped idx files of 20 and 10 images of 28x28 below `folder`, whose md5s torchvision is told."""
    parts, resources = {}, []
    for split, n in (("train", 20), ("t10k", 10)):
        images, labels = pixels(n, 28, 28), np.arange(n, dtype=np.uint8) % 10
        parts[split] = (images[..., None], labels)
        for name, head, body in (
            (f"{split}-images-idx3-ubyte.gz", struct.pack(">4B3i", 0, 0, 8, 3, n, 28, 28), images),
            (f"{split}-labels-idx1-ubyte.gz", struct.pack(">4Bi", 0, 0, 8, 1, n), labels),
        ):
            data = gzip.compress(head + body.tobytes())
            put(folder / name, data)
            resources.append((name, md5(data)))
    monkeypatch.setattr(cls, "resources", resources)
    return parts


@pytest.mark.parametrize(("kind", "cls"), [("mnist", tv.MNIST), ("fashion_mnist", tv.FashionMNIST)])
def test_mnist_is_downloaded(
    monkeypatch: pytest.MonkeyPatch, server: tuple[Path, str], kind: str, cls: type[tv.MNIST]
) -> None:
    parts = fake_mnist(monkeypatch, cls, server[0])
    monkeypatch.setattr(cls, "mirrors", [NOWHERE, server[1]])
    expect(prepare(kind), parts["train"], parts["t10k"])
    names = load(kind).classes
    assert names[:2] == (("0", "1") if kind == "mnist" else ("T-shirt/top", "Trouser"))


def test_archives_put_by_hand_are_used_offline(monkeypatch: pytest.MonkeyPatch, offline: Path) -> None:
    parts = fake_mnist(monkeypatch, tv.MNIST, offline / "MNIST" / "raw")
    (offline / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz").rename(offline / "kept")
    with pytest.raises(UserError) as error:
        prepare("mnist")
    name, checksum = tv.MNIST.resources[3]
    assert f"put {offline / 'MNIST' / 'raw' / name} (md5 {checksum}, from {NOWHERE}{name}) there" in str(error.value)
    assert "train-images" not in str(error.value).split("put ")[1]  # what is there already is not asked for
    assert "\n" not in str(error.value)
    shutil.move(offline / "kept", offline / "MNIST" / "raw" / name)
    expect(prepare("mnist"), parts["train"], parts["t10k"])


def test_damaged_unpacked_files_are_named(monkeypatch: pytest.MonkeyPatch, offline: Path) -> None:
    raw = offline / "MNIST" / "raw"
    fake_mnist(monkeypatch, tv.MNIST, raw)
    for file in list(raw.iterdir()):
        put(file.with_suffix(""), b"half")
    with pytest.raises(UserError, match="delete everything there but the archives"):
        prepare("mnist")


def cifar(monkeypatch: pytest.MonkeyPatch, cls: type[tv.CIFAR10], key: str) -> tuple[bytes, Any, Any]:
    files: dict[str, bytes] = {}
    sums: dict[str, list[list[str]]] = {}
    parts: dict[str, tuple[Any, Any]] = {}
    for split in ("train_list", "test_list"):
        images, labels = [], []
        sums[split] = []
        for name, _ in getattr(cls, split):
            batch, y = pixels(6, 3, 32, 32), RNG.integers(0, 10, 6).tolist()
            files[name] = pickle.dumps({"data": batch.reshape(6, -1), key: y})
            sums[split].append([name, md5(files[name])])
            images.append(batch.transpose(0, 2, 3, 1))
            labels += y
        parts[split] = (np.concatenate(images), labels)
        monkeypatch.setattr(cls, split, sums[split])
    names = [f"c{k}" for k in range(10)]
    files[cls.meta["filename"]] = pickle.dumps({cls.meta["key"]: names})
    monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": md5(files[cls.meta["filename"]])})
    data = tar(cls.base_folder, files)
    monkeypatch.setattr(cls, "tgz_md5", md5(data))
    return data, parts["train_list"], parts["test_list"]


@pytest.mark.parametrize(
    ("kind", "cls", "key"), [("cifar10", tv.CIFAR10, "labels"), ("cifar100", tv.CIFAR100, "fine_labels")]
)
def test_cifar(
    monkeypatch: pytest.MonkeyPatch,
    offline: Path,
    server: tuple[Path, str],
    kind: str,
    cls: type[tv.CIFAR10],
    key: str,
) -> None:
    data, train, test = cifar(monkeypatch, cls, key)
    with pytest.raises(UserError) as error:
        prepare(kind)
    assert f"put {offline / cls.filename} (md5 {cls.tgz_md5}" in str(error.value)
    put(offline / cls.filename, data[:100])  # an interrupted download
    with pytest.raises(UserError, match=cls.tgz_md5):
        prepare(kind)
    put(server[0] / cls.filename, data)
    monkeypatch.setattr(cls, "url", server[1] + cls.filename)
    expect(prepare(kind), train, test)
    assert load(kind).classes[9] == "c9"


def test_fewer_of_each_class_are_those_that_per_class_takes(monkeypatch: pytest.MonkeyPatch, offline: Path) -> None:
    data, _, test = cifar(monkeypatch, tv.CIFAR10, "labels")
    put(offline / tv.CIFAR10.filename, data)
    monkeypatch.setitem(SOURCES, "cifar10_15k", public._fewer(SOURCES["cifar10"], 2, "fewer"))
    prepare("cifar10")
    prepare("cifar10_15k")
    few = DatasetConfig.of({"name": "cifar10", "per_class": 2}).build()
    same = DatasetConfig.of({"name": "cifar10_15k"}).build()
    assert len(same.train) < 30
    assert {x.numpy().tobytes() for x in same.train.images} == {x.numpy().tobytes() for x in few.train.images}
    assert np.array_equal(load("cifar10_15k").test_images, test[0])
    assert load("cifar10_15k").meta["source"] == "fewer"


def test_omniglot(monkeypatch: pytest.MonkeyPatch, offline: Path) -> None:
    drawn: dict[str, NDArray[np.uint8]] = {}
    sums: dict[str, str] = {}
    for part, names in (
        ("images_background", ("Latin/character02", "Greek/character01")),
        ("images_evaluation", ("Atlantean/character01",)),
    ):
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w") as archive:
            for name in names:
                for k in range(2):
                    ink = np.full((105, 105), 255, np.uint8)
                    ink[RNG.integers(10, 90) :][:12, 20:60] = 0
                    one = io.BytesIO()
                    Image.fromarray(ink).convert("1").save(one, "PNG")
                    archive.writestr(f"{part}/{name}/{k}.png", one.getvalue())
                    drawn[f"{name}/{k}"] = ink
        put(offline / "omniglot-py" / f"{part}.zip", out.getvalue())
        sums[part] = md5(out.getvalue())
    with pytest.raises(
        UserError, match=r"omniglot-py/images_background\.zip \(md5 68d2efa1b9178cc56df9314c21c6e718, from "
    ):
        prepare("omniglot")
    monkeypatch.setattr(tv.Omniglot, "zips_md5", sums)
    row = prepare("omniglot")
    arrays = load("omniglot")
    assert (row.n_train, row.n_test, row.shape, row.num_classes) == (4, 2, (28, 28, 1), 3)
    assert arrays.classes == ("Greek/character01", "Latin/character02", "Atlantean/character01")
    assert (arrays.train_labels.tolist(), arrays.test_labels.tolist()) == ([0, 0, 1, 1], [2, 2])
    for image, name in zip(arrays.train_images, ("Greek/character01/0", "Greek/character01/1"), strict=False):
        # white on black, and of each quarter (3.75 pixels a side) as much ink as was drawn
        assert image.mean() == pytest.approx((255 - drawn[name].astype(float)).mean(), rel=0.05)
        assert abs(image[..., 0].argmax() // 28 - (drawn[name].argmin() // 105 + 6) / 3.75) < 3


def test_the_archive_folder_can_be_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, offline: Path) -> None:
    data, train, test = cifar(monkeypatch, tv.CIFAR10, "labels")
    put(tmp_path / "shared" / tv.CIFAR10.filename, data)
    expect(prepare("cifar10", source=tmp_path / "shared"), train, test)
    assert not offline.exists()


def test_svhn(monkeypatch: pytest.MonkeyPatch, offline: Path) -> None:
    splits, parts = {}, {}
    for split, n in (("train", 12), ("test", 11)):
        images, digits = pixels(32, 32, 3, n), np.arange(n) % 10 + 1
        file = f"{split}_32x32.mat"
        put(offline / file, b"")
        scipy.io.savemat(str(offline / file), {"X": images, "y": digits[:, None].astype(np.uint8)})
        splits[split] = [NOWHERE + file, file, md5((offline / file).read_bytes())]
        parts[split] = (images.transpose(3, 0, 1, 2), digits % 10)  # the label 10 is the digit 0
    monkeypatch.setattr(tv.SVHN, "split_list", {**splits, "extra": splits["train"]})
    expect(prepare("svhn"), parts["train"], parts["test"])


def test_stl10(monkeypatch: pytest.MonkeyPatch, offline: Path) -> None:
    train, test = pixels(5, 96, 96, 3), pixels(4, 96, 96, 3)
    y = {"train": np.array([1, 2, 3, 10, 5], np.uint8), "test": np.array([4, 3, 2, 1], np.uint8)}
    files = {  # column-major within a channel
        "train_X.bin": train.transpose(0, 3, 2, 1).tobytes(),
        "train_y.bin": y["train"].tobytes(),
        "unlabeled_X.bin": b"",
        "test_X.bin": test.transpose(0, 3, 2, 1).tobytes(),
        "test_y.bin": y["test"].tobytes(),
        "class_names.txt": "\n".join(f"c{k}" for k in range(10)).encode(),
    }
    for split in ("train_list", "test_list"):
        monkeypatch.setattr(tv.STL10, split, [[name, md5(files[name])] for name, _ in getattr(tv.STL10, split)])
    data = tar("stl10_binary", files)
    monkeypatch.setattr(tv.STL10, "tgz_md5", md5(data))
    put(offline / "stl10_binary.tar.gz", data)
    expect(prepare("stl10"), (train, y["train"] - 1), (test, y["test"] - 1))


def test_usps_rounds_grey_levels(monkeypatch: pytest.MonkeyPatch, offline: Path) -> None:
    splits, parts = {}, {}
    for split, n in (("train", 6), ("test", 3)):
        values, labels = RNG.integers(0, 2001, (n, 256)) / 1000 - 1, np.arange(1, n + 1)
        values[0, :3] = [-1, 1, 0.307]  # 0.307 is the grey level 166.64
        lines = [
            f"{y} " + " ".join(f"{i + 1}:{v:.3f}" for i, v in enumerate(row))
            for y, row in zip(labels, values, strict=True)
        ]
        file = {"train": "usps.bz2", "test": "usps.t.bz2"}[split]
        data = bz2.compress("\n".join(lines).encode())
        put(offline / file, data)
        splits[split] = [NOWHERE + file, file, md5(data)]
        exact = (np.round(values, 3) + 1) / 2 * 255
        parts[split] = (exact.reshape(n, 16, 16, 1), labels - 1)
    monkeypatch.setattr(tv.USPS, "split_list", splits)
    row = prepare("usps")
    stored = load("usps")
    assert stored.train_images[0, 0, :3, 0].tolist() == [0, 255, 167]
    for name, (exact, labels) in parts.items():
        images, found = stored.split(name)
        assert np.abs(images - exact).max() <= 0.5 + 1e-6
        assert np.array_equal(found, labels)
    assert row.num_classes == 10


def jpeg(image: NDArray[np.uint8]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(image).save(out, "JPEG")
    return out.getvalue()


def decoded(data: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_tiny_imagenet(monkeypatch: pytest.MonkeyPatch, offline: Path, server: tuple[Path, str]) -> None:
    folder, address = server
    files: dict[str, bytes] = {}
    for name in ("n02", "n01"):
        for i in range(3):  # some images of the real set are grey
            files[f"train/{name}/images/{name}_{i}.JPEG"] = jpeg(pixels(64, 64) if i == 1 else pixels(64, 64, 3))
        files[f"train/{name}/{name}_boxes.txt"] = b"not an image"
    files |= {f"val/images/val_{i}.JPEG": jpeg(pixels(64, 64, 3)) for i in range(2)}
    files["val/val_annotations.txt"] = b"val_1.JPEG\tn01\t0\t0\t9\t9\nval_0.JPEG\tn02\t0\t0\t9\t9\n"
    with zipfile.ZipFile(folder / "tiny.zip", "w") as archive:
        for name, data in files.items():
            archive.writestr(f"tiny-imagenet-200/{name}", data)
    with pytest.raises(UserError, match=r"tiny-imagenet-200\.zip \(md5 90528d7ca1a48142e341f4ef8d21d0de"):
        prepare("tiny_imagenet")
    monkeypatch.setattr(public, "TINY_URL", address + "missing.zip")
    with pytest.raises(UserError, match="404"):
        prepare("tiny_imagenet")
    monkeypatch.setattr(public, "TINY_URL", address + "tiny.zip")
    with pytest.raises(UserError, match="corrupted"):  # what comes has another md5
        prepare("tiny_imagenet")
    monkeypatch.setattr(public, "TINY_MD5", md5((folder / "tiny.zip").read_bytes()))
    train = [decoded(files[f"train/{c}/images/{c}_{i}.JPEG"]) for c in ("n01", "n02") for i in range(3)]
    test = [decoded(files[f"val/images/val_{i}.JPEG"]) for i in (1, 0)]
    expect(prepare("tiny_imagenet"), (np.stack(train), [0, 0, 0, 1, 1, 1]), (np.stack(test), [0, 1]))
    assert load("tiny_imagenet").classes == ("n01", "n02")


# --- folders of images ------------------------------------------------------------------------------------------------


def png(path: Path, image: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


@pytest.mark.parametrize("test_name", ["test", "val"])
def test_folder_with_splits(tmp_path: Path, test_name: str) -> None:
    images = {
        f"{s}/{c}/{i}.png": pixels(8, 8, 3) for s in ("train", test_name) for c in ("cat", "dog") for i in range(2)
    }
    for name, image in images.items():
        png(tmp_path / "pets" / name, image)
    put(tmp_path / "pets" / "train" / "cat" / "notes.txt", b"ignored")
    row = prepare("folder", source=tmp_path / "pets", size=8, name="pets")
    train = np.stack([images[f"train/{c}/{i}.png"] for c in ("cat", "dog") for i in range(2)])
    test = np.stack([images[f"{test_name}/{c}/{i}.png"] for c in ("cat", "dog") for i in range(2)])
    expect(row, (train, [0, 0, 1, 1]), (test, [0, 0, 1, 1]))
    assert load("pets").classes == ("cat", "dog")


def test_folder_without_splits_is_split_by_content(tmp_path: Path) -> None:
    for c, n in (("a", 20), ("b", 10)):
        for i in range(n):
            png(tmp_path / "one" / c / f"{i}.png", pixels(6, 6, 3))
    for i, path in enumerate(sorted((tmp_path / "one").rglob("*.png"), reverse=True)):  # the same images, other names
        png(tmp_path / "two" / path.parent.name / f"x{i}.png", np.asarray(Image.open(path)))
    one = prepare("folder", source=tmp_path / "one", size=6, name="one")
    two = prepare("folder", source=tmp_path / "two", size=6, name="two")
    assert (one.n_train, one.n_test) == (24, 6)
    assert np.bincount(load("one").test_labels).tolist() == [4, 2]
    assert one.sha256 == two.sha256


def test_folder_images_are_resized_and_cropped(tmp_path: Path) -> None:
    wide = np.zeros((20, 40, 3), np.uint8)
    wide[:, 10:30] = 200  # the centre square
    for split in ("train", "test"):
        png(tmp_path / "w" / split / "a" / "0.png", wide)
        png(tmp_path / "w" / split / "b" / "0.png", np.full((30, 20), 77, np.uint8))  # grey, upright
    prepare("folder", source=tmp_path / "w", size=10, name="w")
    images = load("w").train_images
    assert images.shape == (2, 10, 10, 3)
    assert np.all(images[0, :, 1:-1] == 200)
    assert np.all(images[1] == 77)


def test_bad_folders_are_user_errors(tmp_path: Path) -> None:
    def refused(what: str, **options: Any) -> None:
        with pytest.raises(UserError) as error:
            prepare("folder", **{"source": tmp_path / "f", "size": 4, **options})
        assert what in str(error.value)

    refused("--source", source=None)
    refused("is no folder")
    png(tmp_path / "f" / "train" / "a" / "0.png", pixels(4, 4, 3))
    refused("neither test/ nor val/")
    (tmp_path / "f" / "test" / "a").mkdir(parents=True)
    refused("at least two")
    (tmp_path / "f" / "train" / "b").mkdir()
    refused("no images of b")
    png(tmp_path / "f" / "train" / "b" / "0.png", pixels(4, 4, 3))
    (tmp_path / "f" / "test" / "c").mkdir()
    refused("differ in the classes b, c")
    (tmp_path / "f" / "test" / "c").rename(tmp_path / "f" / "test" / "b")
    refused("no images of a, b")
    for c in "ab":
        put(tmp_path / "f" / "test" / c / "0.png", b"no image")
    refused(str(tmp_path / "f" / "test" / "a" / "0.png"))
    refused("size=0", size=0)
    refused("another --name", name="cifar10")
    assert not (tmp_path / "cache" / "data" / "folder").exists()


def tree(source: Path, *names: str, n: int = 2) -> Path:
    """A folder with `n` images of its own in each of the folders `names`."""
    for name in names:
        for i in range(n):
            png(source / name / f"{i}.png", pixels(4, 4, 3))
    return source


def split(*names: str) -> list[str]:
    return [f"{name}/{c}" for name in names for c in ("a", "b")]


def test_what_is_no_image_of_a_class_is_left_out_and_told(tmp_path: Path) -> None:
    source = tree(tmp_path / "f", *split("train", "test"))
    plain = prepare("folder", source=source, size=4, name="plain")
    assert plain.told == ()
    for hidden in ("train/a/.ipynb_checkpoints/0.png", "train/a/._0.png", "test/b/deep/.x/0.png", ".hid/a/0.png"):
        put(source / hidden, b"")
    put(source / "train/__MACOSX/0.png", b"")
    put(source / "train/a/Thumbs.db", b"")
    for stray in ("train/a/notes.txt", "train/a/b/more.TXT", "test/b/old.eps", "test/b/readme"):
        put(source / stray, b"%!PS-Adobe-3.0 EPSF-3.0")
    png(source / "train" / "stray.png", pixels(4, 4, 3))
    tree(source, "masks/x", "masks/y")
    row = prepare("folder", source=source, size=4, name="littered")
    assert row.sha256 == plain.sha256
    assert len(row.told) == 1
    assert row.told[0].startswith("left out: ")
    assert set(row.told[0].removeprefix("left out: ").split(", ")) == {
        "4 hidden",
        "1 __MACOSX",
        "1 Thumbs.db",
        "2 .txt",
        "1 .eps",
        "1 without ending",
        "1 .png outside of class folders",
        "1 folder masks/",
    }


def test_images_of_every_ending_are_read(tmp_path: Path) -> None:
    source = tree(tmp_path / "f", *split("train", "test"))
    for form, name in (("JPEG", "x.jfif"), ("GIF", "x.gif"), ("AVIF", "x.avif"), ("WEBP", "x"), ("PNG", "x.PNG.bak")):
        Image.fromarray(pixels(9, 9, 3)).save(source / "train" / "a" / name, form)
    row = prepare("folder", source=source, size=4)
    assert np.bincount(load("folder").train_labels).tolist() == [7, 2]
    assert row.told == ()


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Train", "VALID", "Testing"),
        ("training", "validation", "TEST"),
        ("training_set", "valset", "Test-Images"),
        ("TRAIN", "dev", "test"),
    ],
)
def test_a_validation_split_of_ones_own(tmp_path: Path, train: str, val: str, test: str) -> None:
    source = tmp_path / "f"
    for name, n in ((train, 5), (val, 3), (test, 2)):
        tree(source, *split(name), n=n)
    row = prepare("folder", source=source, size=4)
    assert (row.n_train, row.n_val, row.n_test) == (10, 6, 4)
    stored = load("folder")
    images = [np.asarray(Image.open(source / val / c / f"{i}.png")) for c in "ab" for i in range(3)]
    assert np.array_equal(stored.split("val")[0], images)
    assert stored.split("val")[1].tolist() == [0, 0, 0, 1, 1, 1]
    shutil.rmtree(source / val)
    without = prepare("folder", source=source, size=4, name="without")
    assert (without.n_val, without.n_test) == (0, 4)
    assert without.sha256 != row.sha256


def test_a_validation_split_alone_is_the_test_split(tmp_path: Path) -> None:
    row = prepare("folder", source=tree(tmp_path / "f", *split("train", "Valid")), size=4)
    assert (row.n_val, row.n_test) == (0, 4)
    assert row.told == ("Valid/ is the test split, for there is no test/",)


def test_folders_that_may_be_splits_are_told(tmp_path: Path) -> None:
    row = prepare("folder", source=tree(tmp_path / "f", *split("2019", "2020")), size=4)
    assert load("folder").classes == ("2019", "2020")
    assert len(row.told) == 1
    assert row.told[0].startswith("each of 2019, 2020 is a class, though all of them hold folders a, b")


def test_folders_that_leave_a_doubt_are_refused(tmp_path: Path) -> None:
    def refused(*names: str, says: str) -> None:
        source = tree(tmp_path / str(len(list(tmp_path.iterdir()))), *names)
        with pytest.raises(UserError, match=says):
            prepare("folder", source=source, size=4)

    refused(*split("train", "test", "Train"), says="are both the train split: merge")
    refused(*split("train", "val", "valid", "test"), says="are both the val split: merge")
    refused(*split("train", "test", "holdout"), says="holdout/ with the same classes as train/")
    refused(*split("train", "test", "test_set"), says="are both the test split")
    refused(*split("test", "val"), says="has test, val but no train/")
    refused("a", "b", "training", says="train/ but neither")
    refused(*split("train"), "test/a", "test/B", says="differ in the classes B, b")
    refused("a", says="at least two")


def test_class_names_are_compared_as_they_are_read(tmp_path: Path) -> None:
    composed, decomposed = "K\u00f6ln", "Ko\u0308ln"
    source = tree(tmp_path / "f", f"train/{decomposed}", f"test/{composed}", "train/Bonn", "test/Bonn")
    prepare("folder", source=source, size=4)
    assert load("folder").classes == ("Bonn", composed)
    tree(source, f"train/{composed}")
    with pytest.raises(UserError, match=r"two folders called K\u00f6ln .*'K\\xf6ln'.*merge them") as error:
        prepare("folder", source=source, size=4, name="two")
    assert "'Ko\\u0308ln'" in str(error.value)


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    source = tree(tmp_path / "f", *split("train", "test"))
    tree(tmp_path / "elsewhere", "more")
    (source / "train/a/more").symlink_to(tmp_path / "elsewhere" / "more")
    (source / "train/a/round").symlink_to(source / "train" / "a")
    (source / "train/b/up").symlink_to(source)
    (source / "train/b/itself").symlink_to("itself")
    with pytest.raises(UserError, match=r"1 of 11 images cannot be read: .*itself .*symbolic links"):
        prepare("folder", source=source, size=4)
    (source / "train/b/itself").unlink()
    row = prepare("folder", source=source, size=4)
    assert (row.n_train, row.n_test) == (6, 4)
    assert row.told == ("left out: 2 linked in a circle",)


def test_all_broken_files_are_named_at_once(tmp_path: Path) -> None:
    source = tree(tmp_path / "f", *split("train", "test"))
    files = [put(source / "train/a" / f"z{i:02}.png", b"no image") for i in range(7)]
    files += [put(source / "train/b" / f"z{i:02}.png", b"") for i in range(7)]
    files += [put(source / "test/b" / "z.jpg", b"\xff\xd8\xff half")]
    with pytest.raises(UserError) as error:
        prepare("folder", source=source, size=4)
    assert str(files[0]) in str(error.value)
    for file in files[:10]:
        assert file.relative_to(source / "train").as_posix() in str(error.value)
    assert "b/z03.png" not in str(error.value)
    assert "15 of 23 images cannot be read" in str(error.value)
    assert "and 5 more: mend or remove them." in str(error.value)
    assert not (tmp_path / "cache" / "data" / "folder").exists()


def test_repeated_images_are_counted(tmp_path: Path) -> None:
    source = tree(tmp_path / "f", *split("train", "val", "test"))
    shutil.copy(source / "train/a/0.png", source / "train/a/again.png")  # a class may weigh an image twice
    assert prepare("folder", source=source, size=4).told == ()
    shutil.copy(source / "train/a/1.png", source / "test/a/x.png")
    shutil.copy(source / "val/b/1.png", source / "test/b/x.png")
    shutil.copy(source / "train/a/0.png", source / "val/b/x.png")
    assert prepare("folder", source=source, size=4, name="again").told == (
        "3 images have the same pixels as one of another class",
        "1 val images have the same pixels as one of the train split",
        "1 test images have the same pixels as one of the train split",
        "1 test images have the same pixels as one of the val split",
    )


def test_what_was_assumed_is_told(tmp_path: Path) -> None:
    source = tree(tmp_path / "f", *split("train", "test"))
    for i in range(3):
        Image.fromarray(np.full((4, 4), 257 * 90, np.uint16)).save(source / "train/a" / f"wide{i}.png")
    row = prepare("folder", source=source, size=4)
    assert row.told == ("3 images with 16 bits, of which 0..65535 became 0..255",)
    assert np.all(load("folder").train_images[2:5] == 90)


def test_an_absurd_size_is_one_sentence(tmp_path: Path) -> None:
    source = tree(tmp_path / "f", *split("train", "test"))
    with pytest.raises(UserError, match=r"8 images of 100000000x100000000 need 240000000\.0 GB of memory"):
        prepare("folder", source=source, size=100_000_000)


# --- what is there, what goes wrong -----------------------------------------------------------------------------------


def pets(tmp_path: Path, name: str = "pets") -> Row:
    for c in "ab":
        for split in ("train", "test"):
            png(tmp_path / name / split / c / "0.png", pixels(4, 4, 3))
    return prepare("folder", source=tmp_path / name, size=4, name=name)


def test_prepared_data_are_left_alone(tmp_path: Path) -> None:
    first = pets(tmp_path)
    assert first.folder is not None
    before = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    again = prepare("folder", source=tmp_path / "pets", size=4, name="pets")
    assert (again.status, again.sha256) == ("already prepared", first.sha256)
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == before
    (first.folder / "meta.json").unlink()
    with pytest.raises(UserError, match="delete the folder"):
        prepare("folder", source=tmp_path / "pets", size=4, name="pets")


def test_unknown_kinds_and_stray_options(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown data set 'cifar11': choose one of digits, digits_m, "):
        prepare("cifar11")
    with pytest.raises(UserError, match="leave them out for mnist"):
        prepare("mnist", size=32)
    assert prepare("digits").status == "embedded"


def test_a_full_disk_leaves_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save, calls = np.save, []

    def full(path: Path, array: NDArray[Any]) -> None:
        calls.append(path)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(path, array)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(UserError, match=r"cannot write to .*No space left"):
        pets(tmp_path)
    assert calls[0].parent.name == "pets.partial"
    assert list((tmp_path / "cache" / "data").iterdir()) == []
    monkeypatch.setattr(np, "save", save)
    assert pets(tmp_path).status == "prepared"


def test_a_leftover_of_a_killed_run_is_replaced(tmp_path: Path) -> None:
    put(tmp_path / "cache" / "data" / "pets.partial" / "train_images.npy", b"half")
    assert "pets.partial" not in [row.name for row in list_datasets()]
    assert pets(tmp_path).status == "prepared"
    assert [path.name for path in (tmp_path / "cache" / "data").iterdir()] == ["pets"]


def test_unwritable_folders_are_user_errors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put(tmp_path / "file", b"")
    with pytest.raises(UserError, match="cannot write to"):
        prepare("cifar10", root=tmp_path / "file" / "data")
    with pytest.raises(UserError, match="cannot write to"):
        prepare("cifar10", root=tmp_path / "root", source=tmp_path / "file")

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(public, "download_and_extract_archive", full)
    with pytest.raises(UserError, match=r"cannot write to .*downloads .*No space left"):
        prepare("tiny_imagenet")


def test_changed_downloads_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, offline: Path) -> None:
    fake_mnist(monkeypatch, tv.MNIST, offline / "MNIST" / "raw")
    monkeypatch.setattr(module, "known_hash", known_hash)
    with pytest.raises(UserError, match=r"conf/dataset/mnist\.yaml"):
        prepare("mnist")
    assert list((tmp_path / "cache" / "data").iterdir()) == []


def test_list_shows_every_state(tmp_path: Path) -> None:
    pets(tmp_path)
    broken = pets(tmp_path, "broken").folder
    assert broken is not None
    (broken / "meta.json").unlink()
    put(tmp_path / "cache" / "data" / "unrelated" / "images.npy", b"")
    rows = {row.name: row for row in list_datasets()}
    assert set(rows) >= {*SOURCES, "digits", "folder", "pets", "broken"}
    assert "unrelated" not in rows
    assert (rows["digits"].status, rows["digits"].n_train, rows["digits"].folder) == ("embedded", 1297, None)
    assert (rows["pets"].status, rows["pets"].shape, rows["pets"].num_classes) == ("prepared", (4, 4, 3), 2)
    assert rows["cifar100"].status == "missing"
    assert "kdbench data prepare cifar100" in rows["cifar100"].note
    assert rows["broken"].status == "corrupt"
    assert "meta.json" in rows["broken"].note


def test_verify_compares_with_the_known_hash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    row = pets(tmp_path)
    assert verify("pets") == Row(**{**row.__dict__, "status": "intact"})
    monkeypatch.setattr(module, "known_hash", lambda name: row.sha256)
    assert verify("pets").status == "verified"
    monkeypatch.setattr(module, "known_hash", lambda name: "0" * 64)
    with pytest.raises(UserError, match="content hash"):
        verify("pets")
    with pytest.raises(UserError, match="kdbench data prepare mnist"):
        verify("mnist")


def test_known_hashes_come_from_the_configuration() -> None:
    assert len(known_hash("cifar100") or "") == 64
    assert known_hash("folder") is None
    assert known_hash("no_such") is None


def test_another_size_or_source_is_not_what_is_there(tmp_path: Path) -> None:
    def again(**options: Any) -> Row:
        return prepare("folder", **{"source": tmp_path / "pets", "size": 4, "name": "pets", **options})

    first = pets(tmp_path)
    shutil.copytree(tmp_path / "pets", tmp_path / "moved")
    (tmp_path / "moved/train/a/0.png").rename(tmp_path / "moved/train/a/renamed.png")
    assert again(source=tmp_path / "moved").status == "already prepared"  # the same images
    with pytest.raises(UserError, match=r"images of 4x4, not 8x8: give --size 4, .*another --name"):
        again(size=8)
    with pytest.raises(UserError, match="not 64x64"):
        again(size=None)
    with pytest.raises(UserError, match="is no folder"):
        again(source=tmp_path / "nowhere")
    pets(tmp_path, "others")
    with pytest.raises(UserError, match=r"other images than .*others has: give another --name"):
        again(source=tmp_path / "others")
    exchanged = tmp_path / "exchanged"  # the same files, in each other's class
    shutil.copytree(tmp_path / "pets", exchanged)
    for file, target in (("a", "x"), ("b", "a"), ("x", "b")):
        (exchanged / "train" / file).rename(exchanged / "train" / target)
    with pytest.raises(UserError, match="other images"):
        again(source=exchanged)
    png(tmp_path / "pets/train/a/0.png", pixels(4, 4, 3))
    with pytest.raises(UserError, match="other images"):
        again()
    assert verify("pets").sha256 == first.sha256


def test_a_set_of_an_older_reader_stays_usable(tmp_path: Path) -> None:
    row = pets(tmp_path)
    assert row.folder is not None
    meta = row.folder / "meta.json"
    old = {key: value for key, value in json.loads(meta.read_text()).items() if key != "prepared"}
    meta.write_text(json.dumps(old))
    found = verify("pets")
    assert (found.status, found.sha256) == ("intact", row.sha256)
    assert "no hash was kept" in found.told[0]
    assert prepare("folder", source=tmp_path / "pets", size=4, name="pets").status == "already prepared"
    shutil.copytree(tmp_path / "pets", tmp_path / "renamed")
    for part in ("train", "test"):
        (tmp_path / "renamed" / part / "b").rename(tmp_path / "renamed" / part / "c")
    with pytest.raises(UserError, match="other images"):
        prepare("folder", source=tmp_path / "renamed", size=4, name="pets")
    png(tmp_path / "pets/train/a/0.png", pixels(4, 4, 3))
    with pytest.raises(UserError, match=r"other images than .* or by an older kdbench"):
        prepare("folder", source=tmp_path / "pets", size=4, name="pets")


def test_what_changed_since_it_was_prepared_is_noticed(tmp_path: Path) -> None:
    row = pets(tmp_path)
    assert row.folder is not None
    assert verify("pets").status == "intact"
    images = np.load(row.folder / "train_images.npy")
    images[0, 0, 0, 0] ^= 1
    np.save(row.folder / "train_images.npy", images)
    for use in (verify, load, lambda name: DatasetConfig(name=name).build()):
        with pytest.raises(UserError, match=r"changed since: delete the folder .* folder --source DIR --name pets"):
            use("pets")
    assert {row.name: row.status for row in list_datasets()}["pets"] == "prepared"  # nothing is hashed for a list


def test_class_names_belong_to_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = pets(tmp_path)
    assert row.folder is not None
    meta = json.loads((row.folder / "meta.json").read_text())
    assert meta["prepared"]["classes_sha256"] == hashlib.sha256(b'["a", "b"]').hexdigest()
    turned = json.dumps({**meta, "classes": ["b", "a"]})
    (row.folder / "meta.json").write_text(turned)
    for use in (verify, load, lambda name: DatasetConfig(name=name, classes=("a", "b")).build()):
        with pytest.raises(UserError, match=r"meta\.json names other classes, or in another order"):
            use("pets")
    (row.folder / "meta.json").write_text(json.dumps({"classes": ["b", "a"]}))  # by hand: only known data can tell
    assert verify("pets").sha256 == row.sha256
    monkeypatch.setitem(arrays.KNOWN_CLASSES, row.sha256, meta["prepared"]["classes_sha256"])
    with pytest.raises(UserError, match="in another order"):
        verify("pets")


def test_known_classes_are_those_of_public_sets() -> None:
    def known(name: str) -> str | None:
        return arrays.KNOWN_CLASSES.get(known_hash(name) or "")

    digits = hashlib.sha256(b'["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]').hexdigest()
    assert known("mnist") == known("usps") == digits
    assert hashlib.sha256(json.dumps(tv.FashionMNIST.classes).encode()).hexdigest() in arrays.KNOWN_CLASSES.values()
    assert known("cifar100") is not None


def test_one_odd_folder_does_not_end_the_list(tmp_path: Path) -> None:
    root = tmp_path / "cache" / "data"
    pets(tmp_path)
    for name in ("my data", "-x", ".hid", "[red]", "a\udcff"):
        put(root / name / "train_images.npy", b"")
    (root / "deep").mkdir()
    put(root / "deep" / "meta.json", b"[" * 100_000)
    for file in FILES:
        shutil.copy(root / "pets" / file, root / "deep" / file)
    put(root / "zip" / "meta.json", (root / "pets" / "meta.json").read_bytes())
    for file in FILES:
        with zipfile.ZipFile(root / "zip" / file, "w") as archive:
            archive.writestr("x.npy", b"")
    rows = {row.name: row for row in list_datasets()}
    assert {rows[name].status for name in ("my data", "-x", ".hid", "[red]", "a\udcff")} == {"misnamed"}
    assert "letters, digits" in rows["my data"].note
    assert (rows["pets"].status, rows["deep"].status, rows["zip"].status) == ("prepared", "corrupt", "corrupt")
    assert program.main(["data", "list"]) == 0


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "you may not read .*train_images.npy"),
        (OSError(errno.EIO, "Input/output error"), r"cannot read .*train_images.npy \(Input/output error\)"),
        (OSError(errno.ENOSPC, "No space left on device"), "cannot read"),
    ],
)
def test_what_cannot_be_read_is_not_called_corrupt(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: OSError, says: str
) -> None:
    pets(tmp_path)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(np.lib.format, "open_memmap", refuse)
    for use in (load, verify, lambda name: prepare("folder", source=tmp_path / name, size=4, name=name)):
        with pytest.raises(UserError, match=says) as raised:
            use("pets")
        assert "delete" not in str(raised.value)
    assert {row.name: row.status for row in list_datasets()}["pets"] == "unreadable"


def test_unreadable_archives_are_not_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, offline: Path) -> None:
    fake_mnist(monkeypatch, tv.MNIST, offline / "MNIST" / "raw")

    def refuse(path: Path, md5: str) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(module, "check_integrity", refuse)
    monkeypatch.setattr(tv.MNIST, "resources", [(name, "0" * 32) for name, _ in tv.MNIST.resources])
    with pytest.raises(UserError, match=r"you may not read .*train-images"):
        prepare("mnist")


def test_what_to_type_next_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tree(tmp_path / "f", *split("train", "val", "test"))
    command = ["data", "prepare", "folder", "--source", str(source), "--size", "4"]
    assert program.main([*command, "--name", "parts"]) == 0
    shown = capsys.readouterr().out
    assert "4 training, 4 validation and 4 test images" in shown
    assert "kdbench run dataset=folder dataset.name=parts\n" in shown
    assert program.main([*command, "--name", "3", "--root", str(tmp_path / "my root")]) == 0
    shown = capsys.readouterr().out
    assert f"""dataset=folder 'dataset.name="3"' 'dataset.root="{tmp_path}/my root"'\n""" in shown
    assert program.main(["run", "method=scratch", "dataset=parts"]) == 1
    assert "write dataset=folder dataset.name=parts." in capsys.readouterr().err
    assert program.main(["run", "method=scratch", "dataset=nowhere"]) == 1
    assert "dataset.name=" not in capsys.readouterr().err


def test_homes_of_nobody_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--source"):
        prepare("folder", source="~nosuchuser/x")
    with pytest.raises(UserError, match="~nosuchuser"):
        list_datasets("~nosuchuser/x")
