"""What the arrays of a prepared data set hold, task by task, and what can be wrong with its targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench.text import many

IGNORE = 255
"""The value of a mask's pixels that nobody labelled, once they are tensors: PASCAL VOC's, and after it most sets'."""


@dataclass(frozen=True)
class Kind:
    """The arrays of one task.

    Attributes:
        task: as `kdbench.tasks` calls it.
        inputs, targets: the files' names behind ``train_``, ``val_`` and ``test_``.
        dtype, held: type and shape of the targets, once they are read; inputs are uint8, (N, H, W, C).
        mark: the array that tells the task from others.
        named: whether there are classes.
    """

    task: str
    inputs: str
    targets: str
    dtype: type[np.generic]
    held: str
    mark: str
    named: bool = True

    @property
    def classes(self) -> bool:
        """Whether every sample is of one class, so that a set can be cut by classes."""
        return self.targets == "labels"


KINDS = {
    kind.task: kind
    for kind in (
        Kind("classification", "images", "labels", np.int64, "(N,)", "labels"),
        Kind("segmentation", "images", "masks", np.uint8, "(N, H, W)", "masks"),
        Kind("depth", "images", "depth", np.uint16, "(N, H, W)", "depth", named=False),
        Kind("detection", "images", "boxes", np.float32, "(N, M, 5)", "boxes"),
        Kind("translation", "inputs", "targets", np.uint8, "(N, H, W, C)", "targets", named=False),
        Kind("video", "clips", "labels", np.int64, "(N,)", "clips"),
    )
}
"""The kinds of data by task. Where a folder does not say its task, the first is meant whose arrays it holds."""


def padded(rows: NDArray[np.float32], n: int, most: int) -> NDArray[np.float32]:
    """Boxes of `n` images, (M, 6) as (image, class, x0, y0, x1, y1), as (n, most, 5) without the image.

    The boxes of an image are sorted; what is left over has the class -1.
    """
    boxes = np.zeros((n, most, 5), dtype=np.float32)
    boxes[..., 0] = -1
    image = rows[:, 0].astype(np.int64)
    order = np.lexsort(rows.T[::-1])
    counts = np.bincount(image, minlength=n)
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    boxes[image[order], place] = rows[order, 1:]
    return boxes


def row_fault(rows: NDArray[np.float32], n: int) -> str | None:
    """What is wrong with boxes as they lie on disk, before it is looked into the images that they belong to."""
    if rows.shape[1] != 6:
        return f"has rows of {rows.shape[1]} values, not 6 (image, class, x0, y0, x1, y1)"
    if not np.isfinite(rows).all():
        return f"has {count(np.logical_not(np.isfinite(rows).all(axis=1)), 'box')} with values that are not finite"
    image = rows[:, 0]
    if len(rows) and not (image == np.floor(image)).all():
        return "has boxes whose first value, the number of an image, is no whole number"
    astray = (image < 0) | (image >= n)
    if astray.any():
        return f"has {count(astray, 'box')} of images {image.min():g}..{image.max():g}, but its images are 0..{n - 1}"
    if (rows[:, 1] < 0).any():
        return f"has {count(rows[:, 1] < 0, 'box')} of a class below 0"
    return None


def targets_of(task: str, targets: NDArray[Any], ignore: int | None) -> NDArray[Any]:
    """Targets as tensors hold them.

    Masks become int64 with `IGNORE` where there is no label, depth float32 in metres (0 where there is no reading), and
    pictures (N, C, H, W); labels and boxes stay as they are.

    Args:
        ignore: the value of a mask's pixels without a label, if there is one.
    """
    match task:
        case "segmentation":
            masks = targets.astype(np.int64)
            return masks if ignore is None else np.where(masks == ignore, IGNORE, masks)
        case "depth":
            return targets.astype(np.float32) / np.float32(1000)
        case "translation":
            return np.ascontiguousarray(targets.transpose(0, 3, 1, 2))
    return targets


