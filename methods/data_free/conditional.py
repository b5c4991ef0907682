"""Generators that are told the class of the image to make, and what they are given."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConditionalGenerator(nn.Module):
    """Noise (B, Z) and label distributions (B, K) to images in -1..1: `linear`, then four transposed convolutions.

    The first makes maps of an eighth of the sides, 4x4 for images of 32x32; the others double them, and what is more
    than the sides is cut off.

    Args:
        linear: (B, Z + K) to the first of `widths`.
        widths: maps before each convolution.
        shape: of an image.
    """

    def __init__(self, linear: nn.Module, widths: Sequence[int], shape: tuple[int, ...]) -> None:
        super().__init__()
        channels, *self.size = shape
        self.linear = linear
        height, width = (-(-side // 8) for side in self.size)
        layers: list[nn.Module] = [nn.ConvTranspose2d(widths[0], widths[1], (height, width), bias=False)]
        for before, maps in pairwise((*widths[1:], channels)):
            layers += [nn.BatchNorm2d(before), nn.ReLU(), nn.ConvTranspose2d(before, maps, 4, 2, 1, bias=False)]
        self.conv = nn.Sequential(*layers, nn.Tanh())

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        x: Tensor = self.conv(self.linear(torch.cat([z, label], 1)).unflatten(1, (-1, 1, 1)))
        return x[..., : self.size[0], : self.size[1]]


def noise_and_labels(n: int, noise: int, classes: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Standard normal noise (n, Z) and one-hot labels (n, K), on the CPU."""
    z, y = torch.randn(n, noise, generator=rng), torch.randint(classes, (n,), generator=rng)
    return z, F.one_hot(y, classes).to(z)
