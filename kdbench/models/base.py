"""What the networks of the zoo share: taps from one plain forward pass."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable
from typing import Literal, cast

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.errors import DoesNotFit
from kdbench.taps import UNCUT

Shape = tuple[int, ...]  # of one input: (C, H, W) of an image, (n,) of a vector of observations


class TappedNet(nn.Module, ABC):
    """A network whose taps (see `kdbench.taps`) are by-products of its forward pass: no hooks, nothing computed twice.

    No activation of the zoo works in place, or a ``pre`` tap would be overwritten by the ReLU behind it.
    """

    head: nn.Module

    @abstractmethod
    def features(self, x: Tensor) -> dict[str, Tensor]:
        """Every tap but ``logits``, in the order of computation, for inputs (B, *shape)."""

    def output(self, x: Tensor, taps: dict[str, Tensor]) -> Tensor:
        """``logits`` from the other taps of the inputs `x`."""
        logits: Tensor = self.head(taps["embed"])
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.output(x, self.features(x))

    def tap(self, x: Tensor, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """The taps called `names` (all when None) and ``logits``; KeyError for a name that the network has not."""
        taps = self.features(x)
        taps["logits"] = self.output(x, taps)
        return taps if names is None else {name: taps[name] for name in (*names, "logits")}

    def tail(self, after: str) -> TappedNet:
        """The part of this network behind a stage, as a network: what turns that tap into ``logits``.

        It consists of the very modules of this network (a copy is the caller's to make), reads the tap `after` and has
        the taps that come later, under the names that they have here.

        Raises:
            DoesNotFit: the network cannot be cut there.
        """
        raise DoesNotFit(UNCUT)


Builder = Callable[[Shape, int], TappedNet]  # (shape of one input, number of outputs) -> fresh network


def behind(after: str, first: int, n: int) -> int:
    """How many of the `n` stages of a network, numbered from `first` on, end with the tap `after`.

    Raises:
        DoesNotFit: no stage has this name.
    """
    stages = [f"stage{i}" for i in range(first, first + n)]
    if after not in stages:
        raise DoesNotFit(f"this network cannot be cut behind '{after}': take one of its stages, {', '.join(stages)}.")
    return stages.index(after) + 1


def through(
    stages: nn.ModuleList, x: Tensor, taps: dict[str, Tensor], first: int = 1, rectified: bool = True
) -> Tensor:
    """What `stages` of blocks make of `x`; writes ``pre`` and ``stage`` of each, numbered from `first` on, into `taps`.

    A block returns its output before the ReLU that closes it, if its network is `rectified`.
    """
    for depth, blocks in enumerate(stages, start=first):
        for block in cast(nn.ModuleList, blocks):
            pre = x = block(x)
            if rectified:
                x = F.relu(pre)
        if rectified:
            taps[f"pre{depth}"] = pre
        taps[f"stage{depth}"] = x
    return x


class StagedNet(TappedNet):
    """Stem, stages of blocks, neck, linear head.

    Every block returns its output *before* the closing ReLU; the ReLU is applied by the network (see `through`), which
    gives ``pre`` and ``stage``. The neck turns the last stage (B, C, H, W) into ``embed`` (B, D).

    Args:
        stem: None in a tail, which begins with a stage.
        rectified: False where no ReLU closes a block, as in MobileNetV2; there are no ``pre`` taps then.
        first: the number of the first of `stages`.
    """

    def __init__(
        self,
        stem: nn.Module | None,
        stages: Iterable[Iterable[nn.Module]],
        head: nn.Linear,
        neck: nn.Module | None = None,
        *,
        rectified: bool = True,
        first: int = 1,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(nn.ModuleList(blocks) for blocks in stages)
        self.neck = neck or global_pool()
        self.head: nn.Linear = head
        self.rectified, self.first = rectified, first

    def features(self, x: Tensor) -> dict[str, Tensor]:
        taps: dict[str, Tensor] = {}
        if self.stem is not None:
            taps["stem"] = x = self.stem(x)
        x = through(self.stages, x, taps, first=self.first, rectified=self.rectified)
        taps["embed"] = self.neck(x)
        return taps

    def tail(self, after: str) -> StagedNet:
        later = behind(after, self.first, len(self.stages))
        stages = cast("list[nn.ModuleList]", list(self.stages)[later:])
        first = self.first + later
        return StagedNet(None, stages, self.head, self.neck, rectified=self.rectified, first=first).train(self.training)


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


def small_head_init(head: nn.Linear | nn.Conv2d) -> None:
    """Linear classifier, of images or of pixels: normal with std 0.01, zero bias."""
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(cast(Tensor, head.bias))


Start = Literal["torch", "glorot", "tenth", "unit"]
"""How weights begin: as PyTorch has them; ``glorot``: uniform of variance 2 / (in + out), zero bias (Glorot and Bengio,
AISTATS 2010; the default of Keras and of TensorFlow's slim); ``tenth``: normal with std .1, drawn again beyond two of
them, zero bias (slim's LeNet); ``unit``: the same with std 1, and a bias of .1 (iRapha/replayed_distillation)."""


def start(net: nn.Module, how: Start) -> None:
    """Convolutions and linear layers as `how` says."""
    for module in net.modules():
        if how == "torch" or not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        if how == "glorot":
            nn.init.xavier_uniform_(module.weight)
        else:
            std = 1.0 if how == "unit" else 0.1
            nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        if module.bias is not None:
            nn.init.constant_(module.bias, 0.1 if how == "unit" else 0.0)
