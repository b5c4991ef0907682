"""Deep mutual learning (Zhang et al., CVPR 2018, arXiv:1706.00384)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32, kl
from kdbench.method import Method, Player
from kdbench.settings import Temperature
from kdbench.taps import Spec

Variant = Literal["alternating", "simultaneous"]


@in_float32
def mutual_loss(own: Tensor, others: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
    """1 / (m - 1) · Σ_j T² · KL( softmax(z_j / T) || softmax(own / T) ) over the m - 1 other peers' logits (B, K).

    Equation 9 of the paper; summed over classes, averaged over the batch. No gradient reaches `others`.
    """
    return torch.stack([kl(own, other.detach(), temperature) for other in others]).mean()


class DML(Method):
    """m peers of one architecture teach each other; the first one is deployed.

    L_k = CE(y, z_k) + `mutual_loss`(z_k, others), one optimiser step per peer. ``alternating`` is the paper's
    algorithm 1: once a peer has stepped, the next one learns from its *new* predictions (m - 1 more forward passes).
    ``simultaneous`` steps all peers on predictions of the same moment (winycg/MCL-OKD, which also has T = 3).
    """

    leaf = "online/individual-students"
    paper = "zhang2018deep"
    title = "DML"
    needs = frozenset({"labels", "peers"})
    terms = ("ce", "mutual")
    survey: ClassVar = {
        "type": "individual students",
        "students": "2 or more",
        "targets": "each peer's prediction",
        "loss": "CE + KL",
        "adaptation": "none",
    }

    def __init__(
        self,
        peers: Annotated[int, Field(ge=2, le=100)] = 2,
        temperature: Temperature = 1.0,
        variant: Variant = "alternating",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_peers, self.temperature, self.variant = peers, temperature, variant

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.peers = nn.ModuleList([self.student, *(self.spawn(k) for k in range(1, self.num_peers))])

    def players(self) -> Sequence[Player]:
        return [Player(f"peer{k}", list(peer.parameters())) for k, peer in enumerate(self.peers)]

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        logits = [self.student_out(batch.x, peer).logits for peer in self.peers]
        for k, peer in enumerate(self.peers):
            others = logits[:k] + logits[k + 1 :]
            yield (
                f"peer{k}",
                {
                    "ce": cross_entropy(logits[k], batch.y),
                    "mutual": mutual_loss(logits[k], others, self.temperature),
                },
            )
            if self.variant == "alternating" and k < len(self.peers) - 1:
                with torch.no_grad():
                    logits[k] = self.student_out(batch.x, peer).logits
