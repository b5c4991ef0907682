"""Prepared arrays, cuts, views and the Lightning module."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from pytorch_lightning.callbacks import ModelCheckpoint
from scipy import stats
from torch import nn
from torchvision.transforms import functional as TF

from kdbench import draws, paths
from kdbench.data.arrays import canonical_order, holdout, load
from kdbench.data.batch import Batch
from kdbench.data.datasets import Dataset, DatasetConfig, channel_statistics
from kdbench.data.module import ArrayData
from kdbench.data.sources import source_of
from kdbench.data.views import Views, apply_views, order_of, view_of
from kdbench.draws import GOLDEN, random_bits
from kdbench.errors import UserError


def write(
    folder: Path, n_train: int = 60, n_test: int = 30, classes: int = 3, shape: tuple[int, ...] = (5, 7, 3)
) -> Path:
    """A prepared data set of random pixels with balanced labels."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for split, n in (("train", n_train), ("test", n_test)):
        np.save(folder / f"{split}_images.npy", rng.integers(0, 256, (n, *shape), dtype=np.uint8))
        np.save(folder / f"{split}_labels.npy", np.arange(n, dtype=np.int64) % classes)
    names = [f"class {k}" for k in range(classes)]
    (folder / "meta.json").write_text(json.dumps({"classes": names, "source": "random", "extra": 1}))
    return folder


def edit(folder: Path, file: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    np.save(folder / f"{file}.npy", change(np.load(folder / f"{file}.npy")))


def copy(folder: Path, name: str) -> Path:
    return Path(shutil.copytree(folder, folder.with_name(name)))


def build(folder: Path, **fields: Any) -> Dataset:
    return DatasetConfig.of({"name": folder.name, "root": str(folder.parent), **fields}).build()


def rows(images: torch.Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


# --- paths and prepared arrays ----------------------------------------------------------------------------------------


def test_environment_chooses_the_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KDBENCH_CACHE", raising=False)
    monkeypatch.delenv("KDBENCH_DATA", raising=False)
    assert paths.cache_dir() == Path.home() / ".cache" / "kdbench"
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "c"))
    assert paths.data_root() == tmp_path / "c" / "data"
    monkeypatch.setenv("KDBENCH_DATA", str(tmp_path / "d"))
    assert paths.data_root() == tmp_path / "d"
    assert paths.data_root(tmp_path) == tmp_path


def test_load_maps_images_and_tolerates_extras(tmp_path: Path) -> None:
    folder = write(tmp_path / "toy")
    np.save(folder / "train_coarse_labels.npy", np.zeros(3))
    arrays = load("toy", tmp_path)
    assert isinstance(arrays.train_images, np.memmap)
    assert arrays.train_images.shape == (60, 5, 7, 3)
    assert arrays.classes == ("class 0", "class 1", "class 2")
    assert arrays.meta["extra"] == 1
    assert load("toy", tmp_path) is arrays  # read and hashed once per process


def test_missing_data_name_the_command_and_the_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="kdbench data prepare cifar100") as error:
        load("cifar100", tmp_path / "nowhere")
    assert str(tmp_path / "nowhere") in str(error.value)