def target_fault(
    task: str, images: NDArray[np.uint8], targets: NDArray[Any], classes: Sequence[str], ignore: int | None
) -> str | None:
    """What is wrong with targets of the right type and number of axes, as the end of a sentence; None if nothing is.

    Args:
        images: (N, H, W, C).
        targets: as `kdbench.data.arrays.Arrays` has them (boxes are padded).
        ignore: the value of pixels without a label, if there is one.
    """
    if len(targets) != len(images):
        return f"has {len(targets)} {KINDS[task].targets} for {len(images)} images"
    return FAULTS[task](images, targets, classes, ignore)


def _labels(images: NDArray[Any], labels: NDArray[Any], classes: Sequence[str], ignore: int | None) -> str | None:
    last = len(classes) - 1
    if labels.min() < 0 or labels.max() > last:
        return f"has labels {labels.min()}..{labels.max()}, but its classes are 0..{last}"
    return None


def _masks(images: NDArray[Any], masks: NDArray[Any], classes: Sequence[str], ignore: int | None) -> str | None:
    if fault := _other_size(images, masks):
        return fault
    allowed = {*range(len(classes)), *([] if ignore is None else [ignore])}
    unlabelled = np.zeros(len(masks), dtype=np.bool_)
    for i, mask in enumerate(masks):
        found = np.flatnonzero(np.bincount(mask.reshape(-1), minlength=256))
        if not allowed.issuperset(found.tolist()):
            odd = next(value for value in found.tolist() if value not in allowed)
            known = f"0..{len(classes) - 1}" + ("" if ignore is None else f" and {ignore} (no label)")
            return f"has the value {odd} in mask {i}, but its classes are {known}"
        unlabelled[i] = found.tolist() == [ignore]
    return f"has {count(unlabelled, 'mask')} without any labelled pixel" if unlabelled.any() else None


def _depth(images: NDArray[Any], depth: NDArray[Any], classes: Sequence[str], ignore: int | None) -> str | None:
    if fault := _other_size(images, depth):
        return fault
    empty = np.array([not a.any() for a in depth])
    return f"has {count(empty, 'depth map')} without any reading" if empty.any() else None


def _boxes(images: NDArray[Any], boxes: NDArray[Any], classes: Sequence[str], ignore: int | None) -> str | None:
    height, width = images.shape[1:3]
    there = boxes[..., 0] != -1
    label, x0, y0, x1, y1 = np.moveaxis(boxes, 2, 0)
    last = len(classes) - 1
    checks = (
        ("of a class that is no whole number", label != np.floor(label)),
        (f"of a class outside of 0..{last}", label > last),
        ("without height or width (x0 < x1 and y0 < y1 are needed)", (x0 >= x1) | (y0 >= y1)),
        (f"outside of its image of {height}x{width}", (x0 < 0) | (y0 < 0) | (x1 > width) | (y1 > height)),
    )
    for what, wrong in checks:
        if (wrong & there).any():
            first = int(np.flatnonzero((wrong & there).any(axis=1))[0])
            return f"has {count(wrong & there, 'box')} {what}, the first in image {first}"
    return None


def _other_size(images: NDArray[Any], targets: NDArray[Any]) -> str | None:
    if targets.shape[1:3] == images.shape[1:3]:
        return None
    sizes = ("x".join(map(str, a.shape[1:3])) for a in (targets, images))
    return "is of {}, but its images are {}".format(*sizes)


def _pictures(images: NDArray[Any], targets: NDArray[Any], classes: Sequence[str], ignore: int | None) -> str | None:
    return _other_size(images, targets)


FAULTS: dict[str, Callable[[NDArray[Any], NDArray[Any], Sequence[str], int | None], str | None]] = {
    "classification": _labels,
    "video": _labels,
    "segmentation": _masks,
    "depth": _depth,
    "detection": _boxes,
    "translation": _pictures,
}


def count(marked: NDArray[np.bool_], word: str) -> str:
    """How many are marked: ``1 box``, ``2 boxes``."""
    return many(int(marked.sum()), word)
