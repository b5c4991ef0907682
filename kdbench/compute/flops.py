"""How much arithmetic a network takes, counted and not measured."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def forward_flops(net: nn.Module, shape: tuple[int, ...]) -> int:
    """FLOPs of one input's forward pass (a multiply-add counts two), by PyTorch's counter: matrix products alone."""
    x = torch.zeros(1, *shape, device=next(net.parameters()).device)
    training = net.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.eval()(x)
    net.train(training)
    return counter.get_total_flops()


def macs(net: nn.Module, shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of a network for one input: half of its FLOPs."""
    return forward_flops(net, shape) // 2
