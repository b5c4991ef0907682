"""Multilayer perceptrons for policies on vectors of observations."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from kdbench.models.base import Builder, Shape, TappedNet, behind


class MLP(TappedNet):
    """Linear layers with tanh between them: ``stage_i`` (B, width) is the i-th tanh, ``embed`` the last one.

    Tanh and the orthogonal initialisation (gain sqrt(2), .01 for the head, so that a policy starts almost uniform) are
    those of actor-critic practice: OpenAI's baselines, DLR-RM/stable-baselines3 (common/policies.py), and Engstrom et
    al., ICLR 2020, arXiv:2005.12729. There is no ``pre``, which is the input of a ReLU.

    Args:
        stages: linear layers, each with a tanh behind it.
        first: the number of the first of them (above 1 in a tail).
    """

    def __init__(self, stages: Iterable[nn.Module], head: nn.Linear, first: int = 1) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.head: nn.Linear = head
        self.first = first

    def features(self, x: Tensor) -> dict[str, Tensor]:
        taps: dict[str, Tensor] = {}
        for depth, layer in enumerate(self.stages, start=self.first):
            taps[f"stage{depth}"] = x = torch.tanh(layer(x))
        taps["embed"] = x
        return taps

    def tail(self, after: str) -> MLP:
        later = behind(after, self.first, len(self.stages))
        return MLP(list(self.stages)[later:], self.head, self.first + later).train(self.training)


def mlp(widths: tuple[int, ...], shape: Shape, outputs: int) -> MLP:
    """`outputs` action scores (B, outputs) of observations (B, n), through hidden layers of these `widths`."""
    sizes = [*shape, *widths]
    stages = [nn.Linear(n_in, n_out) for n_in, n_out in pairwise(sizes)]
    net = MLP(stages, nn.Linear(sizes[-1], outputs))
    for layer, gain in [*((layer, 2**0.5) for layer in stages), (net.head, 0.01)]:
        nn.init.orthogonal_(layer.weight, gain)
        nn.init.zeros_(layer.bias)
    return net


NETS: dict[str, Builder] = {
    "-".join(["mlp", *map(str, widths)]): partial(mlp, widths) for widths in ((8,), (16,), (64,), (64, 64))
}