@pytest.mark.parametrize("name", ["../toy", "", ".hidden", "a/b"])
def test_bad_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="no name of a data set"):
        load(name, tmp_path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def classes(value: Any) -> Callable[[Path], Any]:
    return lambda f: (f / "meta.json").write_text(json.dumps({"classes": value}))


BROKEN: dict[str, tuple[str, str, Callable[[Path], Any]]] = {
    "file missing": ("test_labels.npy", "cannot be read", lambda f: (f / "test_labels.npy").unlink()),
    "truncated": ("train_images.npy", "truncated", lambda f: truncate(f / "train_images.npy")),
    "truncated labels": ("test_labels.npy", "truncated", lambda f: truncate(f / "test_labels.npy")),
    "half a validation split": ("val_labels.npy", "cannot be read", lambda f: np.save(f / "val_images.npy", [1])),
    "validation of other shape": (
        "val_images.npy",
        "training images",
        lambda f: (np.save(f / "val_images.npy", np.zeros((1, 5, 5, 3), np.uint8)), np.save(f / "val_labels.npy", [0])),
    ),
    "meta too deep": ("meta.json", "not valid JSON", lambda f: (f / "meta.json").write_text("[" * 100_000)),
    "meta a folder": ("meta.json", "cannot be read", lambda f: ((f / "meta.json").unlink(), (f / "meta.json").mkdir())),
    "empty file": ("train_labels.npy", "truncated", lambda f: (f / "train_labels.npy").write_bytes(b"")),
    "pickled": ("test_labels.npy", "no .npy file", lambda f: edit(f, "test_labels", lambda a: a.astype(object))),
    "float images": ("test_images.npy", "float32", lambda f: edit(f, "test_images", lambda a: a.astype(np.float32))),
    "no channel axis": ("train_images.npy", "not uint8", lambda f: edit(f, "train_images", lambda a: a[..., 0])),
    "int32 labels": ("train_labels.npy", "int32", lambda f: edit(f, "train_labels", lambda a: a.astype(np.int32))),
    "counts differ": ("train_labels.npy", "59 labels for 60", lambda f: edit(f, "train_labels", lambda a: a[1:])),
    "label too large": ("test_labels.npy", "0..3", lambda f: edit(f, "test_labels", lambda a: a + (a == 2))),
    "label negative": ("train_labels.npy", "-1..1", lambda f: edit(f, "train_labels", lambda a: a - 1)),
    "no samples": ("test_images.npy", "not uint8", lambda f: edit(f, "test_images", lambda a: a[:0])),
    "shapes differ": ("test_images.npy", "training images", lambda f: edit(f, "test_images", lambda a: a[:, 1:])),
    "meta missing": ("meta.json", "cannot be read", lambda f: (f / "meta.json").unlink()),
    "meta no JSON": ("meta.json", "not valid JSON", lambda f: (f / "meta.json").write_text("{")),
    "meta a list": ("meta.json", "two or more class names", lambda f: (f / "meta.json").write_text("[1]")),
    "meta no classes": ("meta.json", "two or more class names", lambda f: (f / "meta.json").write_text("{}")),
    "meta class numbers": ("meta.json", "two or more class names", classes([0, 1, 2])),
    "meta class in two spellings": ("meta.json", "twice", classes(["K\u00f6ln", "Ko\u0308ln", "c"])),
    "meta class twice": ("meta.json", "twice", classes(["a", "b", "b"])),
}


@pytest.mark.parametrize("case", BROKEN)
def test_corrupt_data_name_the_file_and_the_mend(tmp_path: Path, case: str) -> None:
    file, what, spoil = BROKEN[case]
    folder = write(tmp_path / "toy")
    spoil(folder)
    with pytest.raises(UserError) as error:
        load("toy", tmp_path)
    assert str(folder / file) in str(error.value)
    assert what in str(error.value)
    assert f"delete the folder {folder}" in str(error.value)
    assert "\n" not in str(error.value)
    assert "allow_pickle" not in str(error.value)


def test_content_hash_ignores_order_and_nothing_else(tmp_path: Path) -> None:
    folder = write(tmp_path / "toy")
    known = load("toy", tmp_path).content_hash
    assert len(known) == 64
    order = np.random.default_rng(1).permutation(60)
    shuffled = copy(folder, "shuffled")
    for kind in ("images", "labels"):
        edit(shuffled, f"train_{kind}", lambda a: a[order])
    assert load("shuffled", tmp_path, known).content_hash == known

    def pixel(a: np.ndarray) -> np.ndarray:
        a[17, 2, 3, 1] ^= 1
        return a

    def swapped(a: np.ndarray) -> np.ndarray:
        a[[0, 1]] = a[[1, 0]]
        return a

    def label(a: np.ndarray) -> np.ndarray:
        a[5] = (a[5] + 1) % 3
        return a

    changes: list[tuple[str, Callable[[np.ndarray], np.ndarray]]] = [
        ("train_images", pixel),
        ("test_images", pixel),
        ("train_labels", label),
        ("test_labels", label),
        ("train_images", swapped),  # images change places, their labels do not
    ]
    hashes = {known}
    for i, (file, change) in enumerate(changes):
        edit(copy(folder, f"changed{i}"), file, change)
        hashes.add(load(f"changed{i}", tmp_path).content_hash)
    turned = copy(folder, "turned")
    for split in ("train", "test"):  # the same bytes, another shape
        edit(turned, f"{split}_images", lambda a: a.reshape(len(a), 7, 5, 3))
    hashes.add(load("turned", tmp_path).content_hash)
    exchanged = copy(folder, "exchanged")
    for kind in ("images", "labels"):
        train, test = (np.load(folder / f"{s}_{kind}.npy") for s in ("train", "test"))
        np.save(exchanged / f"train_{kind}.npy", test)
        np.save(exchanged / f"test_{kind}.npy", train)
    hashes.add(load("exchanged", tmp_path).content_hash)
    assert len(hashes) == 1 + len(changes) + 2


def test_a_differing_known_hash_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "toy")
    with pytest.raises(UserError, match="sha256=null") as error:
        build(folder, sha256="0" * 64)
    assert str(folder) in str(error.value)


