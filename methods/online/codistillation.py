"""Large scale distributed training through online distillation (Anil et al., ICLR 2018, arXiv:1804.03235)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method, Player, Snapshot
from kdbench.settings import Count
from kdbench.taps import Spec


@in_float32
def agreement_loss(own: Tensor, others: Sequence[Tensor]) -> Tensor:
    """ψ = - Σ_c q_c · log softmax(own)_c with q = 1 / (m - 1) · Σ_j softmax(z_j), the other peers' mean prediction.

    Of logits (B, K); summed over classes, averaged over the batch. No gradient reaches `others`.
    """
    return cross_entropy(own, torch.stack([z.detach().softmax(1) for z in others]).mean(0))


class Codistillation(Method):
    """Peers on examples of their own learn what stale copies of the others predict there; the first one is deployed.

    L_k = CE(y, z_k) + `agreement_loss`(z_k, stale others),  without the second term in the burn-in

    The paper's algorithm 1, with one optimiser step per peer; copies are exchanged every so many steps, as a worker
    would read another's checkpoint.

    Args:
        peers: m.
        burn_in: the share of the epochs before peers listen to one another.
        exchange: steps from one exchange of copies to the next.
        examples: ``own``: each batch is dealt out, every m-th image to the same peer, which so sees every image in some
            epoch; ``same``: all see it whole.
    """

    leaf = "online/individual-students"
    paper = "anil2018large"
    title = "Codistillation"
    needs = frozenset({"labels", "peers"})
    terms = ("ce", "agreement")
    survey: ClassVar = {
        "type": "individual students",
        "students": "2 or more, on different examples",
        "targets": "mean prediction of stale copies of the others",
        "loss": "CE + CE",
        "adaptation": "none",
    }

    def __init__(
        self,
        peers: Annotated[int, Field(ge=2, le=100)] = 2,
        burn_in: Annotated[float, Field(ge=0, lt=1)] = 0.1,
        exchange: Count = 50,
        examples: Literal["own", "same"] = "own",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_peers, self.burn_in, self.exchange, self.examples = peers, burn_in, exchange, examples

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.peers = nn.ModuleList([self.student, *(self.spawn(k) for k in range(1, self.num_peers))])
        self.copies = nn.ModuleList([Snapshot(peer) for peer in self.peers])

    def players(self) -> Sequence[Player]:
        return [Player(f"peer{k}", list(peer.parameters())) for k, peer in enumerate(self.peers)]

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        # a batch with fewer images than peers is whole for each
        dealt = self.num_peers if self.examples == "own" and len(batch) >= self.num_peers else 1
        for k, peer in enumerate(self.peers):
            x, y = (part[k % dealt :: dealt] for part in (batch.x, batch.y))
            z = self.student_out(x, peer).logits
            agreement = z.new_zeros(())
            if self.epoch >= self.burn_in * self.protocol.epochs:
                stale = [self.teacher_out(x, copy).logits for j, copy in enumerate(self.copies) if j != k]
                agreement = agreement_loss(z, stale)
            yield f"peer{k}", {"ce": cross_entropy(z, y), "agreement": agreement}

    def after_step(self, batch: Batch) -> None:
        # counted in images, a number that outlives a kill
        if self.images_seen % (self.exchange * self.protocol.batch_size) < len(batch):
            for copy, peer in zip(self.copies, self.peers, strict=True):
                copy.take(peer)  # type: ignore[operator]
