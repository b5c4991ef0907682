"""What the machine can do at best, through PyTorch: the peak that training is compared with.

A machine that is shared, or changes its clock, has no one speed; and convolutions may be faster than matrix products,
as on GPUs that compute them in TF32. So both are timed, in every round beside the training, and the fastest of all
counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.bench.reference import synchronise

SECONDS = 0.1
"""For which a kernel is repeated in each turn, after one run that warms it up."""


@dataclass(frozen=True)
class Kernel:
    """An operation, and how many FLOPs it takes (a multiply-add counts two)."""

    name: str
    flops: int
    run: Callable[[], Tensor]

    def speed(self, device: torch.device) -> float:
        """FLOP/s of the fastest of several runs."""
        best, began = 0.0, time.perf_counter()
        self.run()
        while not best or time.perf_counter() - began < SECONDS:
            synchronise(device)
            start = time.perf_counter()
            self.run()
            synchronise(device)
            best = max(best, self.flops / (time.perf_counter() - start))
        return best


@dataclass
class Peaks:
    """The highest FLOP/s seen so far, by dtype.

    Attributes:
        kernels: what is timed, by dtype.
        best: FLOP/s and the name of the kernel that reached them.
    """

    device: torch.device
    kernels: dict[torch.dtype, list[Kernel]]
    best: dict[torch.dtype, tuple[float, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, device: torch.device, dtypes: Sequence[torch.dtype]) -> Peaks:
        return cls(device, {dtype: list(kernels(device, dtype)) for dtype in dtypes})

    def turn(self) -> None:
        """Time every kernel once more."""
        with torch.no_grad():
            for dtype, several in self.kernels.items():
                found = [(kernel.speed(self.device), kernel.name) for kernel in several]
                self.best[dtype] = max([*found, self.best.get(dtype, (0.0, ""))])

    def __getitem__(self, dtype: torch.dtype) -> float:
        return self.best[dtype][0]


def kernels(device: torch.device, dtype: torch.dtype) -> Iterator[Kernel]:
    """Square matrix products, and 3x3 convolutions of as many input as output channels in channels-last memory."""

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype)

    def product(n: int) -> Kernel:
        a, b = random(n, n), random(n, n)
        return Kernel(f"matrix product of {n}", 2 * n**3, lambda: torch.mm(a, b))

    def convolution(images: int, channels: int, side: int) -> Kernel:
        x = random(images, channels, side, side).contiguous(memory_format=torch.channels_last)
        weight = random(channels, channels, 3, 3).contiguous(memory_format=torch.channels_last)
        flops = 2 * 9 * channels**2 * images * side**2
        return Kernel(f"3x3 convolution of {channels} channels", flops, lambda: F.conv2d(x, weight, padding="same"))

    large = device.type == "cuda"
    yield from map(product, (512, 1024, 2048, *((4096, 8192) if large else ())))
    for channels, side in ((64, 32), (128, 16), (256, 8)):
        yield convolution(1024 if large else 16, channels, side)
