"""Batch norm over a batch of which other processes hold the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

Add = Callable[[Tensor], None]
"""Sums a contiguous tensor over all processes, in place."""


class BatchNormOfAll(TorchFunctionMode):
    """Meanwhile, batch norm in training (`torch.nn.functional.batch_norm`) takes the statistics of the whole batch.

    A mode of calls rather than another class of layers: networks stay what they are, also those that a method makes on
    the way. torch's SyncBatchNorm takes no tensors of the CPU.
    """

    def __init__(self, add: Add) -> None:
        super().__init__()
        self._add = add

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        normalise = self._batch_norm if func is F.batch_norm else func
        return normalise(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        """As `torch.nn.functional.batch_norm`, of (B, C, ...)."""
        if not training:
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        x = input if input.dtype == torch.float64 else input.float()
        channels = x.shape[1]
        var, mean = torch.var_mean(x, [0, *range(2, x.dim())], correction=0)
        n = x.new_full((1,), x.numel() // channels, dtype=torch.float64)
        # in float64, in which the variance may be had as a difference of squares
        own = torch.cat([n, n * mean.double(), n * (var.double() + mean.double().square())])
        n, total, squares = _Sum.apply(own, self._add).split([1, channels, channels])
        mean = total / n
        var = squares / n - mean.square()
        with torch.no_grad():
            for running, now in ((running_mean, mean), (running_var, var * n / (n - 1))):
                if running is not None:
                    running.lerp_(now.to(running.dtype), momentum)
        scale = (var + eps).rsqrt()
        if weight is not None:
            scale = scale * weight
        shift = -mean * scale if bias is None else bias - mean * scale
        shape = (1, channels, *[1] * (x.dim() - 2))
        return torch.addcmul(shift.to(x.dtype).view(shape), x, scale.to(x.dtype).view(shape)).to(input.dtype)


class _Sum(torch.autograd.Function):
    """The sum over all processes, to which the gradients of all flow back."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, add: Add) -> Tensor:
        ctx.add = add
        total = tensor.clone()
        add(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(gradient.contiguous(), ctx.add), None
