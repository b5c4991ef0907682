"""Wide residual networks (Zagoruyko & Komodakis, BMVC 2016, arXiv:1605.07146), without dropout.

Initialisation and shortcuts are RepDistiller's (github.com/HobbitLong/RepDistiller, models/wrn.py).

``wrn-40-2-g8`` and its like are the cheap students of Moonshine (Crowley et al., NeurIPS 2018, arXiv:1711.02613), with
other blocks in the place of the 3x3 convolutions (github.com/BayesWatch/pytorch-moonshine, models/blocks.py): ``g8`` is
G(8), ``gn`` G(N), ``b2`` B(2), ``b2g8`` BG(2, 8), ``b4gn`` BG(4, M). What the authors leave as it is stays: the stem,
the shortcuts and the head.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Protocol, cast

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.models.base import Builder, Shape, TappedNet, behind, conv_bn_relu, global_pool, he_init


def conv3x3(c_in: int, c_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)


class Conv(Protocol):
    """What stands in a block where Zagoruyko & Komodakis have a 3x3 convolution; without a last batch norm."""

    def __call__(self, c_in: int, c_out: int, stride: int) -> list[nn.Module]: ...


def full(c_in: int, c_out: int, stride: int) -> list[nn.Module]:
    """The 3x3 convolution itself."""
    return [conv3x3(c_in, c_out, stride)]


def grouped(groups: int | None, c_in: int, c_out: int, stride: int) -> list[nn.Module]:
    """Moonshine's G(g): a 3x3 convolution in `groups` groups (None: one per channel), then a 1x1 convolution."""
    return [*conv_bn_relu(c_in, c_in, stride=stride, groups=groups or c_in), nn.Conv2d(c_in, c_out, 1, bias=False)]


def bottleneck(reduction: int, groups: int | None, c_in: int, c_out: int, stride: int) -> list[nn.Module]:
    """Moonshine's B(b) and BG(b, g): 1x1 to c_out / b channels, 3x3 in `groups` groups, 1x1 to `c_out`."""
    mid = c_out // reduction
    return [*conv_bn_relu(c_in, mid, 1), *grouped(groups, mid, c_out, stride)]


class Block(nn.Module):
    """Pre-activation block. Its first batch norm, `norm`, is run by the network, which reads the taps off it.

    `norm` is None in the first block of a tail, which reads the activation behind it.
    """

    def __init__(self, norm: nn.Module | None, branch: nn.Module, shortcut: nn.Module | None) -> None:
        super().__init__()
        self.norm, self.branch, self.shortcut = norm, branch, shortcut

    def forward(self, x: Tensor, active: Tensor) -> Tensor:
        """`x` is the previous output, `active` = ReLU(norm(x)); where the width changes, both paths read `active`."""
        out: Tensor = self.branch(active) + (x if self.shortcut is None else self.shortcut(active))
        return out


def pre_activation(conv: Conv, c_in: int, c_out: int, stride: int) -> Block:
    norm = nn.BatchNorm2d(c_in)
    branch = nn.Sequential(*conv(c_in, c_out, stride), nn.BatchNorm2d(c_out), nn.ReLU(), *conv(c_out, c_out, 1))
    return Block(norm, branch, None if c_in == c_out else nn.Conv2d(c_in, c_out, 1, stride, bias=False))


class WideResNet(TappedNet):
    """Three stages of pre-activation blocks behind a convolution, a batch norm, pooling and a linear head.

    Taps: ``pre_i`` is the output of the batch norm behind stage i, which is the first one in stage i+1 (or the one
    before the pooling), and ``stage_i`` is its ReLU. RepDistiller takes the same ``pre`` but hands out the raw sum in
    front of that batch norm as the stage. ``stem`` is the bare first convolution, as there.

    Args:
        stem, norm: None in a tail that begins behind them.
        first: the number of the first of `stages`.
    """

    def __init__(
        self,
        stem: nn.Module | None,
        stages: Iterable[Iterable[Block]],
        norm: nn.Module | None,
        head: nn.Linear,
        first: int = 1,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(nn.ModuleList(blocks) for blocks in stages)
        self.norm = norm
        self.pool = global_pool()
        self.head: nn.Linear = head
        self.first = first

    def features(self, x: Tensor) -> dict[str, Tensor]:
        taps: dict[str, Tensor] = {}
        if self.stem is not None:
            taps["stem"] = x = self.stem(x)
        depth = self.first - 1  # of the last stage that is complete
        for blocks in self.stages:
            for j, block in enumerate(cast("Iterable[Block]", blocks)):
                active = x
                if block.norm is not None:
                    pre = block.norm(x)
                    active = F.relu(pre)
                    if j == 0 and depth > 0:
                        taps[f"pre{depth}"], taps[f"stage{depth}"] = pre, active
                x = block(x, active)
            depth += 1
        if self.norm is not None:
            pre = self.norm(x)
            x = F.relu(pre)
            taps[f"pre{depth}"], taps[f"stage{depth}"] = pre, x
        taps["embed"] = self.pool(x)
        return taps

    def tail(self, after: str) -> WideResNet:
        later = behind(after, self.first, len(self.stages))
        stages = [list(cast("Iterable[Block]", blocks)) for blocks in list(self.stages)[later:]]
        if stages:
            opening = stages[0][0]
            stages[0][0] = Block(None, opening.branch, opening.shortcut)
        tail = WideResNet(None, stages, self.norm if stages else None, self.head, first=self.first + later)
        return tail.train(self.training)


def wide_resnet(depth: int, widen: int, shape: Shape, num_classes: int, conv: Conv = full) -> WideResNet:
    """WRN of `depth` = 6n + 4 layers, three stages of widths 16, 32 and 64 times `widen` (strides 1, 2, 2)."""
    n = (depth - 4) // 6
    stem = conv3x3(shape[0], 16)
    stages, c_in = [], 16
    for width, first in ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)):
        strides = [first] + [1] * (n - 1)
        stages.append(
            [pre_activation(conv, c_in if j == 0 else width, width, stride) for j, stride in enumerate(strides)]
        )
        c_in = width
    net = WideResNet(stem, stages, nn.BatchNorm2d(c_in), nn.Linear(c_in, num_classes))
    he_init(net)
    nn.init.zeros_(net.head.bias)
    return net


SIZES = ((16, 1), (16, 2), (40, 1), (40, 2))
CHEAP: dict[str, Conv] = {
    **{f"g{groups}": partial(grouped, groups) for groups in (2, 4, 8, 16)},
    "gn": partial(grouped, None),
    "b2": partial(bottleneck, 2, 1),
    "b4": partial(bottleneck, 4, 1),
    "b2g8": partial(bottleneck, 2, 8),
    "b2gn": partial(bottleneck, 2, None),
    "b4gn": partial(bottleneck, 4, None),
}
NETS: dict[str, Builder] = {
    **{f"wrn-{depth}-{widen}": partial(wide_resnet, depth, widen) for depth, widen in SIZES},
    **{
        f"wrn-{depth}-{widen}-{name}": partial(wide_resnet, depth, widen, conv=conv)
        for depth, widen in ((16, 2), (40, 2))
        for name, conv in CHEAP.items()
    },
}
