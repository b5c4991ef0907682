"""Views of images of any size: a crop of random size and shape, flipped, its colours jittered.

As torchvision's RandomResizedCrop, RandomHorizontalFlip and ColorJitter, but that what they draw are pure functions of
(seed, epoch, index), see `kdbench.draws`: neither the batch nor the processes that read have a part in it. A view is
whole numbers, see `VIEW`, and says all that there is to know of how an image was shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, StrictInt, model_validator
from torch import Tensor

from kdbench.data.randaugment import RandAugment
from kdbench.draws import random_bits, uniform
from kdbench.settings import Positive
from kdbench.sparse import Sparse

VIEW = ("top", "left", "height", "width", "flip", "jitter", "augment", "turn")
"""The numbers of a view: the box that is cut out and resized, in pixels of the upright image; whether it is mirrored;
the random bits that its colours are jittered by, and those of RandAugment, 0 where there is none of it; and which one
it is of the views that come round again, 0 where none do."""
FLIP, JITTER, AUGMENT, TURN = map(VIEW.index, ("flip", "jitter", "augment", "turn"))
TRIES = 10
"""Boxes that are drawn until one lies inside the image, as torchvision does; else the middle is taken."""
_CROP = 1 << 32
"""The first stream of random numbers of crops: beyond those of `kdbench.data.views`."""
_OF_A_DRAW = 4 * TRIES + 2
_FLIP, _JITTER = 4 * TRIES, 4 * TRIES + 1
_AUGMENT = 1 << 33
"""The stream of RandAugment's bits, one for each draw: it came later."""

Strength = Annotated[float, Field(ge=0)]


