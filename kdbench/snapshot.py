"""Frozen copies of networks in training: past selves, and averages of weights."""

from __future__ import annotations

import copy
from collections.abc import Collection

import torch
from torch import Tensor, nn


class Snapshot(nn.Module):
    """A copy of a network that is never trained: without gradient, always in eval mode, part of the checkpoint.

    `take` makes it the network of this moment: a generation's teacher (BAN), the model before new classes came (LwF,
    iCaRL, BiC, LUCIR). `follow` makes it an average over steps (Mean Teacher, self-ensembling).
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Snapshot:
        """Stays in eval mode."""
        super().train(False)
        return self

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)
        return out

    def tap(self, x: Tensor, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """As of `kdbench.taps.Net`."""
        taps: dict[str, Tensor] = self.net.tap(x, names)  # type: ignore[operator]
        return taps

    @torch.no_grad()
    def take(self, net: nn.Module) -> None:
        """Become `net` as it is now."""
        for mine, theirs in self._pairs(net):
            mine.copy_(theirs)

    @torch.no_grad()
    def follow(self, net: nn.Module, decay: float) -> None:
        """w <- decay·w + (1 - decay)·w_net, for parameters and running statistics alike; counts are copied.

        The statistics belong to the average too: in eval mode it would else run on those of a network that it is not.
        """
        for mine, theirs in self._pairs(net):
            if mine.is_floating_point():
                mine.lerp_(theirs, 1 - decay)
            else:
                mine.copy_(theirs)

    def _pairs(self, net: nn.Module) -> list[tuple[Tensor, Tensor]]:
        state = net.state_dict()
        return [(mine, state[name]) for name, mine in self.net.state_dict().items()]


__all__ = ["Snapshot"]