def test_digits_are_scikit_learns(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    arrays = load("digits", tmp_path)
    assert arrays.train_images.shape == (1297, 8, 8, 1)
    assert arrays.test_images.shape == (500, 8, 8, 1)
    both = np.concatenate([arrays.train_images, arrays.test_images]).reshape(-1, 64).astype(np.int64)
    original = load_digits().data.astype(np.int64)
    assert sorted(map(tuple, (both + 8) * 16 // 255)) == sorted(map(tuple, original))
    assert both.max() == 255
    counts = np.bincount(load_digits().target)
    assert np.all(np.abs(np.bincount(arrays.test_labels) - counts * 500 / 1797) < 1)
    known = OmegaConf.load(paths.conf_dir() / "dataset" / "digits.yaml").sha256
    assert arrays.content_hash == known


# --- configuration and cuts -------------------------------------------------------------------------------------------


def test_every_dataset_config_is_complete_and_valid() -> None:
    files = sorted((paths.conf_dir() / "dataset").glob("*.yaml"))
    assert {f.stem for f in files} >= {
        "digits",
        "cifar10",
        "cifar100",
        "mnist",
        "fashion_mnist",
        "svhn",
        "stl10",
        "usps",
    }
    for file in files:
        fields = OmegaConf.load(file)
        assert isinstance(fields, DictConfig)
        assert source_of(fields).identity()["name"] == file.stem
        # the scenario has a group of its own
        assert "_target_" in fields or set(fields) == set(DatasetConfig.model_fields) - {"scenario"}, file


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"nmae": "x"}, "unknown key 'dataset.nmae'"),
        ({"pad": -1}, "dataset.pad"),
        ({"pad": "4px"}, "dataset.pad"),
        ({"flip": 3}, "dataset.flip"),
        ({"std": [0.0, 1.0, 1.0]}, "dataset.std"),
        ({"mean": [float("nan")] * 3}, "dataset.mean"),
        ({"mean": [0.5]}, "3 channels"),
        ({"mean": []}, "3 channels"),
        ({"sha256": "abc"}, "dataset.sha256"),
        ({"val": 58}, "at most 57"),
        ({"per_class": 0}, "dataset.per_class"),
        ({"pad": 6}, "dataset.pad=6 moves images of 5x7 out of sight"),
        ({"classes": True}, "dataset.classes"),
        ({"classes": 10**12}, "out of the 3"),
        ({"val": 10**30}, "at most 57"),
        ({"classes": 1}, "two or more"),
        ({"classes": 4}, "out of the 3"),
        ({"classes": [0, 0]}, "two or more different"),
        ({"classes": [0, -1]}, "two or more different"),
        ({"classes": [0, "no such"]}, "has no class 'no such'"),
        ({"name": None}, "dataset.name"),
    ],
)
def test_bad_fields_are_user_errors(tmp_path: Path, fields: dict[str, Any], what: str) -> None:
    folder = write(tmp_path / "toy")
    with pytest.raises(UserError) as error:
        build(folder, **fields)
    assert what in str(error.value)
    assert "\n" not in str(error.value)


