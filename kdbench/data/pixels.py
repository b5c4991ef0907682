"""Images made of images: without colour, coarser, noisier, of another size; and of noise. All uint8, (N, H, W, C)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from kdbench.draws import random_bits
from kdbench.errors import UserError

Degrade = Literal["grey", "lightness", "colour", "coarse", "noise"]
Noise = Literal["gaussian", "uniform"]


def degraded(images: Tensor, how: Degrade, amount: float) -> Tensor:
    """Images of lower quality.

    Args:
        how: ``grey``: luma alone (ITU-R BT.601), one channel; ``lightness``: L of CIE L*a*b* (of sRGB, 0..100 as
            0..255), one channel; ``colour``: its a and b (0 as 128), two channels; ``coarse``: each square of `amount`
            pixels has its mean; ``noise``: Gaussian noise of standard deviation `amount`, in grey levels, the same
            whenever it is asked for.

    Raises:
        UserError: the images are grey already, or cannot be divided into such squares.
    """
    height, width, channels = images.shape[1:]
    if how in ("grey", "lightness", "colour") and channels != 3:
        raise UserError(
            f"images of {channels} channel{'s' * (channels > 1)} have no colour to lose: degrade otherwise."
        )
    if how == "coarse" and (amount != int(amount) or amount < 2 or height % amount or width % amount):
        raise UserError(
            f"images of {height}x{width} cannot be divided into squares of {amount:g} pixels: give a number that "
            "divides both sides."
        )

    def lower(part: Tensor, first: int) -> Tensor:
        if how == "grey":
            return _grey(part)
        if how in ("lightness", "colour"):
            lab = _lab(part)
            return lab[..., :1] if how == "lightness" else lab[..., 1:]
        if how == "coarse":
            side = int(amount)
            means = F.avg_pool2d(part.permute(0, 3, 1, 2).float(), side).round().to(torch.uint8)
            return means.repeat_interleave(side, 2).repeat_interleave(side, 3).permute(0, 2, 3, 1)
        return (part + amount * _gaussian(part.shape, first * part[0].numel())).round().clamp(0, 255).to(torch.uint8)

    return _in_parts(images, lower)


def fitted(images: Tensor, size: tuple[int, int], channels: int) -> Tensor:
    """Images of another size (bilinear, antialiased); grey ones repeated where `channels` are more, of coloured ones
    the luma where there is to be one channel.

    Args:
        size: height and width.
    """

    def fit(part: Tensor, first: int) -> Tensor:
        part = (_grey(part) if channels == 1 < part.shape[3] else part).permute(0, 3, 1, 2)
        part = part if part.shape[2:] == size else TF.resize(part, list(size), antialias=True)
        return part.expand(-1, channels, -1, -1).permute(0, 2, 3, 1)

    return _in_parts(images, fit)


def noise(shape: tuple[int, ...], how: Noise, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Images of noise in which no pixel knows of another, the same whenever they are asked for.

    Args:
        shape: (N, H, W, C).
        how: ``uniform``: each of the 256 grey levels is as likely; ``gaussian``: normal numbers, cut off at black and
            white.
        mean, std: of the normal ones, per channel, on the scale 0..1.
    """
    middle, width = (255 * torch.tensor(values, dtype=torch.float64) for values in (mean, std))

    def draw(part: Tensor, first: int) -> Tensor:
        start = first * part[0].numel()
        if how == "uniform":
            return (random_bits(0, 0, 0, _counter(part.shape, start)) >> 55).to(torch.uint8)  # 8 of the 63
        return (middle + width * _gaussian(part.shape, start)).round().clamp(0, 255).to(torch.uint8)

    return _in_parts(torch.zeros((), dtype=torch.uint8).expand(shape), draw)


def _grey(images: Tensor) -> Tensor:
    return TF.rgb_to_grayscale(images.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def _lab(images: Tensor) -> Tensor:
    """CIE L*a*b* of sRGB, by Pillow and LittleCMS, a and b moved by 128; all images as one high picture."""
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    high = Image.fromarray(images.reshape(-1, *images.shape[2:]).numpy())
    lab = np.array(ImageCms.applyTransform(high, to_lab))
    lab[..., 1:] += 128  # two's complement before
    return torch.from_numpy(lab).view_as(images)


def _gaussian(shape: torch.Size, first: int) -> Tensor:
    """Standard normal numbers (Box and Muller 1958) for values numbered from `first`, float64."""
    counter = _counter(shape, first)
    one, two = (((random_bits(0, 0, stream, counter) >> 11).double() + 0.5) / 2**52 for stream in (0, 1))
    return torch.sqrt(-2 * torch.log(one)) * torch.cos(2 * math.pi * two)


def _counter(shape: torch.Size, first: int) -> Tensor:
    return torch.arange(first, first + shape.numel()).view(shape)


def _in_parts(images: Tensor, change: Callable[[Tensor, int], Tensor]) -> Tensor:
    """Change 1000 at a time: as floats all of them may be more than fits into memory."""
    starts = range(0, len(images), 1000)
    return torch.cat([change(images[start : start + 1000], start) for start in starts]).contiguous()
