"""Losses and transforms that several methods share, and how a loss keeps its digits."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import cross_entropy

P = ParamSpec("P")
R = TypeVar("R")

HOT = 20.0
"""The temperature above which logarithms of softmax would lose the divergence.

They carry a rounding error of up to u·ln K each (u = 6e-8 in float32), which T² multiplies: up to 1e-4 for T = 20 and
K = 100, beside values of about σ²/2 for logits that differ by σ. At T = 1e4 it would be 30.
"""
HOTTEST = 1e15
"""T² · KL has reached its limit for T → ∞ to every digit, and T² still fits into a float32."""


def in_float32(loss: Callable[P, R]) -> Callable[P, R]:
    """Have a loss compute in float32 (or float64) whatever its inputs: autocast off, half-precision tensors widened.

    Tensors may stand in lists, too, as those of several networks do.

    Autocast would compute sums of squares, products and logarithms in the half type: float16 overflows at 65504,
    bfloat16 has 8 bits, and differences of nearly equal numbers keep none of them.
    """

    @wraps(loss)
    def wide(*args: P.args, **kwargs: P.kwargs) -> R:
        tensors = [tensor for value in (*args, *kwargs.values()) for tensor in _tensors(value)]
        if any(torch.is_autocast_enabled(device) for device in {tensor.device.type for tensor in tensors}):
            with torch.autocast(tensors[0].device.type, enabled=False):
                return wide(*args, **kwargs)
        return loss(*map(_widened, args), **{name: _widened(value) for name, value in kwargs.items()})

    return wide


def _tensors(value: Any) -> list[Tensor]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [each for each in values if isinstance(each, Tensor)]


def _widened(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_widened, value))
    half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
    return value.float() if half else value


@in_float32
def kl(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """T² · KL( softmax(teacher / T) || softmax(student / T) ), summed over classes, averaged over the batch.

    Of maps it is averaged over their pixels, too. The factor T² keeps the gradient's scale independent of T (Hinton et
    al. 2015, section 2). Note that ``nn.KLDivLoss()`` with its default reduction would divide by the number of classes.

    Args:
        student, teacher: logits, (B, K), or maps (B, K, H, W) of them, whose pixels count as samples.
        temperature: any T > 0.
    """
    if student.dim() > 2:
        student, teacher = (x.flatten(2).movedim(1, 2).flatten(0, 1) for x in (student, teacher))
    if temperature > HOT:
        temperature = min(temperature, HOTTEST)
        q = (teacher / temperature).softmax(1)
        return divergence(q, (student - teacher) / temperature).mean() * temperature**2
    log_p = F.log_softmax(student / temperature, dim=1)
    log_q = F.log_softmax(teacher / temperature, dim=1)
    return kl_of_logs(log_p, log_q) * temperature**2


def kl_of_logs(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(q || p) of log-probabilities (B, K), summed over classes, averaged over the batch; never negative."""
    return _not_negative(F.kl_div(log_p, log_q, reduction="batchmean", log_target=True))


def divergence(q: Tensor, x: Tensor) -> Tensor:
    """KL(q || p) for the p that is q with odds changed by eˣ, p ∝ q · eˣ; to every digit also where p is nearly q.

    That is log E_q[eˣ] - E_q[x], or with z = x - E_q[x] (no change of p) log(1 + E_q[eᶻ - 1 - z]): no two terms of the
    sum cancel, because eᶻ - 1 - z is never negative.

    Args:
        q: probabilities, (B, K).
        x: (B, K).

    Returns:
        (B,).
    """
    z = x - (q * x).sum(1, keepdim=True)
    far = z.abs().amax(1, keepdim=True) > 60  # eᶻ would not fit into a float32 much longer
    near = z.masked_fill(far, 0)
    small = near.abs() < 0.5
    w = near.masked_fill(~small, 0)
    series = torch.ones_like(w)  # 1 + w/3 (1 + w/4 (1 + ...)): 2 (eʷ - 1 - w) / w²
    for n in range(14, 2, -1):
        series = 1 + w / n * series
    excess = torch.where(small, w * w / 2 * series, near.expm1() - near)
    tiny = torch.finfo(q.dtype).tiny
    apart = _not_negative((q.clamp(min=tiny).log() + z.masked_fill(~far, 0)).logsumexp(1))
    return torch.where(far.squeeze(1), apart, (q * excess).sum(1).log1p())


def _not_negative(value: Tensor) -> Tensor:
    """Zero for what rounding made negative; the gradient stays, for it is right to rounding, too."""
    return value - value.detach().clamp(max=0)


def to_smaller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps (B, C, H, W), the larger one average-pooled to the size of the smaller (as in RepDistiller)."""
    if a.shape[2] > b.shape[2]:
        return F.adaptive_avg_pool2d(a, (b.shape[2], b.shape[3])), b
    if a.shape[2] < b.shape[2]:
        return a, F.adaptive_avg_pool2d(b, (a.shape[2], a.shape[3]))
    return a, b


__all__ = ["HOT", "HOTTEST", "cross_entropy", "divergence", "in_float32", "kl", "kl_of_logs", "to_smaller"]
