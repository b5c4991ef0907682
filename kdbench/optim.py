"""Optimisers of published results that PyTorch has in another form."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class RMSprop(torch.optim.Optimizer):
    """v ← α v + (1 - α) g², w ← w - η g / √(v + ε): ε is inside the root, as in Keras of 2015 (optimizers.py), and not
    behind it, as in `torch.optim.RMSprop` and in later versions of Keras.

    With ε = 1e-6 the root is never below 1e-3. So steps shrink with gradients that are smaller than that, where behind
    the root so small an ε changes nothing.

    Args:
        lr: η.
        alpha: α.
        eps: ε.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        alpha: float = 0.9,
        eps: float = 1e-6,
    ) -> None:
        super().__init__(params, {"lr": lr, "alpha": alpha, "eps": eps})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = closure() if closure else None
        with torch.no_grad():
            for group in self.param_groups:
                for weight in group["params"]:
                    if weight.grad is not None:
                        self._move(weight, group["lr"], group["alpha"], group["eps"])
        return loss

    def _move(self, weight: Tensor, lr: float, alpha: float, eps: float) -> None:
        state, grad = self.state[weight], weight.grad
        assert grad is not None
        if not state:
            state["square_avg"] = torch.zeros_like(weight)
        square = state["square_avg"].mul_(alpha).addcmul_(grad, grad, value=1 - alpha)
        weight.addcdiv_(grad, (square + eps).sqrt_(), value=-lr)


__all__ = ["RMSprop"]