def test_build_keeps_pairs_and_computes_statistics(tmp_path: Path) -> None:
    folder = write(tmp_path / "toy")
    data = build(folder, pad=2, flip=True)
    images, labels = np.load(folder / "train_images.npy"), np.load(folder / "train_labels.npy")
    expected = {(image.tobytes(), int(y)) for image, y in zip(images, labels, strict=True)}
    seen = zip(data.train.images, data.train.labels, strict=True)
    assert {(image.numpy().tobytes(), int(y)) for image, y in seen} == expected
    assert data.mean == pytest.approx((images / 255).mean((0, 1, 2)))
    assert data.std == pytest.approx((images / 255).std((0, 1, 2)))
    assert data.spec.shape == (3, 5, 7)
    assert (data.spec.n_train, data.spec.n_test, data.spec.n_val, data.spec.num_classes) == (60, 30, 0, 3)
    assert data.val is None
    assert (data.pad, data.flip) == (2, True)


def test_statistics_of_more_than_one_chunk() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2500, 3, 2, 2), dtype=np.uint8)
    mean, std = channel_statistics(images)
    assert mean == pytest.approx((images / 255).mean((0, 1, 2)))
    assert std == pytest.approx((images / 255).std((0, 1, 2)))


def test_the_order_on_disk_changes_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "toy")
    reverse = copy(folder, "reverse")
    for file in ("train_images", "train_labels", "test_images", "test_labels"):
        edit(reverse, file, lambda a: a[::-1].copy())
    a, b = (build(f, val=6, per_class=5) for f in (folder, reverse))
    assert a.val is not None
    assert b.val is not None
    for x, y in ((a.train, b.train), (a.val, b.val), (a.test, b.test)):
        assert torch.equal(x.images, y.images)
        assert torch.equal(x.labels, y.labels)


def test_validation_split_is_disjoint_and_stratified(tmp_path: Path) -> None:
    folder = write(tmp_path / "toy", n_train=90)
    data = build(folder, val=30)
    assert data.val is not None
    assert (len(data.train), len(data.val), data.spec.n_val) == (60, 30, 30)
    assert torch.bincount(data.val.labels).tolist() == [10, 10, 10]
    assert not rows(data.train.images) & rows(data.val.images)
    assert rows(data.train.images) | rows(data.val.images) == rows(build(folder).train.images)


