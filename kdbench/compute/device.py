"""The device that computes: its name, whether it can be used, and how it rounds float32."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from kdbench.errors import UserError
from kdbench.targets import first_line


@lru_cache
def device_name(device: torch.device) -> str:
    """Model name of the GPU, or of the processor where the system tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def check_usable(device: torch.device) -> None:
    """Raises `UserError` where not even a number finds room: a GPU is full, or another process has it for itself."""
    try:
        torch.zeros((), device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        raise UserError(
            f"the device {device} cannot be used ({first_line(error)}): wait until it is free, or choose another with "
            "CUDA_VISIBLE_DEVICES, trainer.devices=[K] or trainer.accelerator=cpu."
        ) from None


def has_tf32(device: torch.device) -> bool:
    """Whether float32 can be rounded to TF32 there: on NVIDIA's GPUs since Ampere."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Meanwhile, products and convolutions of float32 on a GPU round what they multiply to the 10 bits of TF32, or not.

    PyTorch by itself allows that to convolutions alone, so that what is called float32 would be neither.
    """
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = allowed
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value
