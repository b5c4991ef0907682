"""Online knowledge distillation with diverse peers (Chen et al., AAAI 2020, arXiv:1912.00350)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdbench.losses import in_float32, kl


class Attention(nn.Module):
    """A_ij = softmax over j of <W_q h_i, W_k h_j>: what peer i takes from peer j (itself included), (B, m, m).

    Args:
        features: D.
        projected: to how many; the authors' code has D / 8.
    """

    def __init__(self, features: int, projected: int) -> None:
        super().__init__()
        self.query = nn.Linear(features, projected, bias=False)
        self.key = nn.Linear(features, projected, bias=False)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """From the peers' features, each (B, D)."""
        h = torch.stack(list(features), dim=1)
        return (self.query(h) @ self.key(h).transpose(1, 2)).softmax(2)


@in_float32
def attended(attention: Tensor, peers: Sequence[Tensor]) -> list[Tensor]:
    """t_i = Σ_j A_ij · z_j, each (B, K), of the peers' logits and the weights (B, m, m)."""
    return list((attention @ torch.stack(list(peers), dim=1)).unbind(1))


@in_float32
def group_loss(peers: Sequence[Tensor], targets: Sequence[Tensor], temperature: float = 3.0) -> Tensor:
    """Σ_i T² · KL( softmax(t_i / T) || softmax(z_i / T) ), of logits (B, K).

    Summed over classes and peers, averaged over the batch. As in DefangChen/OKDDip-AAAI2020 targets are not detached:
    their gradients are what the attention learns from. The code adds 1e-7 to their probabilities.
    """
    return torch.stack([kl(z, target, temperature) for z, target in zip(peers, targets, strict=True)]).sum()
