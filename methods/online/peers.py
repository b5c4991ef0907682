"""What peers learn from one another, beside what each method makes of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdbench.losses import in_float32


@in_float32
def means_of_others(peers: Sequence[Tensor]) -> list[Tensor]:
    """For each of m peers 1 / (m - 1) · Σ_{j≠i} z_j, of their logits (B, K)."""
    total = torch.stack(list(peers)).sum(0)
    return [(total - own) / (len(peers) - 1) for own in peers]
