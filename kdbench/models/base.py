"""What the networks of the zoo share: taps from one plain forward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

Shape = tuple[int, int, int]  # (C, H, W)


class TappedNet(nn.Module, ABC):
    """A network whose taps (see `kdbench.taps`) are by-products of its forward pass: no hooks, nothing computed twice.

    No activation of the zoo works in place, or a ``pre`` tap would be overwritten by the ReLU behind it.
    """

    head: nn.Linear

    @abstractmethod
    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Every tap but ``logits``, in the order of computation, for images (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x)["embed"])
        return logits

    def tap(self, x: Tensor, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """The taps called `names` (all when None) and ``logits``; KeyError for a name that the network has not."""
        taps = self.features(x)
        taps["logits"] = self.head(taps["embed"])
        return taps if names is None else {name: taps[name] for name in (*names, "logits")}


Builder = Callable[[Shape, int], TappedNet]  # (image shape, number of classes) -> fresh network


class StagedNet(TappedNet):
    """Stem, stages of blocks, neck, linear head.

    Every block returns its output *before* the closing ReLU; the ReLU is applied here, which gives ``pre`` and
    ``stage``. The neck turns the last stage (B, C, H, W) into ``embed`` (B, D).
    """

    def __init__(
        self, stem: nn.Module, stages: Iterable[Iterable[nn.Module]], head: nn.Linear, neck: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(nn.ModuleList(blocks) for blocks in stages)
        self.neck = neck or global_pool()
        self.head = head

    def features(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        taps = {"stem": x}
        for depth, blocks in enumerate(self.stages, start=1):
            for block in cast(nn.ModuleList, blocks):
                pre = block(x)
                x = F.relu(pre)
            taps[f"pre{depth}"], taps[f"stage{depth}"] = pre, x
        taps["embed"] = self.neck(x)
        return taps


def conv_bn(
    c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1, bias: bool = False
) -> list[nn.Module]:
    """Convolution with "same" padding and batch normalisation."""
    conv = nn.Conv2d(c_in, c_out, kernel, stride, padding=kernel // 2, groups=groups, bias=bias)
    return [conv, nn.BatchNorm2d(c_out)]


def conv_bn_relu(
    c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1, bias: bool = False
) -> list[nn.Module]:
    return [*conv_bn(c_in, c_out, kernel, stride, groups, bias), nn.ReLU()]


def global_pool() -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())


def he_init(net: nn.Module) -> None:
    """Convolutions: normal with std sqrt(2 / (k² C_out)), zero bias (He et al. 2015, fan-out mode). The rest stays."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def small_head_init(head: nn.Linear) -> None:
    """Linear classifier: normal with std 0.01, zero bias."""
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
