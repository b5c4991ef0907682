"""Data sets that need no file: for smoke runs and tests, on a machine without network or data."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from kdbench.data.arrays import Arrays, canonical_order, holdout, sample_digests

if TYPE_CHECKING:  # PyTorch draws them, which whoever only asks for names need not wait for
    from kdbench.data.scenes import Scenes

TRAIN, TEST = 400, 200
"""Numbers of scenes."""


@lru_cache(maxsize=1)
def digits() -> Arrays:
    """scikit-learn's 1797 grey 8x8 digits (the test part of UCI Optdigits), grey levels 0..16 scaled to 0..255.

    The test split is 500 stratified images, chosen by content: the last of each class in the order of their digests.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    labels = bunch.target.astype(np.int64)
    order = canonical_order(sample_digests(images, labels))
    images, labels = images[order], labels[order]
    test = holdout(labels, 500)
    classes = tuple(str(c) for c in bunch.target_names)
    source = "scikit-learn load_digits: UCI Optdigits, test part (Alpaydin and Kaynak 1998)"
    return Arrays(
        "digits",
        images[~test],
        labels[~test],
        images[test],
        labels[test],
        classes,
        {"classes": classes, "source": source},
    )


@lru_cache(maxsize=1)
def digits_m() -> Arrays:
    """`digits` in another domain, made as MNIST-M is of MNIST (Ganin et al., JMLR 2016): ``|background - digit|``.

    Each background is a smooth patch of its own, of the darker half of the grey levels: with all of them, whoever knows
    `digits` is hardly better than chance here. The images stand in the order of `digits` and are paired with them.
    """
    from kdbench.data.scenes import patches

    plain = digits()
    images = {
        split: abs(patches(len(grey), grey.shape[1], seed) // 2 - grey[..., 0]).astype(np.uint8)[..., None]
        for seed, (split, grey) in enumerate((split, plain.split(split)[0]) for split in plain.splits)
    }
    return Arrays(
        "digits_m",
        images["train"],
        plain.train_labels,
        images["test"],
        plain.test_labels,
        plain.classes,
        {"classes": plain.classes, "source": f"{plain.meta['source']}, on smooth backgrounds"},
        pairs={"digits": {split: np.arange(len(images[split])) for split in plain.splits}},
    )


@lru_cache(maxsize=1)
def _scenes() -> tuple[Scenes, Scenes]:
    from kdbench.data.scenes import scenes

    return scenes(TRAIN, seed=0), scenes(TEST, seed=1)


@lru_cache(maxsize=3)
def shapes(task: str) -> Arrays:
    """Scenes of shapes (see `kdbench.data.scenes`) with what one task asks for: the same images for every task."""
    from kdbench.data.scenes import SHAPES

    train, test = _scenes()
    part = {"segmentation": "masks", "depth": "depth", "detection": "boxes"}[task]
    classes = {"segmentation": ("background", *SHAPES), "depth": (), "detection": SHAPES}[task]
    meta: dict[str, Any] = {"classes": classes, "source": "scenes of shapes, drawn from a seed"}
    targets = getattr(train, part), getattr(test, part)
    return Arrays(f"shapes_{part}", train.images, targets[0], test.images, targets[1], classes, meta, task=task)


EMBEDDED: dict[str, Callable[[], Arrays]] = {
    "digits": digits,
    "digits_m": digits_m,
    "shapes_masks": partial(shapes, "segmentation"),
    "shapes_depth": partial(shapes, "depth"),
    "shapes_boxes": partial(shapes, "detection"),
}
