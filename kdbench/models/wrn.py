"""Wide residual networks (Zagoruyko & Komodakis, BMVC 2016, arXiv:1605.07146), without dropout.

Initialisation and shortcuts are RepDistiller's (github.com/HobbitLong/RepDistiller, models/wrn.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.models.base import Builder, Shape, TappedNet, conv_bn_relu, global_pool, he_init


def conv3x3(c_in: int, c_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, stride, padding=1, bias=False)


class Block(nn.Module):
    """Pre-activation block. Its first batch norm, `norm`, is run by the network, which reads the taps off it."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(c_in)
        self.branch = nn.Sequential(*conv_bn_relu(c_in, c_out, stride=stride), conv3x3(c_out, c_out))
        self.shortcut = None if c_in == c_out else nn.Conv2d(c_in, c_out, 1, stride, bias=False)

    def forward(self, x: Tensor, active: Tensor) -> Tensor:
        """`x` is the previous output, `active` = ReLU(norm(x)); where the width changes, both paths read `active`."""
        out: Tensor = self.branch(active) + (x if self.shortcut is None else self.shortcut(active))
        return out


class WideResNet(TappedNet):
    """WRN of `depth` = 6n + 4 layers, three stages of widths 16, 32 and 64 times `widen`.

    Taps: ``pre_i`` is the output of the batch norm behind stage i, which is the first one in stage i+1 (or the one
    before the pooling), and ``stage_i`` is its ReLU. RepDistiller takes the same ``pre`` but hands out the raw sum in
    front of that batch norm as the stage. ``stem`` is the bare first convolution, as there.
    """

    def __init__(self, depth: int, widen: int, shape: Shape, num_classes: int) -> None:
        super().__init__()
        n = (depth - 4) // 6
        self.stem = conv3x3(shape[0], 16)
        self.stages = nn.ModuleList()
        c_in = 16
        for width, first in ((16 * widen, 1), (32 * widen, 2), (64 * widen, 2)):
            strides = [first] + [1] * (n - 1)
            self.stages.append(
                nn.ModuleList(Block(c_in if j == 0 else width, width, stride) for j, stride in enumerate(strides))
            )
            c_in = width
        self.norm = nn.BatchNorm2d(c_in)
        self.pool = global_pool()
        self.head = nn.Linear(c_in, num_classes)
        he_init(self)
        nn.init.zeros_(self.head.bias)

    def features(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        taps = {"stem": x}
        for depth, blocks in enumerate(self.stages):
            for j, block in enumerate(cast("Iterable[Block]", blocks)):
                pre = block.norm(x)
                active = F.relu(pre)
                if depth > 0 and j == 0:
                    taps[f"pre{depth}"], taps[f"stage{depth}"] = pre, active
                x = block(x, active)
        pre = self.norm(x)
        active = F.relu(pre)
        last = len(self.stages)
        taps[f"pre{last}"], taps[f"stage{last}"] = pre, active
        taps["embed"] = self.pool(active)
        return taps


NETS: dict[str, Builder] = {
    f"wrn-{depth}-{widen}": partial(WideResNet, depth, widen) for depth, widen in ((16, 1), (16, 2), (40, 1), (40, 2))
}