class Crops(Sparse):
    """How streamed images are shown.

    Attributes:
        size: height and width of what networks see, in pixels.
        scale: least and largest share of the image's area that a crop of training has (Szegedy et al., CVPR 2015).
        ratio: least and largest ratio of its width to its height (there, too).
        jitter: by how much brightness, contrast, saturation and hue vary, as of torchvision's ColorJitter; None: not.
        resize: where images are judged, their shorter side, before the square in the middle is cut out; unless it is
            given, 8/7 of `size`, which is 256 for 224 (Krizhevsky et al., NIPS 2012).
        cycle: each image has so many views of training, the same for every seed, and they come round again, so that a
            teacher's words on each are kept once for all (Shen and Xing, ECCV 2022); None: new ones in each epoch.
        randaugment: what else is done to crops of training, see `kdbench.data.randaugment`; None: nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    ADDED = frozenset({"randaugment"})

    size: StrictInt = Field(ge=1)
    scale: tuple[Positive, Positive] = (0.08, 1.0)
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    jitter: tuple[Strength, Strength, Strength, Annotated[float, Field(ge=0, le=0.5)]] | None = None
    resize: StrictInt
    cycle: Annotated[StrictInt, Field(ge=1)] | None = None
    randaugment: RandAugment | None = None

    @model_validator(mode="before")
    @classmethod
    def _with_resize(cls, value: Any) -> Any:
        """Said or not, it is the same setting."""
        if isinstance(value, Mapping) and value.get("resize") is None and isinstance(value.get("size"), int):
            return {**value, "resize": round(8 * value["size"] / 7)}
        return value

    @model_validator(mode="after")
    def _in_order(self) -> Crops:
        for name, (least, most) in {"scale": self.scale, "ratio": self.ratio}.items():
            if least > most:
                raise ValueError(f"{name} goes from {least} to {most}: the smaller number comes first")
        if self.scale[1] > 1:
            raise ValueError(f"scale goes to {self.scale[1]}, and no crop is larger than its image")
        if self.resize < self.size:
            raise ValueError(f"resize={self.resize} is smaller than size={self.size}, which is cut out of it")
        return self

    @property
    def of_test(self) -> tuple[int, int]:
        """What images are judged by."""
        return self.size, self.resize


def view_of(crops: Crops, flip: bool, seed: int, epoch: int, index: Tensor, sizes: Tensor, draw: int = 0) -> Tensor:
    """The view of each sample, int64, (N, 8), see `VIEW`.

    Args:
        flip: mirror half of them.
        index: of the samples, int64, (N,).
        sizes: height and width of each, int64, (N, 2).
        draw: 1 is another view of the same samples in the same epoch.
    """
    turn = 0
    if crops.cycle:
        seed, epoch = 0, epoch % crops.cycle
        turn = epoch
    box = resized_crop_of(seed, epoch, index, sizes, crops.scale, crops.ratio, draw)
    first = _CROP + _OF_A_DRAW * draw
    mirrored = random_bits(seed, epoch, first + _FLIP, index) % (2 if flip else 1)
    bits = random_bits(seed, epoch, first + _JITTER, index) if crops.jitter else torch.zeros_like(index)
    augment = random_bits(seed, epoch, _AUGMENT + draw, index) if crops.randaugment else torch.zeros_like(index)
    return torch.cat([box, torch.stack([mirrored, bits, augment, torch.full_like(index, turn)], dim=1)], dim=1)


def resized_crop_of(
    seed: int,
    epoch: int,
    index: Tensor,
    sizes: Tensor,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    draw: int = 0,
) -> Tensor:
    """The box of each sample as (top, left, height, width), int64, (N, 4), as torchvision's RandomResizedCrop draws it.

    An area uniform in `scale`, a shape log-uniform in `ratio`, a place uniform among those that there are; where
    `TRIES` such boxes are larger than the image, the largest one in the middle that `ratio` allows.
    """
    height, width = sizes.unbind(1)
    log_ratio = torch.tensor(ratio, dtype=torch.float64).log()
    box, left = _middle(height, width, ratio), torch.ones(len(index), dtype=torch.bool)
    for attempt in range(TRIES):
        streams = (_CROP + _OF_A_DRAW * draw + 4 * attempt + k for k in range(4))
        area, shape, top, side = (random_bits(seed, epoch, stream, index) for stream in streams)
        area = (height * width).double() * (scale[0] + uniform(area).double() * (scale[1] - scale[0]))
        shape = torch.exp(log_ratio[0] + uniform(shape).double() * (log_ratio[1] - log_ratio[0]))
        w, h = torch.sqrt(area * shape).round().long(), torch.sqrt(area / shape).round().long()
        fits = (w > 0) & (w <= width) & (h > 0) & (h <= height) & left
        found = torch.stack([top % (height - h + 1).clamp(min=1), side % (width - w + 1).clamp(min=1), h, w], dim=1)
        box, left = torch.where(fits[:, None], found, box), left & ~fits
        if not left.any():
            break
    return box


def _middle(height: Tensor, width: Tensor, ratio: tuple[float, float]) -> Tensor:
    """The largest box in the middle whose shape `ratio` allows, int64, (N, 4)."""
    h = torch.minimum(height, (width.double() / ratio[0]).round().long()).clamp(min=1)
    w = torch.minimum(width, (height.double() * ratio[1]).round().long()).clamp(min=1)
    return torch.stack([(height - h) // 2, (width - w) // 2, h, w], dim=1)


def jitter_of(bits: Tensor, strength: tuple[float, float, float, float]) -> tuple[Tensor, Tensor]:
    """What random bits, int64, (N,), do to colours.

    Returns:
        Factors of brightness, contrast and saturation, uniform in 1 - strength (at least 0) to 1 + strength, and a
        shift of the hue, in turns of the colour wheel, uniform in -strength to strength: float32, (N, 4). And the order
        in which these four are done: int64, (N, 4).
    """
    drawn = torch.stack([uniform(random_bits(0, 0, stream, bits)) for stream in range(4)], dim=1)
    most = torch.tensor(strength, dtype=torch.float32)
    middle = torch.tensor([1.0, 1.0, 1.0, 0.0])
    least = torch.cat([(middle - most)[:3].clamp(min=0), -most[3:]])
    order = torch.stack([random_bits(0, 0, stream, bits) for stream in range(4, 8)], dim=1).argsort(dim=1, stable=True)
    return least + drawn * (middle + most - least), order


def jittered(images: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """Images with other colours: uint8, (B, 3, H, W), to float32 on the scale 0..255.

    As torchvision's ``adjust_brightness``, ``_contrast``, ``_saturation`` and ``_hue`` of images of floats.

    Args:
        factors, order: (B, 4), on the CPU, as `jitter_of` gives them.
    """
    x = images.float() / 255
    for turn in range(4):
        for k, change in enumerate((_brightness, _contrast, _saturation, _hue)):
            rows = (order[:, turn] == k).nonzero()[:, 0]
            if len(rows):
                there = rows.to(x.device)
                x[there] = change(x[there], factors[rows, k].to(x.device)[:, None, None, None])
    return x * 255


def _grey(x: Tensor) -> Tensor:
    """Luma (ITU-R BT.601), (B, 1, H, W), with torchvision's digits."""
    return (0.2989 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2])[:, None]


def _brightness(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).clamp(0, 1)


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    # in float64, so that the order of the sum, which the size of the batch may change, is no matter
    mean = _grey(x).double().mean(dim=(1, 2, 3), keepdim=True).float()
    return (x * factor + mean * (1 - factor)).clamp(0, 1)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor + _grey(x) * (1 - factor)).clamp(0, 1)


def _hue(x: Tensor, shift: Tensor) -> Tensor:
    """Through HSV, in which value and chroma stay."""
    value, which = x.max(dim=1)
    chroma = value - x.amin(dim=1)
    r, g, b = x.unbind(1)
    whole = chroma.masked_fill(chroma == 0, 1)
    sixth = torch.where(which == 0, (g - b) / whole, torch.where(which == 1, (b - r) / whole + 2, (r - g) / whole + 4))
    turned = (sixth + 6 * shift[:, 0]) % 6
    k = (torch.tensor([5, 3, 1], device=x.device)[:, None, None] + turned[:, None]) % 6
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4 - k).clamp(0, 1)
