"""What the values of a user's masks and depth maps mean, and which of them cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdbench.data.beside import Beside
from kdbench.data.decode import Pair
from kdbench.data.kinds import IGNORE
from kdbench.errors import UserError


def classes_of(folder: Beside, parts: Mapping[str, Pair], told: list[str]) -> tuple[str, ...]:
    """Names for the classes of masks that nobody named, 0 to the highest value but `IGNORE`.

    Where there is nothing but 0 and 255 in any mask, 255 is not `IGNORE` but the one class beside the background: it is
    replaced by 1.

    Args:
        told: is told what was assumed.

    Raises:
        UserError: there is no other value than 0.
    """
    counts = sum(
        (np.bincount(masks.reshape(-1), minlength=256) for _, masks in parts.values()), np.zeros(256, np.int64)
    )
    found = np.flatnonzero(counts).tolist()
    if found == [0, IGNORE]:
        for _, masks in parts.values():
            masks[masks == IGNORE] = 1
        told.append(f"masks hold 0 and {IGNORE} alone, which became the classes background and foreground")
        return "background", "foreground"
    highest = max((value for value in found if value != IGNORE), default=0)
    if highest == 0:
        first = folder.files[next(iter(parts))][0][1]
        raise UserError(f"no mask, as {first}, shows two classes: give masks with a class index in each pixel.")
    told.append(f"classes 0..{highest}, by the highest value of any mask: name them in classes.txt, one a line")
    return tuple(f"class {k}" for k in range(highest + 1))


def check_masks(folder: Beside, parts: Mapping[str, Pair], classes: int, ignore: int) -> None:
    """Whether masks hold class indices and `ignore` alone, and each of them a labelled pixel.

    Raises:
        UserError: one of them does not.
    """
    known = np.zeros(256, dtype=np.bool_)
    known[:classes] = known[ignore] = True
    what = f"hold other values than the classes 0..{classes - 1} and {ignore} (no label)"
    _refuse(folder, parts, lambda mask: not known[mask].all(), "masks", what)
    _refuse(folder, parts, lambda mask: bool((mask == ignore).all()), "masks", "have no labelled pixel")


def check_depth(folder: Beside, parts: Mapping[str, Pair]) -> None:
    """Whether each depth map has a reading.

    Raises:
        UserError: one of them has none.
    """
    _refuse(folder, parts, lambda depth: not depth.any(), "depth maps", "have no reading")


def _refuse(
    folder: Beside, parts: Mapping[str, Pair], wrong: Callable[[NDArray[Any]], bool], these: str, what: str
) -> None:
    paths: list[Path] = []
    for split, (_, maps) in parts.items():
        paths += [path for (_, path), values in zip(folder.files[split], maps, strict=True) if wrong(values)]
    if paths:
        number = sum(map(len, folder.files.values()))
        raise UserError(f"{len(paths)} of {number} {these} {what}, the first is {paths[0]}: mend or remove them.")
