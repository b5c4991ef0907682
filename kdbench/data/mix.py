"""Training images shown two at a time: mixup (Zhang et al., ICLR 2018) and cutmix (Yun et al., ICCV 2019).

Teacher and student see the same mixed image, so what the teacher says of it is the target, as in function matching
(Beyer et al., CVPR 2022, arXiv:2106.05237). Labels, for who reads them, are the shares of both: float32, (B, K), as
torchvision's ``MixUp`` and ``CutMix`` have them, by which a cross-entropy is that of both labels, weighted.

Each image is mixed with the one before it in the order of the epoch (`kdbench.data.mixed`), by how much and where is
drawn for each: a pure function of (seed, epoch, index), see `kdbench.draws`.
"""

from __future__ import annotations

import torch
from pydantic import ConfigDict, model_validator
from scipy.special import betaincinv
from torch import Tensor

from kdbench.draws import random_bits, uniform
from kdbench.settings import Positive
from kdbench.sparse import Sparse

_SHARE, _CUT, _DOWN, _RIGHT = range(3 << 32, (3 << 32) + 4)
"""The streams of random numbers, beyond those of views."""


class Mix(Sparse):
    """By what images are mixed, each by its Beta(α, α); where both are given, one half of the images by either.

    Attributes:
        mixup: α of the share of the image itself in a sum of two; 1 is uniform.
        cutmix: α of its share of the area, the rest being a box of the other image.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    mixup: Positive | None = None
    cutmix: Positive | None = None

    @model_validator(mode="after")
    def _of_something(self) -> Mix:
        if self.mixup is None and self.cutmix is None:
            raise ValueError("give mixup or cutmix an alpha above 0")
        return self


def shares_of(mix: Mix, seed: int, epoch: int, index: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """What images keep of their own, on the CPU: of each pixel, float32, (N, 1, H, W) for a size (H, W); and of the
    label, float32, (N, 1)."""
    drawn = uniform(random_bits(seed, epoch, _SHARE, index)).double()
    cut = random_bits(seed, epoch, _CUT, index) % 2 == 1
    if mix.mixup is None or mix.cutmix is None:
        cut = torch.full_like(cut, mix.mixup is None)
    area = 1 - _boxes(_beta(drawn, mix.cutmix or 1.0), seed, epoch, index, size)
    whole = _beta(drawn, mix.mixup or 1.0)[:, None]
    share = torch.where(cut[:, None], area.mean(dim=(2, 3)), whole[:, :, 0, 0])
    return torch.where(cut[:, None, None, None], area, whole), share


def _beta(uniformly: Tensor, alpha: float) -> Tensor:
    """The quantiles of Beta(alpha, alpha), float32, (N, 1, 1)."""
    return torch.from_numpy(betaincinv(alpha, alpha, uniformly.numpy())).float()[:, None, None]


def _boxes(share: Tensor, seed: int, epoch: int, index: Tensor, size: tuple[int, int]) -> Tensor:
    """1 in a box of shape (H, W) that leaves `share` of the area, and 0 elsewhere, as torchvision's ``CutMix`` has it.

    The middle is uniform over all pixels, and what lies beyond the edge is cut off.
    """
    half = 0.5 * (1 - share).sqrt()
    inside = torch.ones(len(index), 1, 1)
    for axis, (stream, side) in enumerate(zip((_DOWN, _RIGHT), size, strict=True)):
        middle = (random_bits(seed, epoch, stream, index) % side)[:, None, None]
        reach = (half * side).long()
        place = torch.arange(side).view(1, -1, 1) if axis == 0 else torch.arange(side).view(1, 1, -1)
        inside = inside * ((place >= middle - reach) & (place < middle + reach))
    return inside[:, None]
