"""Random views of images that gradients flow through: crops, flips and zooms as products with matrices.

Products of matrices are differentiable and the same on every run; indexing and sampling are not, on GPUs.
"""

from __future__ import annotations

import torch
from torch import Tensor


def resampled(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Images (B, C, H, W) read at the given places, bilinearly; outside there are zeros.

    Args:
        rows, columns: (B, H') and (B, W'), in pixels from 0.
    """
    return weights(rows, x.shape[2]).unsqueeze(1).to(x) @ x @ weights(columns, x.shape[3]).unsqueeze(1).mT.to(x)


def weights(places: Tensor, size: int) -> Tensor:
    """Of each pixel for a value that is read between them: (B, N, size) for places (B, N)."""
    return (1 - (places.unsqueeze(2) - torch.arange(size)).abs()).clamp(min=0)


def shifted_crop(x: Tensor, pad: int, flip: bool, rng: torch.Generator) -> Tensor:
    """Each image moved by up to `pad` pixels, zeros moving in, and flipped half of the time, if at all."""
    dy, dx = torch.randint(-pad, pad + 1, (2, len(x), 1), generator=rng)
    rows, columns = torch.arange(x.shape[2]) + dy, torch.arange(x.shape[3]) + dx
    return resampled(x, rows.float(), flipped(columns.float(), flip, rng))


def zoomed_crop(x: Tensor, smallest: float, flip: bool, rng: torch.Generator) -> Tensor:
    """Of each image a part of `smallest` to all of its area, its sides in a ratio of 3/4 to 4/3, at full size."""
    area = smallest + (1 - smallest) * torch.rand(len(x), 1, generator=rng)
    skew = (4 / 3) ** (torch.rand(len(x), 1, generator=rng) - 0.5)  # the root of the ratio
    rows, columns = (
        part((area.sqrt() * by).clamp(max=1), size, rng) for by, size in ((1 / skew, x.shape[2]), (skew, x.shape[3]))
    )
    return resampled(x, rows, flipped(columns, flip, rng))


def part(share: Tensor, size: int, rng: torch.Generator) -> Tensor:
    """Places of `size` values, evenly spread over a `share` (B, 1) of an axis, which begins anywhere: (B, size)."""
    start = (1 - share) * size * torch.rand(len(share), 1, generator=rng)
    return (start + (torch.arange(size) + 0.5) * share - 0.5).clamp(0, size - 1)


def flipped(columns: Tensor, flip: bool, rng: torch.Generator) -> Tensor:
    """Half of them from right to left."""
    turned = torch.rand(len(columns), 1, generator=rng) < 0.5
    return torch.where(turned, columns.flip(1), columns) if flip else columns