def test_a_prepared_validation_split_is_the_one(tmp_path: Path) -> None:
    folder = write(tmp_path / "toy", n_train=60)
    before = build(folder)
    images = np.random.default_rng(2).integers(0, 256, (9, 5, 7, 3), dtype=np.uint8)
    np.save(folder / "val_images.npy", images)
    np.save(folder / "val_labels.npy", np.arange(9) % 3)
    data = build(folder)
    assert data.val is not None
    assert (len(data.train), data.spec.n_val, data.spec.n_test) == (60, 9, 30)
    assert {x.numpy().tobytes(): int(y) for x, y in zip(data.val.images, data.val.labels, strict=True)} == {
        x.tobytes(): i % 3 for i, x in enumerate(images)
    }
    assert torch.equal(data.train.images, before.train.images)
    chosen = build(folder, classes=[2, 0], per_class=4)
    assert chosen.val is not None
    assert torch.bincount(chosen.val.labels).tolist() == [3, 3]
    assert torch.equal(chosen.val.images[chosen.val.labels == 0], data.val.images[data.val.labels == 2])
    with pytest.raises(UserError, match=r"toy has a validation split of its own: leave dataset\.val at 0"):
        build(folder, val=5)
    hashes = {before.content_hash, data.content_hash}
    edit(folder, "val_images", lambda a: a ^ (np.arange(a.size).reshape(a.shape) == 0).astype(np.uint8))
    hashes.add(build(folder).content_hash)
    assert len(hashes) == 3
    np.save(folder / "val_labels.npy", np.zeros(9, np.int64))
    with pytest.raises(UserError, match="have no val images"):
        build(folder, classes=[1, 2])


def test_the_content_hash_is_the_one_of_its_definition(tmp_path: Path) -> None:
    folder = write(tmp_path / "toy", n_train=4, n_test=3)
    lines = []
    for split, n in (("train", 4), ("test", 3), ("val", 2)):
        if split == "val":
            np.save(folder / "val_images.npy", np.zeros((2, 5, 7, 3), np.uint8))
            np.save(folder / "val_labels.npy", np.arange(2))
        images, labels = (np.load(folder / f"{split}_{kind}.npy") for kind in ("images", "labels"))
        samples = [
            image.tobytes() + int(label).to_bytes(8, "little") for image, label in zip(images, labels, strict=True)
        ]
        digests = sorted(hashlib.blake2b(sample, digest_size=16).digest() for sample in samples)
        lines.append(f"{split} {n} 5 7 3 {hashlib.sha256(b''.join(digests)).hexdigest()}\n")
        if split != "train":  # what has no validation split has the hash from before there was one
            assert load("toy", tmp_path).content_hash == hashlib.sha256("".join(lines).encode()).hexdigest()


def test_holdout_is_proportional_and_spares_one_of_each_class() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 1])
    marked = holdout(labels, 9)
    assert np.bincount(labels[marked], minlength=3).tolist() == [6, 3, 0]  # 49 : 29 : 0 of 9 is 5.65 : 3.35 : 0
    assert np.bincount(labels[holdout(labels, 78)], minlength=3).tolist() == [49, 29, 0]
    assert not holdout(labels, 0).any()


def test_few_sample_sets_are_nested(tmp_path: Path) -> None:
    folder = write(tmp_path / "toy", n_train=60)
    before: set[bytes] = set()
    for n in range(1, 22):
        train = build(folder, per_class=n).train
        assert torch.bincount(train.labels).tolist() == [min(n, 20)] * 3
        assert before <= rows(train.images)
        before = rows(train.images)
    assert rows(build(folder, per_class=4, val=30).train.images) == rows(build(folder, per_class=4).train.images)


def test_classes_are_chosen_and_relabelled(tmp_path: Path) -> None:
    folder = write(tmp_path / "toy")
    whole = build(folder)
    for chosen, old in ((2, [0, 1]), ([2, 0], [2, 0]), (["class 1", 2], [1, 2])):
        data = build(folder, classes=chosen)
        assert data.classes == tuple(f"class {k}" for k in old)
        assert data.spec.num_classes == 2
        for part, full in ((data.train, whole.train), (data.test, whole.test)):
            for new, label in enumerate(old):
                assert torch.equal(part.images[part.labels == new], full.images[full.labels == label])
            assert len(part) == sum(int((full.labels == label).sum()) for label in old)
        assert data.content_hash == whole.content_hash
        assert data.classes_hash == whole.classes_hash
        assert data.mean == whole.mean  # a teacher of all classes sees equal pixels


