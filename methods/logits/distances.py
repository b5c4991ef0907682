"""Distances between the samples of a batch, as several losses on relations compare them."""

from __future__ import annotations

import torch
from torch import Tensor


def distances(x: Tensor) -> Tensor:
    """Euclidean distances (B, B) of the rows of x (B, D), from their differences, so that near ones keep their digits.

    Of rows that coincide the gradient is zero.
    """
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
