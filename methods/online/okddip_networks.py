"""Online distillation with diverse peers that are networks of their own (Chen et al., AAAI 2020, arXiv:1912.00350)."""

from __future__ import annotations

from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.taps import Out, Spec, Taps
from methods.online.okddip import Attention, OKDDip


class OKDDipNetworks(OKDDip):
    """Networks learn from one another by `Attention`, and a leader from their mean; the leader is deployed.

    L = Σ_i CE(y, z_i) + CE(y, z_leader) + λ · [ `group_loss`(z, t) + T² · KL( mean_i z_i || z_leader ) ]

    as of branches, see `methods.online.okddip.OKDDip`: the paper's network-based setting, where peers and leader share
    no block. They part at the image, so to say, and all their passes count.
    """

    title = "OKDDip, networks"
    taps = Taps()

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.trunk = "image"
        self.peers = nn.ModuleList([self.spawn(k) for k in range(1, self.num_peers + 1)])
        features = student.channels("embed")
        self.attention = Attention(features, max(features // 8, 1))

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        self.forwards["student"] += self.num_peers * len(batch)
        return super().losses(Out({**s.taps, self.trunk: batch.x}), t, batch)
