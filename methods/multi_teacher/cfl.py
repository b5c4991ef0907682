"""Knowledge amalgamation by common feature learning (Luo et al., IJCAI 2019, arXiv:1906.10546)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.losses import in_float32

SIGMAS = (0.001, 0.01, 0.05, 0.1, 0.2, 1.0, 2.0)
"""zju-vipa/KamalEngine: kamal/amalgamation/common_feature.py."""


@in_float32
def mmd_loss(a: Tensor, b: Tensor, sigmas: Sequence[float] = SIGMAS) -> Tensor:
    """Squared maximum mean discrepancy of two sets of codes with B rows each, with a sum of Gaussian kernels.

    mean_ij k(a_i, a_j) + mean_ij k(b_i, b_j) - 2 · mean_ij k(a_i, b_j), the diagonals included, never negative;
    k(u, v) = Σ_σ exp(-‖u - v‖² / 2σ²) of rows that are flattened and divided by their 2-norm.
    """
    a, b = F.normalize(a.flatten(1), dim=1), F.normalize(b.flatten(1), dim=1)

    def kernel(u: Tensor, v: Tensor) -> Tensor:
        distance = (u[:, None] - v).square().sum(2).clamp(min=1e-12)
        return torch.stack([(-distance / (2 * sigma**2)).exp() for sigma in sigmas]).sum(0).mean()

    return (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)).relu()


@in_float32
def reconstruction_loss(decoded: Tensor, teacher: Tensor) -> Tensor:
    """Mean over elements of (d(c) - t)²: can the common code still tell the teacher's feature?"""
    return F.mse_loss(decoded, teacher)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norms beside the identity, (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()


class CommonSpace(nn.Module):
    """A code for the student's feature and for each teacher's, by one extractor behind layers of their own.

    Features are maps, (C, H, W) of one size, or vectors, (D,).

    Args:
        student: shape of its feature.
        teachers: shapes of theirs.
        channels: of the code.
    """

    def __init__(self, student: tuple[int, ...], teachers: Sequence[tuple[int, ...]], channels: int) -> None:
        super().__init__()

        def aligned(width: int) -> nn.Sequential:
            if len(student) == 1:
                return nn.Sequential(nn.Linear(width, channels), nn.ReLU())
            return nn.Sequential(nn.Conv2d(width, channels, 1), nn.BatchNorm2d(channels), nn.ReLU())

        def decoder(width: int) -> nn.Sequential:
            if len(student) == 1:
                return nn.Sequential(nn.Linear(channels, width), nn.ReLU(), nn.Linear(width, width))
            first = [nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.ReLU()]
            return nn.Sequential(*first, nn.Conv2d(channels, width, 1))

        self.align_s = aligned(student[0])
        self.align_t = nn.ModuleList(aligned(shape[0]) for shape in teachers)
        if len(student) == 1:
            layers = [nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels)]
            self.extractor = nn.Sequential(*layers)
        else:
            self.extractor = nn.Sequential(ResidualBlock(channels), ResidualBlock(channels))
        self.decoders = nn.ModuleList(decoder(shape[0]) for shape in teachers)

    def forward(self, student: Tensor, teachers: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """(the student's code, the teachers' codes, their features as decoded from these)."""
        codes = [self.extractor(align(t)) for align, t in zip(self.align_t, teachers, strict=True)]
        decoded = [decode(code) for decode, code in zip(self.decoders, codes, strict=True)]
        return self.extractor(self.align_s(student)), codes, decoded
