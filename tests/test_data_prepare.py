"""Preparing data sets: the real download code on small archives, without network."""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import http.server
import io
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

from kdbench.data import prepare as module
from kdbench.data.arrays import load
from kdbench.data.prepare import SOURCES, Row, known_hash, list_datasets, prepare, verify
from kdbench.errors import UserError

RNG = np.random.default_rng(0)
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
    monkeypatch.setattr(module, "TINY_URL", NOWHERE + "tiny-imagenet-200.zip")
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
    arrays = load(row.name)
    for (images, labels), found in ((train, arrays.split("train")), (test, arrays.split("test"))):
        assert np.array_equal(found[0], images)
        assert np.array_equal(found[1], labels)
    assert row.status == "prepared"
    assert row.sha256 == arrays.content_hash
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
    arrays = load("usps")
    assert arrays.train_images[0, 0, :3, 0].tolist() == [0, 255, 167]
    for split, (exact, labels) in parts.items():
        images, found = arrays.split(split)
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
    monkeypatch.setattr(module, "TINY_URL", address + "missing.zip")
    with pytest.raises(UserError, match="404"):
        prepare("tiny_imagenet")
    monkeypatch.setattr(module, "TINY_URL", address + "tiny.zip")
    with pytest.raises(UserError, match="corrupted"):  # what comes has another md5
        prepare("tiny_imagenet")
    monkeypatch.setattr(module, "TINY_MD5", md5((folder / "tiny.zip").read_bytes()))
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
    with pytest.raises(UserError, match="unknown data set 'cifar11': choose one of digits, cifar10"):
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

    monkeypatch.setattr(module, "download_and_extract_archive", full)
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
