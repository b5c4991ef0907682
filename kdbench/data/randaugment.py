"""RandAugment (Cubuk et al., NeurIPS 2020, arXiv:1909.13719) as torchvision has it, with numbers that are drawn before.

Operations, ranges and pixels are those of ``torchvision.transforms.v2.RandAugment`` of PIL images
(``_auto_augment.py``, ``_AUGMENTATION_SPACE``): 14 operations, of which each turn takes any with the same probability,
magnitudes in 31 steps, a random sign where there is one, nearest neighbours, and black where nothing is. Which
operations, and which signs, follows from an image's random bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from PIL.Image import Image
from pydantic import ConfigDict, Field, StrictInt
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from kdbench.draws import random_bits
from kdbench.sparse import Sparse

STEPS = 31
"""Of magnitudes, from 0 to 30: ``num_magnitude_bins``."""


class RandAugment(Sparse):
    """How much training images are changed.

    Attributes:
        ops: how many operations, one after the other.
        magnitude: of all of them; both defaults are torchvision's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    ops: StrictInt = Field(default=2, ge=1)
    magnitude: StrictInt = Field(default=9, ge=0, lt=STEPS)


def _sheared(image: Image, *slopes: float) -> Image:
    """About its corner."""
    angles = [math.degrees(math.atan(slope)) for slope in slopes]
    return TF.affine(image, angle=0.0, translate=[0, 0], scale=1.0, shear=angles, center=[0, 0])


def _shifted(image: Image, *pixels: float) -> Image:
    return TF.affine(image, angle=0.0, translate=[int(each) for each in pixels], scale=1.0, shear=[0.0, 0.0])


SIGNED: dict[str, tuple[Callable[[Image], float], Callable[[Image, float], Image]]] = {
    "ShearX": (lambda _: 0.3, lambda image, slope: _sheared(image, slope, 0.0)),
    "ShearY": (lambda _: 0.3, lambda image, slope: _sheared(image, 0.0, slope)),
    "TranslateX": (lambda image: 150 / 331 * image.width, lambda image, pixels: _shifted(image, pixels, 0)),
    "TranslateY": (lambda image: 150 / 331 * image.height, lambda image, pixels: _shifted(image, 0, pixels)),
    "Rotate": (lambda _: 30.0, lambda image, degrees: TF.rotate(image, degrees)),
    "Brightness": (lambda _: 0.9, lambda image, more: TF.adjust_brightness(image, 1 + more)),
    "Color": (lambda _: 0.9, lambda image, more: TF.adjust_saturation(image, 1 + more)),
    "Contrast": (lambda _: 0.9, lambda image, more: TF.adjust_contrast(image, 1 + more)),
    "Sharpness": (lambda _: 0.9, lambda image, more: TF.adjust_sharpness(image, 1 + more)),
}
"""Up to how much, and what is done by so much of it, either way."""
UNSIGNED: dict[str, Callable[[Image, int], Image]] = {
    "Identity": lambda image, _: image,
    "Posterize": lambda image, magnitude: TF.posterize(image, 8 - round(4 * magnitude / (STEPS - 1))),
    "Solarize": lambda image, magnitude: TF.solarize(image, 255 * _level(1.0, 0.0, magnitude)),
    "AutoContrast": lambda image, _: TF.autocontrast(image),
    "Equalize": lambda image, _: TF.equalize(image),
}
"""What is done by a magnitude that has no sign."""
OPERATIONS = (*SIGNED, *UNSIGNED)


def _level(first: float, last: float, magnitude: int) -> float:
    """In float32, as there: half a grey level may depend on it."""
    return float(torch.linspace(first, last, STEPS)[magnitude])


def operations_of(bits: Tensor, ops: int) -> tuple[Tensor, Tensor]:
    """Which of `OPERATIONS` the random bits of images, int64, (N,), choose, and with which sign, 0 or 1: (N, ops)
    each."""
    which = torch.stack([random_bits(0, 1, turn, bits) % len(OPERATIONS) for turn in range(ops)], dim=1)
    return which, torch.stack([random_bits(0, 2, turn, bits) % 2 for turn in range(ops)], dim=1)


def operated(image: Image, operation: str, magnitude: int, negative: bool) -> Image:
    """One of `OPERATIONS` on an image of RGB."""
    if operation in UNSIGNED:
        return UNSIGNED[operation](image, magnitude)
    most, change = SIGNED[operation]
    much = _level(0.0, most(image), magnitude)
    return change(image, -much if negative else much)


def augmented(image: Image, bits: int, settings: RandAugment) -> Image:
    """An image of RGB as its random bits change it."""
    which, signs = operations_of(torch.tensor([bits]), settings.ops)
    for k, negative in zip(which[0].tolist(), signs[0].tolist(), strict=True):
        image = operated(image, OPERATIONS[k], settings.magnitude, bool(negative))
    return image
