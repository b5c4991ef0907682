"""ShuffleNets for small images.

V1: Zhang et al., CVPR 2018, arXiv:1707.01083. V2: Ma et al., ECCV 2018, arXiv:1807.11164.

As in RepDistiller (github.com/HobbitLong/RepDistiller, models/ShuffleNetv1.py and ShuffleNetv2.py): a 1x1 stem of 24
channels, no pooling behind it, three stages that each halve the image, PyTorch's default initialisation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdbench.models.base import Builder, Shape, StagedNet, conv_bn, conv_bn_relu, global_pool

STEM = 24


class Shuffle(nn.Module):
    """Channel shuffle: channel j of group i becomes channel i of group j."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


class UnitV1(nn.Module):
    """Grouped bottleneck, before the ReLU: added to its input or, with stride 2, concatenated with the pooled input."""

    def __init__(self, c_in: int, c_out: int, stride: int, groups: int) -> None:
        super().__init__()
        c_branch = c_out - c_in if stride == 2 else c_out
        mid = c_branch // 4
        first = 1 if c_in == STEM else groups  # the few channels of the stem are not split into groups
        self.branch = nn.Sequential(
            *conv_bn_relu(c_in, mid, 1, groups=first),
            Shuffle(first),
            *conv_bn_relu(mid, mid, 3, stride, groups=mid),
            *conv_bn(mid, c_branch, 1, groups=groups),
        )
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.branch(x)
        return x + out if self.pool is None else torch.cat([out, self.pool(x)], dim=1)


class UnitV2(nn.Module):
    """Half of the channels pass, half go through the branch; concatenated and shuffled, before the ReLU.

    The half that passes is the output of a ReLU, so a ReLU over both halves changes nothing in it, and it commutes with
    the shuffle: ReLU(pre) is the unit's output. (RepDistiller's pre-activation is the same before the shuffle.)
    """

    def __init__(self, c: int) -> None:
        super().__init__()
        half = c // 2
        self.branch = nn.Sequential(
            *conv_bn_relu(half, half, 1), *conv_bn(half, half, 3, groups=half), *conv_bn(half, half, 1)
        )
        self.shuffle = Shuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        passed, used = x.chunk(2, dim=1)
        out: Tensor = self.shuffle(torch.cat([passed, self.branch(used)], dim=1))
        return out


class DownV2(nn.Module):
    """Halves the image in two branches, concatenated and shuffled, before the ReLU."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        half = c_out // 2
        self.left = nn.Sequential(*conv_bn(c_in, c_in, 3, 2, groups=c_in), *conv_bn(c_in, half, 1))
        self.right = nn.Sequential(
            *conv_bn_relu(c_in, half, 1), *conv_bn(half, half, 3, 2, groups=half), *conv_bn(half, half, 1)
        )
        self.shuffle = Shuffle(2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.shuffle(torch.cat([self.left(x), self.right(x)], dim=1))
        return out


def shufflenetv1(shape: Shape, num_classes: int) -> StagedNet:
    """ShuffleNetV1 with 3 groups, widths 240, 480, 960."""
    stages, c_in = [], STEM
    for width, n in ((240, 4), (480, 8), (960, 4)):
        stages.append([UnitV1(c_in, width, 2, 3), *(UnitV1(width, width, 1, 3) for _ in range(n - 1))])
        c_in = width
    return StagedNet(nn.Sequential(*conv_bn_relu(shape[0], STEM, 1)), stages, nn.Linear(c_in, num_classes))


def shufflenetv2(shape: Shape, num_classes: int) -> StagedNet:
    """ShuffleNetV2 of width 1: 116, 232, 464, and a last convolution of 1024 channels in front of the pooling."""
    stages, c_in = [], STEM
    for width, n in ((116, 3), (232, 7), (464, 3)):
        stages.append([DownV2(c_in, width), *(UnitV2(width) for _ in range(n))])
        c_in = width
    stem = nn.Sequential(*conv_bn_relu(shape[0], STEM, 1))
    neck = nn.Sequential(*conv_bn_relu(c_in, 1024, 1), global_pool())
    return StagedNet(stem, stages, nn.Linear(1024, num_classes), neck)


NETS: dict[str, Builder] = {"shufflenetv1": shufflenetv1, "shufflenetv2": shufflenetv2}
