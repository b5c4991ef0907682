"""Prepared data sets: folders of memory-mappable arrays, checked when read.

A prepared data set is the folder ``ROOT/NAME`` with, for each SPLIT of ``train``, ``test`` and, where the data have a
validation split of their own, ``val``, the inputs and the targets of one task:

* classification: ``SPLIT_images.npy``, uint8, (N, H, W, C), and ``SPLIT_labels.npy``, int64, (N,), classes from 0;
* segmentation: images and ``SPLIT_masks.npy``, uint8, (N, H, W), class indices;
* depth: images and ``SPLIT_depth.npy``, uint16, (N, H, W), millimetres, 0 where there is no reading;
* detection: images and ``SPLIT_boxes.npy``, float32, (M, 6): image of the split, class, x0, y0, x1, y1 in pixels;
* translation: ``SPLIT_inputs.npy`` and ``SPLIT_targets.npy``, uint8, (N, H, W, C);
* video: ``SPLIT_clips.npy``, uint8, (N, T, H, W, C), and labels;

and ``meta.json``, an object with

* ``classes``: their names, in order (where a task has classes), and ``source``;
* ``task``: only where the files leave a doubt (a set with labels is one of classification, whatever lies beside them);
* ``ignore_index``: of masks, the value of pixels without a label;
* ``prepared``: what `kdbench.data.prepare` made: its hashes are compared whenever the data are used.

``SPLIT_OTHER_index.npy``, int64, (N,), pairs each sample with one of the same split of the data set OTHER. Labelled
images may lie there unsplit, as ``images.npy`` and ``labels.npy``: see `unsplit`. Other keys and files are left alone.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from hashlib import blake2b, sha256
from pathlib import Path
from stat import S_ISDIR
from typing import Any
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from kdbench.data.kinds import IGNORE, KINDS, Kind, padded, row_fault, target_fault
from kdbench.errors import Unreadable, UserError
from kdbench.paths import conf_dir, data_root

SPLITS = ("train", "test")
MANIFEST = "manifest.csv"
"""What a folder holds instead of arrays whose images are streamed, see `kdbench.data.manifest`."""
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
        train_images, test_images: the inputs of the task, uint8, (N, H, W, C); clips are (N, H, W, T * C).
        train_labels, test_labels: its targets: labels int64, (N,); masks uint8, (N, H, W); depth uint16, (N, H, W);
            boxes float32, (N, M, 5), a box as (class, x0, y0, x1, y1) and class -1 where an image has fewer than M;
            pictures uint8, (N, H, W, C).
        val_images, val_labels: the same; None where the data have no validation split of their own.
        classes: the name of each class index, composed (NFC); empty for tasks without classes.
        meta: the content of ``meta.json``.
        folder: where it lies; None for the embedded data sets.
        task: see `kdbench.data.kinds.KINDS`.
        frames: of a clip; 1 where inputs are images.
        pairs: by the name of another data set and by split, which of its samples belongs to each sample: int64, (N,).
    """

    name: str
    train_images: NDArray[np.uint8]
    train_labels: NDArray[Any]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[Any]
    classes: tuple[str, ...]
    meta: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    val_images: NDArray[np.uint8] | None = None
    val_labels: NDArray[Any] | None = None
    task: str = "classification"
    frames: int = 1
    pairs: Mapping[str, Mapping[str, NDArray[np.int64]]] = field(default_factory=dict)

    @property
    def splits(self) -> tuple[str, ...]:
        """``train``, ``test`` and, if there is one, ``val``."""
        return SPLITS if self.val_labels is None else (*SPLITS, "val")

    def split(self, name: str) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """Inputs and targets of one of the `splits`."""
        return getattr(self, f"{name}_images"), getattr(self, f"{name}_labels")

    @property
    def kind(self) -> Kind:
        """What the arrays of the task hold."""
        return KINDS[self.task]

    @property
    def outputs(self) -> int:
        """How many values a network gives (dense tasks: for a pixel): one for each class, a depth, or the channels."""
        return self.train_labels.shape[3] if self.task == "translation" else len(self.classes) or 1

    @property
    def ignore(self) -> int | None:
        """The value of a mask's pixels without a label, if there is one."""
        return self.meta.get("ignore_index")

    @cached_property
    def digests(self) -> dict[str, list[bytes]]:
        """The digest of every sample of each split, in the order of the arrays."""
        return {name: sample_digests(*self.split(name)) for name in self.splits}

    @cached_property
    def content_hash(self) -> str:
        """64 hex digits that do not depend on the order of the samples.

        The sha256 of a line ``SPLIT N H W C DIGEST`` per split, where DIGEST is the sha256 of its sorted `digests`; a
        task other than classification stands in front of each line.
        """
        total = sha256()
        task = "" if self.task == "classification" else f"{self.task} "
        for name in self.splits:
            shape = " ".join(map(str, self.split(name)[0].shape))
            digest = sha256(b"".join(sorted(self.digests[name]))).hexdigest()
            total.update(f"{task}{name} {shape} {digest}\n".encode())
        return total.hexdigest()

    @property
    def prepared(self) -> Mapping[str, Any]:
        """What ``meta.json`` says of how the data were prepared: nothing, where an older kdbench or a hand did it."""
        prepared = self.meta.get("prepared")
        return prepared if isinstance(prepared, Mapping) else {}


