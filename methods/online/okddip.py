"""Online knowledge distillation with diverse peers (Chen et al., AAAI 2020, arXiv:1912.00350)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32, kl
from kdbench.method import Method
from kdbench.settings import Temperature
from kdbench.taps import Out, Spec, Taps
from methods.online.trunk import branches, last_stage_but_one


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


class OKDDip(Method):
    """Peers on a shared trunk learn from one another by `Attention`, and a leader from their mean; it is deployed.

    L = Σ_i CE(y, z_i) + CE(y, z_leader) + λ · [ `group_loss`(z, t) + T² · KL( mean_i z_i || z_leader ) ]

    with the peers' targets t = `attended` logits. The student is trunk and leader in one; peers are as its end, freshly
    initialised. The passes through them alone do not count as forward passes.

    Args:
        peers: m, beside the leader.
        temperature: T.
    """

    leaf = "online/ensemble-of-students"
    paper = "chen2019online"
    title = "OKDDip"
    needs = frozenset({"labels", "peers"})
    taps = Taps(student=("stage-2",))
    terms = ("ce", "group", "leader")
    survey: ClassVar = {
        "type": "ensemble of students",
        "students": "3 peers and a leader",
        "targets": "attention-weighted peers; their mean",
        "loss": "CE + KL",
        "adaptation": "learned attention",
    }

    def __init__(
        self, peers: Annotated[int, Field(ge=2, le=100)] = 3, temperature: Temperature = 3.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_peers, self.temperature = peers, temperature

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.trunk = last_stage_but_one(student)
        self.peers = branches(self.spawn, self.trunk, self.num_peers)
        features = student.channels("embed")
        self.attention = Attention(features, max(features // 8, 1))

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        peers = [peer.tap(s[self.trunk], ("embed",)) for peer in self.peers]  # type: ignore[operator]
        logits = [peer["logits"] for peer in peers]
        targets = attended(self.attention([peer["embed"] for peer in peers]), logits)
        return {
            "ce": torch.stack([cross_entropy(z, batch.y) for z in (*logits, s.logits)]).sum(),
            "group": group_loss(logits, targets, self.temperature),
            "leader": kl(s.logits, torch.stack(logits).mean(0), self.temperature),
        }
