"""Image files of a data set as arrays, and what is wrong with those that cannot be read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from kdbench.data.folders import Files
from kdbench.data.images import Size, depth_file, mask_file, read_image, read_whole, read_with, upright_size
from kdbench.data.manifest import Seen, digest_of
from kdbench.errors import UserError
from kdbench.text import some

NAMED = 10
"""So many of the files that cannot be read are named."""
MAPS: dict[str, tuple[Callable[[Path], Image.Image], type[np.generic]]] = {
    "segmentation": (mask_file, np.uint8),
    "depth": (depth_file, np.uint16),
}
"""By task, what reads the map that lies beside an image, and the type of its values."""

Pair = tuple[NDArray[np.uint8], NDArray[Any]]
"""Images (N, H, W, C) with their targets."""


def decode(splits: Mapping[str, Files], size: Size, notes: Counter[str]) -> dict[str, Pair]:
    """RGB images (N, height, width, 3) and labels (N,) of each split, see `read_image`.

    Raises:
        UserError: files that cannot be read, or too large a `size`.
    """
    _check_room(sum(map(len, splits.values())), size, 3)
    broken: list[tuple[Path, str]] = []
    parts: dict[str, Pair] = {}
    for split, files in splits.items():
        images = np.empty((len(files), *size, 3), dtype=np.uint8)
        for i, (path, _) in enumerate(files):
            try:
                images[i] = read_image(path, size, notes)
            except ValueError as error:
                broken.append((path, str(error)))
        parts[split] = images, np.array([label for _, label in files], dtype=np.int64)
    _refuse(broken, splits, "images cannot be read")
    return parts


def decode_beside(
    task: str, splits: Mapping[str, Sequence[tuple[Path, Path]]], size: Size | None, notes: Counter[str]
) -> dict[str, Pair]:
    """RGB images (N, height, width, 3) and maps (N, height, width) of each split, see `read_with`.

    Args:
        task: a key of `MAPS`.
        size: None: as large as the images are, all of which must be of one size then.

    Raises:
        UserError: files that cannot be read or do not fit together, images of several sizes, or too large a `size`.
    """
    read, dtype = MAPS[task]
    size = size or _common_size([image for files in splits.values() for image, _ in files])
    _check_room(sum(map(len, splits.values())), size, 3 + np.dtype(dtype).itemsize)
    broken: list[tuple[Path, str]] = []
    parts: dict[str, Pair] = {}
    for split, files in splits.items():
        images, maps = np.empty((len(files), *size, 3), np.uint8), np.empty((len(files), *size), dtype)
        for i, (image, beside) in enumerate(files):
            try:
                images[i], maps[i] = read_with(image, beside, read, size, notes)
            except ValueError as error:
                broken.append((image, str(error)))
        parts[split] = images, maps
    _refuse(broken, splits, "images cannot be read with what lies beside them")
    return parts


def examine(splits: Mapping[str, Files], notes: Counter[str], workers: int) -> dict[str, list[Seen]]:
    """What is known of the image files of each split: all of them are read and decoded, and no pixel is kept.

    Args:
        workers: processes that read them; 0: this one.

    Raises:
        UserError: files that cannot be read.
    """
    files = [path for files in splits.values() for path, _ in files]
    broken: list[tuple[Path, str]] = []
    found: list[Seen] = []
    loader = DataLoader(_Examined(files), batch_size=None, num_workers=workers, collate_fn=_as_it_is)
    for path, (seen, noted) in zip(files, loader, strict=True):
        if isinstance(seen, Seen):
            found.append(seen)
            notes.update(noted)
        else:
            broken.append((path, seen))
    _refuse(broken, splits, "images cannot be read")
    rest = iter(found)
    return {split: [next(rest) for _ in files] for split, files in splits.items()}


class _Examined(TorchDataset[tuple[Seen | str, Counter[str]]]):
    """Of each file what is known of it, or why it cannot be read; and what was assumed."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Seen | str, Counter[str]]:
        notes: Counter[str] = Counter()
        try:
            content = self.paths[i].read_bytes()
            image = read_whole(self.paths[i], content, notes)
        except OSError as error:
            return error.strerror or str(error), notes
        except ValueError as error:
            return str(error), notes
        return Seen(len(content), digest_of(content), image.height, image.width), notes


def _as_it_is(item: Any) -> Any:
    return item


def _common_size(paths: Sequence[Path]) -> Size:
    """The one size of image files; what cannot be read has none."""
    sizes = Counter(size for path in paths if (size := upright_size(path)))
    if len(sizes) > 1:
        (common, n), *_ = sizes.most_common()
        other = next(path for path in paths if upright_size(path) not in (None, common))
        raise UserError(
            f"{len(paths) - n} of {len(paths)} images are not {common[0]}x{common[1]} as the others are, the first is "
            f"{other}: say with --size what to bring them to, as in --size {common[0]}x{common[1]}."
        )
    return next(iter(sizes), (1, 1))


def _check_room(number: int, size: Size, channels: int) -> None:
    need, free = number * size[0] * size[1] * channels, psutil.virtual_memory().available
    if need > free:
        raise UserError(
            f"{number} images of {size[0]}x{size[1]} need {need / 1e9:.1f} GB of memory, of which {free / 1e9:.1f} are "
            "free: choose a smaller --size."
        )


def _refuse(broken: Sequence[tuple[Path, str]], splits: Mapping[str, Sequence[Any]], what: str) -> None:
    """Raise `UserError` if there are broken files: the first with its whole path, the others from the folder of all."""
    if not broken:
        return
    above = Path(os.path.commonpath([path.parent for path, _ in broken]))
    names = [f"{path if k == 0 else path.relative_to(above)} ({why})" for k, (path, why) in enumerate(broken)]
    raise UserError(
        f"{len(broken)} of {sum(map(len, splits.values()))} {what}: {some(names, NAMED)}: mend or remove them."
    )