def classes_hash(names: Sequence[str]) -> str:
    """64 hex digits for class names in the order of their labels: the sha256 of their JSON list, in ASCII."""
    return sha256(json.dumps(list(names)).encode()).hexdigest()


def sample_digests(images: NDArray[np.uint8], targets: NDArray[Any]) -> list[bytes]:
    """For each sample, the 16-byte blake2b of its pixels (H, W, C order) and its target, little-endian.

    A label has 8 bytes; of boxes, those that are there count, in the order that `kdbench.data.kinds.padded` gives them.
    """
    pixels = np.ascontiguousarray(images).reshape(-1).data
    tags = targets.astype(targets.dtype.newbyteorder("<"), copy=False)
    size = images[0].size
    digests = []
    for i in range(len(images)):
        digest = blake2b(pixels[i * size : (i + 1) * size], digest_size=16)
        tag = tags[i]
        boxes = tags.dtype.kind == "f"
        digest.update((tag[tag[:, 0] >= 0] if boxes else tag).tobytes())
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
    """The prepared data set `name` under `root`, or an embedded one, hashed and compared with what is known.

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
    from kdbench.data.embedded import EMBEDDED  # which is made of what stands here

    if name in EMBEDDED:
        return EMBEDDED[name]()
    folder = folder_of(name, root)
    if (folder / MANIFEST).is_file():
        raise UserError(
            f"{folder} streams its images from files, and arrays of them are needed here: prepare the same images once "
            "more, without --stream and under another --name."
        )
    return _read(*_stamp(folder))


def prepared(name: str, root: str | Path | None = None) -> bool:
    """Whether the data set `name` is there: embedded, or a prepared folder under `root`, right or not."""
    from kdbench.data.embedded import EMBEDDED

    return name in EMBEDDED or (folder_of(name, root) / "meta.json").is_file()


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
    if name == "streamed":
        return "`kdbench data prepare folder --stream --source DIR`"
    if name != "folder" and (conf_dir() / "dataset" / f"{name}.yaml").is_file():
        return f"`kdbench data prepare {name}`"
    return f"`kdbench data prepare folder --source DIR --name {name}`"


def _stamp(folder: Path) -> tuple[Path, tuple[tuple[str, int, int], ...]]:
    """The folder with the size and time of each of its files, so that a second `load` of the same files is free."""
    stamps = []
    try:
        if not S_ISDIR(folder.stat().st_mode):
            raise UserError(f"{folder} is no folder: move it away and run {prepare_command(folder.name)}.")
        for file in os.listdir(folder):
            if file.endswith(".npy") or file == "meta.json":
                with suppress(FileNotFoundError):  # a link that leads nowhere: who needs the file will miss it
                    stat = (folder / file).stat()
                    stamps.append((file, stat.st_size, stat.st_mtime_ns))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"the data set '{folder.name}' is not in {folder.parent} ($KDBENCH_DATA or dataset.root choose another "
            f"folder): run {prepare_command(folder.name)}."
        ) from error
    except OSError as error:
        raise Unreadable(folder, error) from error
    return folder, tuple(sorted(stamps))


@lru_cache(maxsize=8)
def _read(folder: Path, stamp: tuple[tuple[str, int, int], ...]) -> Arrays:
    there = {file for file, _, _ in stamp}
    meta = read_meta(folder / "meta.json")
    kind = _kind(folder, meta, there)
    classes = read_classes(folder / "meta.json", meta, kind)
    _settings(folder / "meta.json", meta, kind, classes)
    parts = _parts(folder, kind, classes, there)
    arrays = Arrays(folder.name, **parts, classes=classes, meta=meta, folder=folder, task=kind.task)
    check(arrays)
    return replace(arrays, pairs=_pairs(arrays, folder, there))


def _kind(folder: Path, meta: Mapping[str, Any], there: set[str]) -> Kind:
    """The kind of data that ``meta.json`` or else the files say."""

    def has(part: str) -> bool:
        return any(f"{split}_{part}.npy" in there for split in ("train", "test", "val"))

    task = meta.get("task")
    if task is not None:
        if task not in KINDS:
            raise _corrupt(folder / "meta.json", f'has the "task" {task!r}, which is none of {", ".join(KINDS)}')
        return KINDS[task]
    labelled = KINDS["classification"]
    found = [kind for kind in KINDS.values() if kind is not labelled and has(kind.mark)]
    if not found or (has(labelled.inputs) and has(labelled.targets)):
        return labelled
    if len(found) > 1:
        raise UserError(
            f"{folder} has files of {' and '.join(kind.task for kind in found)}: say which is meant in its meta.json, "
            f'as "task": "{found[0].task}".'
        )
    return found[0]


def _parts(folder: Path, kind: Kind, classes: tuple[str, ...], there: set[str]) -> dict[str, Any]:
    """The arrays by the names that `Arrays` gives them, and the frames of a clip."""
    if kind.task == "classification" and "images.npy" in there and "train_images.npy" not in there:
        whole = _array(folder / "images.npy"), _array(folder / "labels.npy")
        _check_split(folder, "", kind, *whole, classes, None)
        return unsplit(*whole, classes)
    arrays = kind.inputs, kind.targets
    splits = [*SPLITS, *(["val"] if there.intersection(f"val_{part}.npy" for part in arrays) else [])]
    files = {split: [folder / f"{split}_{part}.npy" for part in arrays] for split in splits}
    inputs: dict[str, NDArray[Any]] = {split: _array(files[split][0]) for split in splits}
    targets: dict[str, NDArray[Any]] = {split: _array(files[split][1]) for split in splits}
    parts: dict[str, Any] = {}
    if kind.task == "video":
        for split, clips in inputs.items():
            _check_array(files[split][0], clips, np.dtype(np.uint8), "(N, T, H, W, C)")
            parts.setdefault("frames", clips.shape[1])
            if clips.shape[1] != parts["frames"]:
                what = f"has clips of {clips.shape[1]} frames, the training clips have {parts['frames']}"
                raise _corrupt(files[split][0], what)
            n, _, height, width, _ = clips.shape
            inputs[split] = np.moveaxis(clips, 1, 3).reshape(n, height, width, -1)
    if kind.task == "detection":
        for split, rows in targets.items():
            _check_array(files[split][0], inputs[split], np.dtype(np.uint8), "(N, H, W, C)")
            _check_array(files[split][1], rows, np.dtype(np.float32), "(M, 6)")
            if fault := row_fault(rows, len(inputs[split])):
                raise _corrupt(files[split][1], fault)
        most = max(int(np.bincount(rows[:, 0].astype(np.int64)).max()) for rows in targets.values())
        targets = {split: padded(rows, len(inputs[split]), most) for split, rows in targets.items()}
    for split in splits:
        parts[f"{split}_images"], parts[f"{split}_labels"] = inputs[split], targets[split]
    return parts


def unsplit(images: NDArray[np.uint8], labels: NDArray[np.int64], classes: Sequence[str]) -> dict[str, Any]:
    """Training and test split of labelled images that lie there unsplit, by the names that `Arrays` gives them.

    Where all classes are called ``GROUP/NAME``, as the characters of an alphabet are, the last groups that hold at most
    a quarter of the classes (but at least one) are the test split: its classes are new ones, which few-shot learning
    asks for. Else it is a fifth of each class, the last by content.
    """
    groups = [name.partition("/")[0] for name in classes]
    if len(set(groups)) > 1 and all("/" in name for name in classes):
        names = sorted(set(groups))
        sizes = np.cumsum([groups.count(name) for name in reversed(names)])
        chosen = names[-max(1, int((sizes <= len(classes) / 4).sum())) :]
        held = np.array([group in chosen for group in groups])[labels]
    else:
        order = canonical_order(sample_digests(images, labels))
        images, labels = images[order], labels[order]
        held = holdout(labels, round(len(labels) / 5))
    train, test = ~held, held
    parts = {"train_images": images[train], "train_labels": labels[train]}
    return {**parts, "test_images": images[test], "test_labels": labels[test]}


def _pairs(arrays: Arrays, folder: Path, there: set[str]) -> dict[str, dict[str, NDArray[np.int64]]]:
    """The pairings with other data sets, by their names and by split."""
    pairs: dict[str, dict[str, NDArray[np.int64]]] = {}
    for file in sorted(there):
        split, _, other = file.removesuffix("_index.npy").partition("_")
        if not file.endswith("_index.npy") or split not in arrays.splits or not is_name(other):
            continue
        index, n = _array(folder / file), len(arrays.split(split)[1])
        _check_array(folder / file, index, np.dtype(np.int64), "(N,)")
        if len(index) != n:
            raise _corrupt(folder / file, f"has {len(index)} pairs for {n} samples")
        if index.min() < 0:
            raise _corrupt(folder / file, f"points to sample {index.min()} of {other}, whose first is 0")
        pairs.setdefault(other, {})[split] = index
    return pairs


def paired(arrays: Arrays, other: Arrays) -> Mapping[str, NDArray[np.int64]]:
    """By split, which sample of `other` belongs to each sample of `arrays`, int64, (N,).

    Raises:
        UserError: `arrays` has no pairs with `other`, or some that point nowhere or, where both sets have the same
            classes, to a sample of another class.
    """
    pairs = arrays.pairs.get(other.name, {})
    for split in arrays.splits:
        path = (arrays.folder or Path(arrays.name)) / f"{split}_{other.name}_index.npy"
        if split not in pairs or split not in other.splits:
            raise UserError(
                f"{arrays.name} does not say which {split} image of {other.name} belongs to each of its own: give the "
                f"numbers in {path}, or take another data set."
            )
        index, n = pairs[split], len(other.split(split)[1])
        if index.max() >= n:
            raise _corrupt(path, f"points to sample {index.max()} of {other.name}, whose last is {n - 1}")
        if arrays.kind.classes and other.kind.classes and arrays.classes == other.classes:
            unlike = int((other.split(split)[1][index] != arrays.split(split)[1]).sum())
            if unlike:
                raise _corrupt(path, f"pairs {unlike} samples with one of another class of {other.name}")
    return pairs


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Tell what is missing, or of the wrong kind, from what cannot be read."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise _corrupt(path, f"cannot be read ({error.strerror})") from error
    except OSError as error:
        raise Unreadable(path, error) from error


def read_meta(path: Path) -> dict[str, Any]:
    """The content of a ``meta.json``; nothing where it is no object."""
    try:
        with _reading(path):
            meta = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"is not valid JSON ({error})") from error
    return meta if isinstance(meta, dict) else {}


def read_classes(path: Path, meta: Mapping[str, Any], kind: Kind) -> tuple[str, ...]:
    """The class names in the content of the ``meta.json`` that lies at `path`, composed (NFC)."""
    if not kind.named:
        return ()
    classes = meta.get("classes")
    least, words = (1, "one or more") if kind.task == "detection" else (2, "two or more")
    if not isinstance(classes, list) or not all(isinstance(c, str) for c in classes) or len(set(classes)) < least:
        raise _corrupt(path, f'has no list of {words} class names under "classes"')
    names = tuple(normalize("NFC", name) for name in classes)
    if len(set(names)) != len(classes):
        raise _corrupt(path, "names a class twice")
    return names


def _settings(path: Path, meta: Mapping[str, Any], kind: Kind, classes: tuple[str, ...]) -> None:
    """Whether what ``meta.json`` says of the targets is something that is understood."""
    if kind.task == "segmentation":
        ignore = meta.get("ignore_index")
        if len(classes) > IGNORE:
            raise _corrupt(path, f"names {len(classes)} classes, but masks hold at most {IGNORE}")
        if ignore is not None and not (type(ignore) is int and len(classes) <= ignore <= 255):
            raise _corrupt(path, f'has the "ignore_index" {ignore!r}, which must be one of {len(classes)}..255')
    if kind.task == "depth" and (meta.get("depth_unit", "mm"), meta.get("depth_missing", 0)) != ("mm", 0):
        raise _corrupt(
            path, 'has another "depth_unit" than "mm" or another "depth_missing" than 0, which alone are read'
        )


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
        UserError: wrong dtype or shape, counts that differ, no samples, or targets that cannot be: labels out of range,
            masks of another size than their images, boxes outside of them, ...
    """
    folder = arrays.folder or Path(arrays.name)
    for name in arrays.splits:
        images, labels = arrays.split(name)
        _check_split(folder, f"{name}_", arrays.kind, images, labels, arrays.classes, arrays.ignore)
        if images.shape[1:] != arrays.train_images.shape[1:]:
            raise _corrupt(
                folder / f"{name}_{arrays.kind.inputs}.npy",
                f"has images of {images.shape[1:]}, the training images are {arrays.train_images.shape[1:]}",
            )


def _check_split(
    folder: Path,
    prefix: str,
    kind: Kind,
    images: NDArray[Any],
    labels: NDArray[Any],
    classes: Sequence[str],
    ignore: int | None,
) -> None:
    _check_array(folder / f"{prefix}{kind.inputs}.npy", images, np.dtype(np.uint8), "(N, H, W, C)")
    path = folder / f"{prefix}{kind.targets}.npy"
    _check_array(path, labels, np.dtype(kind.dtype), kind.held)
    if fault := target_fault(kind.task, images, labels, classes, ignore):
        raise _corrupt(path, fault)


def _check_array(path: Path, array: NDArray[Any], dtype: np.dtype[Any], shape: str) -> None:
    if array.dtype != dtype or array.ndim != len(shape.split()) or array.size == 0:
        raise _corrupt(path, f"holds {array.dtype} {array.shape}, not {dtype} {shape}")


def _corrupt(path: Path, what: str) -> UserError:
    return UserError(
        f"{path} {what}: delete the folder {path.parent} and run {prepare_command(path.parent.name)} to make it anew."
    )
