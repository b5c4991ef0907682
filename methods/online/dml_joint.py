"""Deep mutual learning as a baseline of online ensembles (Zhang et al., CVPR 2018, arXiv:1706.00384)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32, kl
from kdbench.method import Method
from kdbench.settings import Temperature
from kdbench.taps import Out, Spec
from methods.online.okddip import group_loss
from methods.online.peers import means_of_others


@in_float32
def pairwise_loss(peers: Sequence[Tensor], temperature: float = 3.0) -> Tensor:
    """Σ_i 1 / (m - 1) · Σ_{j≠i} T² · KL( softmax(z_j / T) || softmax(z_i / T) ), of logits (B, K).

    Summed over classes and peers, averaged over the batch. Gradients reach the targets, too (see `DMLJoint`).
    """
    pairs = [kl(own, other, temperature) for own in peers for other in peers if other is not own]
    return torch.stack(pairs).sum() / (len(peers) - 1)


class DMLJoint(Method):
    """m peers step together on the sum of their losses, and targets are no constants; the first one is deployed.

    Ensemble:  L = Σ_i CE(y, z_i) + λ · Σ_i T² · KL( mean_{j≠i} z_j || z_i )
    Pairwise:  L = Σ_i CE(y, z_i) + λ · Σ_i 1 / (m - 1) · Σ_{j≠i} T² · KL( z_j || z_i )

    So DefangChen/OKDDip-AAAI2020 runs DML, first of all with the mean of the others' logits as the one target
    (``ensemble``). Unlike in DML itself a peer's gradient has a part through what it teaches the others.

    Args:
        peers: m.
        temperature: T.
        targets: of a peer.
    """

    leaf = "online/individual-students"
    paper = "zhang2018deep"
    title = "DML, joint"
    needs = frozenset({"labels", "peers"})
    terms = ("ce", "mutual")
    survey: ClassVar = {
        "type": "individual students",
        "students": "2 or more",
        "targets": "mean of the others, or each of them",
        "loss": "CE + KL",
        "adaptation": "none",
    }

    def __init__(
        self,
        peers: Annotated[int, Field(ge=2, le=100)] = 4,
        temperature: Temperature = 3.0,
        targets: Literal["ensemble", "pairwise"] = "ensemble",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_peers, self.temperature, self.targets = peers, temperature, targets

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.others = nn.ModuleList([self.spawn(k) for k in range(1, self.num_peers)])

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        logits = [s.logits, *(self.student_out(batch.x, peer).logits for peer in self.others)]
        if self.targets == "ensemble":
            mutual = group_loss(logits, means_of_others(logits), self.temperature)
        else:
            mutual = pairwise_loss(logits, self.temperature)
        return {"ce": torch.stack([cross_entropy(z, batch.y) for z in logits]).sum(), "mutual": mutual}
