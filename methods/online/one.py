"""Knowledge distillation by on-the-fly native ensemble (Lan, Zhu, Gong, NeurIPS 2018, arXiv:1806.04606)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdbench.losses import in_float32, kl


class Gate(nn.Sequential):
    """g = softmax( ReLU( BN( W · f ) ) ): the weight of each branch, (B, m), by the trunk's pooled features (B, D)."""

    def __init__(self, features: int, branches: int) -> None:
        super().__init__(nn.Linear(features, branches), nn.BatchNorm1d(branches), nn.ReLU(), nn.Softmax(dim=1))


@in_float32
def gated(gate: Tensor, branches: Sequence[Tensor]) -> Tensor:
    """z_e = Σ_i g_i · z_i, (B, K), of the branches' logits, each (B, K), and the gate's weights, (B, m)."""
    return (gate[:, :, None] * torch.stack(list(branches), dim=1)).sum(1)


@in_float32
def native_ensemble_loss(branches: Sequence[Tensor], ensemble: Tensor, temperature: float = 3.0) -> Tensor:
    """Σ_i T² · KL( softmax(z_e / T) || softmax(z_i / T) ), of logits (B, K); no gradient reaches the ensemble.

    Summed over classes and branches, averaged over the batch. Lan1991Xu/ONE_NeurIPS2018 adds 1e-7 to the target.
    """
    return torch.stack([kl(branch, ensemble.detach(), temperature) for branch in branches]).sum()