def test_class_names_are_found_in_either_spelling(tmp_path: Path) -> None:
    folder = write(tmp_path / "toy")
    (folder / "meta.json").write_text(json.dumps({"classes": ["Bonn", "Ko\u0308ln", "Trier"]}))
    for name in ("K\u00f6ln", "Ko\u0308ln"):
        assert build(folder, classes=["Trier", name]).classes == ("Trier", "K\u00f6ln")
    assert build(folder, per_class=10**30).spec.n_train == 60


# --- views ------------------------------------------------------------------------------------------------------------


def test_generator_is_splitmix64() -> None:
    # The first outputs for the seed 1234567, as published with the reference implementation's ports.
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    counters = torch.arange(1, 6) * GOLDEN + 1234567
    assert [x % 2**64 for x in draws._mix(counters).tolist()] == expected


@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_torchvisions(channels: int) -> None:
    pad, mean, std = 4, [0.5071, 0.4867, 0.4408][:channels], [0.2675, 0.2565, 0.2761][:channels]
    images = torch.randint(
        0, 256, (162, 10, 13, channels), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    dy, dx, flip = (t.reshape(-1) for t in torch.meshgrid(*map(torch.arange, (9, 9, 2)), indexing="ij"))
    ours = apply_views(images, dy, dx, flip, pad, torch.tensor(mean), torch.tensor(std))
    assert ours.is_contiguous()
    assert ours.dtype == torch.float32
    for i in range(162):
        image = TF.pad(Image.fromarray(images[i].squeeze(-1).numpy()), [pad])
        image = TF.crop(image, int(dy[i]), int(dx[i]), 10, 13)
        image = TF.hflip(image) if flip[i] else image
        assert torch.equal(ours[i], TF.normalize(TF.to_tensor(image), mean, std))


def test_views_are_uniform_and_independent() -> None:
    index = torch.arange(40_000)
    first, second = (view_of(3, epoch, index, 4, True) for epoch in (0, 1))
    cells = (first[:, 0] * 9 + first[:, 1]) * 2 + first[:, 2]
    assert stats.chisquare(torch.bincount(cells, minlength=162).numpy()).pvalue > 1e-3
    for a, b in ((first, second), (first, first.roll(1, 0)), (first, view_of(4, 0, index, 4, True))):
        for column, levels in ((0, 9), (1, 9), (2, 2)):
            table = torch.bincount(a[:, column] * levels + b[:, column], minlength=levels**2).reshape(levels, levels)
            assert stats.chi2_contingency(table.numpy()).pvalue > 1e-3
    across_epochs = torch.cat([view_of(0, e, torch.tensor([7]), 4, True) for e in range(3000)])
    for column, levels in ((0, 9), (1, 9), (2, 2)):
        counts = torch.bincount(across_epochs[:, column], minlength=levels)
        assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_orders_are_uniform_permutations() -> None:
    orders = torch.stack([order_of(0, epoch, 50) for epoch in range(4000)])
    assert torch.equal(orders.sort(dim=1).values, torch.arange(50).expand(4000, 50))
    position = orders.argsort(dim=1)[:, 13]
    assert stats.chisquare(torch.bincount(position, minlength=50).numpy()).pvalue > 1e-3
    a, b = order_of(0, 0, 5000), order_of(1, 0, 5000)
    assert stats.spearmanr(a.numpy(), b.numpy()).pvalue > 1e-3
    assert stats.spearmanr(a.numpy(), order_of(0, 1, 5000).numpy()).pvalue > 1e-3


def test_order_and_views_use_independent_bits() -> None:
    index = torch.arange(5000)
    columns = [random_bits(9, 2, stream, index).double() for stream in range(4)]
    correlation = np.corrcoef(torch.stack(columns).numpy())
    assert np.abs(correlation - np.eye(4)).max() < 4 / np.sqrt(5000)
    assert min(c.min() for c in columns) >= 0


@pytest.mark.parametrize("seed", [-1, 0, 2**63, 2**70 + 5])
def test_any_integer_is_a_seed(seed: int) -> None:
    assert torch.equal(order_of(seed, 0, 20).sort().values, torch.arange(20))


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return DatasetConfig(name="digits", pad=1, flip=True).build()


def views_of(data: Dataset, batch_size: int, seed: int = 0, **options: Any) -> Views:
    options = {"augment": True, "pad": data.pad, "flip": data.flip, **options}
    split = data.train
    return Views(split.images, split.labels, batch_size, seed, mean=data.mean, std=data.std, **options)


def joined(batches: Views) -> Batch:
    parts = list(batches)
    return Batch(*(torch.cat([getattr(b, key) for b in parts]) for key in ("x", "y", "index", "view")))


def test_views_do_not_depend_on_the_batch_size_or_the_past(digits: Dataset) -> None:
    a, b = views_of(digits, 64, seed=5), views_of(digits, 7, seed=5)
    for epoch in range(3):
        a.set_epoch(epoch)
        list(a)
    b.set_epoch(2)
    torch.manual_seed(123)
    whole, small = joined(a), joined(b)
    for key in ("x", "y", "index", "view"):
        assert torch.equal(getattr(whole, key), getattr(small, key)), key
    assert torch.equal(whole.index, order_of(5, 2, 1297))
    assert torch.equal(whole.view, view_of(5, 2, whole.index, 1, True))
    assert torch.equal(whole.y, digits.train.labels[whole.index])
    dy, dx, flip = whole.view.unbind(1)
    mean, std = torch.tensor(digits.mean), torch.tensor(digits.std)
    expected = apply_views(digits.train.images[whole.index], dy, dx, flip, 1, mean, std)
    assert torch.equal(whole.x, expected)


def test_a_subset_keeps_the_views_of_its_samples() -> None:
    index = torch.tensor([5, 1, 900])
    assert torch.equal(view_of(1, 1, index, 4, True), view_of(1, 1, torch.arange(1000), 4, True)[index])


def test_seeds_and_epochs_differ(digits: Dataset) -> None:
    seen = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        loader = views_of(digits, 500, seed)
        loader.set_epoch(epoch)
        seen.append(tuple(joined(loader).index.tolist()))
    assert len(set(seen)) == 3


def test_evaluation_is_plain_and_in_order(digits: Dataset) -> None:
    loader = views_of(digits, 500, augment=False)
    batch = joined(loader)
    assert [len(b) for b in loader] == [500, 500, 297]
    assert torch.equal(batch.index, torch.arange(1297))
    assert not batch.view.any()
    assert batch.x.shape == (1297, 1, 8, 8)
    assert batch.x.is_contiguous()
    pixels = digits.train.images.permute(0, 3, 1, 2).double() / 255
    assert torch.allclose(batch.x.double(), (pixels - digits.mean[0]) / digits.std[0], atol=1e-6)


def test_last_batch_blind_and_lazy_epoch(digits: Dataset) -> None:
    full, dropping = views_of(digits, 64), views_of(digits, 64, drop_last=True)
    assert [len(b) for b in full] == [64] * 20 + [17]
    assert [len(b) for b in dropping] == [64] * 20
    assert (len(full), len(dropping)) == (21, 20)
    blind = list(views_of(digits, 64, blind=True))
    assert [len(b) for b in blind] == [64] * 20 + [17]
    assert all(b.x.shape == b.y.shape == (len(b), 0) for b in blind)
    assert (blind[0].x.dtype, blind[0].y.dtype) == (torch.float32, torch.int64)
    epoch = [0]
    lazy = views_of(digits, 64, epoch_of=lambda: epoch[0])
    running = iter(lazy)
    epoch[0] = 4
    first = next(running)
    epoch[0] = 5
    assert torch.equal(torch.cat([first.index, *(b.index for b in running)]), order_of(0, 4, 1297))


@pytest.mark.gpu
def test_views_are_equal_on_a_gpu(digits: Dataset) -> None:
    here, there = joined(views_of(digits, 64)), joined(views_of(digits, 64, device="cuda"))
    for key in ("x", "y", "index", "view"):
        assert torch.equal(getattr(here, key), getattr(there, key).cpu()), key


# --- Lightning --------------------------------------------------------------------------------------------------------


class Recorder(pl.LightningModule):
    """Trains a bias and writes down which samples and views it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(10))
        self.seen: dict[int, list[Batch]] = {}
        self.evaluated: list[tuple[int, int]] = []
        self.automatic_optimization = False

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self.seen.setdefault(self.current_epoch, []).append(batch)
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)
        optimizer.zero_grad()
        self.manual_backward((self.bias + batch.x.mean()).square().sum())
        optimizer.step()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.evaluated.append((dataloader_idx, len(batch)))


def fit(
    module: Recorder,
    data: ArrayData,
    epochs: int,
    ckpt_path: Path | None = None,
    callbacks: list[pl.Callback] | None = None,
) -> None:
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=bool(callbacks),
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)


@pytest.mark.parametrize("before_evaluation", [True, False])
def test_a_trainer_sees_the_views_of_its_epoch_also_after_a_resume(
    digits: Dataset, tmp_path: Path, before_evaluation: bool
) -> None:
    def check(batches: list[Batch], epoch: int) -> None:
        index = torch.cat([b.index for b in batches])
        assert torch.equal(index, order_of(3, epoch, 1297))
        assert torch.equal(torch.cat([b.view for b in batches]), view_of(3, epoch, index, 1, True))

    # Lightning's counters in a checkpoint differ with the hook that wrote it.
    saver = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=before_evaluation)
    whole, resumed = Recorder(), Recorder()
    fit(whole, ArrayData(digits, 64, 3), 3, callbacks=[saver])
    fit(resumed, ArrayData(digits, 64, 3), 3, ckpt_path=tmp_path / "epoch=0.ckpt")
    assert sorted(whole.seen) == [0, 1, 2]
    assert sorted(resumed.seen) == [1, 2]
    for module in (whole, resumed):
        for epoch, batches in module.seen.items():
            check(batches, epoch)
    assert torch.equal(whole.bias, resumed.bias)
    assert whole.evaluated == [(0, 500)] * 3


def test_module_loaders(digits: Dataset) -> None:
    with_val = DatasetConfig(name="digits", val=97).build()
    data = ArrayData(with_val, 32, 0, eval_batch_size=300, drop_last=True)
    assert data.spec is with_val.spec
    assert [len(b) for b in data.train_dataloader()] == [32] * 37  # 1200 of the 1297 are left to train on
    assert [sum(len(b) for b in loader) for loader in data.val_dataloader()] == [500, 97]
    assert [len(b) for b in data.test_dataloader()] == [300, 200]
    module = Recorder()
    fit(module, data, 1)
    assert module.evaluated == [(0, 300), (0, 200), (1, 97)]
    assert len(ArrayData(digits, 64, 0).val_dataloader()) == 1
    loader = ArrayData(digits, 64, 7).train_dataloader()  # without a trainer
    loader.set_epoch(2)
    assert torch.equal(joined(loader).index, order_of(7, 2, 1297))


def test_blind_module_and_no_transfer(digits: Dataset) -> None:
    data = ArrayData(digits, 64, 0, blind=True)
    batch = next(iter(data.train_dataloader()))
    assert batch.x.shape == (64, 0)
    assert data.transfer_batch_to_device(batch, torch.device("cpu"), 0) is batch
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved.x.device.type == "meta"
    a, b = data.train_dataloader(), data.train_dataloader()
    assert a.images.data_ptr() == b.images.data_ptr() == digits.train.images.data_ptr()


def test_canonical_order_sorts_by_digest() -> None:
    assert canonical_order([b"c", b"a", b"b"]).tolist() == [1, 2, 0]
