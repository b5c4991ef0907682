"""Random numbers that are pure functions of what they are for.

splitmix64 (Steele, Lea and Flood, OOPSLA 2014) as a counter-based generator, in 64-bit integers that wrap alike on
every device.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _signed(value: int) -> int:
    """The int64 with the low 64 bits of `value`."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical (not arithmetic) shift to the right."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


GOLDEN = _signed(0x9E3779B97F4A7C15)
_M1 = _signed(0xBF58476D1CE4E5B9)
_M2 = _signed(0x94D049BB133111EB)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _M1
    x = (x ^ _shift(x, 27)) * _M2
    return x ^ _shift(x, 31)


def random_bits(seed: int, epoch: int, stream: int, index: Tensor) -> Tensor:
    """63 random bits for each sample index, int64 >= 0, of the shape and device of `index`."""
    key = torch.zeros((), dtype=torch.int64)
    for word in (seed, epoch, stream):
        key = _mix((key ^ _signed(word)) + GOLDEN)
    return _shift(_mix((index + 1) * GOLDEN + int(key)), 1)


def uniform(bits: Tensor) -> Tensor:
    """Random bits as float32 in [0, 1)."""
    return (bits >> 39).to(torch.float32) / 2**24  # as many of the 63 as a float32 holds
