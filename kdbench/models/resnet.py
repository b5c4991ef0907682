"""Residual networks for small images (He et al., CVPR 2016, arXiv:1512.03385, section 4.2).

Widths, depths, 1x1-convolution shortcuts with batch norm and the initialisation are RepDistiller's
(github.com/HobbitLong/RepDistiller, models/resnet.py and resnetv2.py), on which the published numbers rest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from kdbench.models.base import Builder, Shape, StagedNet, conv_bn, conv_bn_relu, he_init


class Residual(nn.Module):
    """branch(x) + shortcut(x), before the ReLU; the shortcut is a projection where the shape changes."""

    def __init__(self, branch: list[nn.Module], c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        same = stride == 1 and c_in == c_out
        self.branch = nn.Sequential(*branch)
        self.shortcut = nn.Identity() if same else nn.Sequential(*conv_bn(c_in, c_out, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.branch(x) + self.shortcut(x)
        return out


def basic(c_in: int, width: int, stride: int) -> Residual:
    return Residual([*conv_bn_relu(c_in, width, stride=stride), *conv_bn(width, width)], c_in, width, stride)


def bottleneck(c_in: int, width: int, stride: int) -> Residual:
    branch = [*conv_bn_relu(c_in, width, 1), *conv_bn_relu(width, width, stride=stride), *conv_bn(width, 4 * width, 1)]
    return Residual(branch, c_in, 4 * width, stride)


def basic_stages(depth: int, widths: tuple[int, ...]) -> list[list[nn.Module]]:
    """The three stages (strides 1, 2, 2) of a ResNet of `depth` = 6n + 2 layers; `widths` of the stem and of them."""
    n = (depth - 2) // 6
    stages: list[list[nn.Module]] = []
    c_in = widths[0]
    for i, width in enumerate(widths[1:]):
        strides = [1 if i == 0 else 2] + [1] * (n - 1)
        stages.append([basic(c_in if j == 0 else width, width, stride) for j, stride in enumerate(strides)])
        c_in = width
    return stages


def basic_resnet(depth: int, widths: tuple[int, ...], shape: Shape, num_classes: int) -> StagedNet:
    """ResNet of `depth` layers; `widths` of the stem and of the three stages."""
    stages = basic_stages(depth, widths)
    stem = nn.Sequential(*conv_bn_relu(shape[0], widths[0]))
    net = StagedNet(stem, stages, nn.Linear(widths[-1], num_classes))
    he_init(net)
    return net


def four_stages(
    block: Callable[[int, int, int], Residual],
    expansion: int,
    counts: tuple[int, ...],
    widths: tuple[int, ...],
    shape: Shape,
    num_classes: int,
    *,
    he: bool = True,
) -> StagedNet:
    """The ImageNet ResNets with a 3x3 stem of stride 1 and no pooling behind it: four stages, strides 1, 2, 2, 2.

    Args:
        expansion: what a block gives, in units of its width.
        counts: of blocks, by stage.
        widths: of the stem and of the stages.
        he: He's initialisation; else PyTorch's.
    """
    stages: list[list[nn.Module]] = []
    c_in = widths[0]
    for i, (width, n) in enumerate(zip(widths[1:], counts, strict=True)):
        strides = [1 if i == 0 else 2] + [1] * (n - 1)
        stages.append([block(c_in if j == 0 else expansion * width, width, stride) for j, stride in enumerate(strides)])
        c_in = expansion * width
    net = StagedNet(nn.Sequential(*conv_bn_relu(shape[0], widths[0])), stages, nn.Linear(c_in, num_classes))
    if he:
        he_init(net)
    return net


resnet18 = partial(four_stages, basic, 1, (2, 2, 2, 2))
resnet34 = partial(four_stages, basic, 1, (3, 4, 6, 3))
resnet50 = partial(four_stages, bottleneck, 4, (3, 4, 6, 3))
WHOLE = (64, 64, 128, 256, 512)
# Of SforAiDl/KD_Lib, whose logs.rst prints no widths but how many parameters there are
MINI, MICRO = (16, 16, 32, 32, 64), (4, 4, 8, 4, 4)


NETS: dict[str, Builder] = {
    **{f"resnet{depth}": partial(basic_resnet, depth, (16, 16, 32, 64)) for depth in (8, 14, 20, 32, 44, 56, 110)},
    **{f"resnet{depth}x4": partial(basic_resnet, depth, (32, 64, 128, 256)) for depth in (8, 32)},
    "resnet8x0.25": partial(basic_resnet, 8, (4, 4, 8, 16)),
    "resnet8x0.5": partial(basic_resnet, 8, (8, 8, 16, 32)),
    "resnet18-cifar": partial(resnet18, WHOLE, he=False),
    "resnet50-cifar": partial(resnet50, WHOLE),
    "resnet18-mini": partial(resnet18, MINI, he=False),
    "resnet34-mini": partial(resnet34, MINI, he=False),
    "resnet50-mini": partial(resnet50, MINI, he=False),
    "resnet18-micro": partial(resnet18, MICRO, he=False),
    "resnet50-micro": partial(resnet50, MICRO, he=False),
}
