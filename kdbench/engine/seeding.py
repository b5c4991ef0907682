"""Common random numbers: streams for the student, the adapters and the data, each a function of its own key."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def key(*parts: object) -> int:
    """A 63-bit seed from any parts, the same in every process and on every machine."""
    text = "\x1f".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


@contextmanager
def seeded(*parts: object) -> Iterator[None]:
    """Draw from torch's global generator as if it had just been seeded by `parts`; its state is restored afterwards."""
    # the GPU in use alone: to ask for the state of others, or of one that is not in use yet, would take memory on it
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else []):
        torch.manual_seed(key(*parts))
        yield
