"""Feature fusion for online mutual knowledge distillation (Kim et al., ICPR 2020, arXiv:1904.09058)."""

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
from methods.online.one import native_ensemble_loss
from methods.online.trunk import branches, last_stage_but_one


class Fusion(nn.Module):
    """Fused logits (B, K) of the peers' last maps, each (B, C, H, W).

    Concatenated they pass a depthwise 3x3 and a pointwise convolution, which has C channels again, both with batch norm
    and ReLU; then pooling over pixels and a linear layer.
    """

    def __init__(self, channels: int, peers: int, classes: int) -> None:
        super().__init__()
        wide = channels * peers
        self.depthwise = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(wide)
        self.pointwise = nn.Conv2d(wide, channels, 1, bias=False)
        self.pointwise_norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        x = self.depthwise_norm(self.depthwise(torch.cat(list(maps), dim=1))).relu()
        x = self.pointwise_norm(self.pointwise(x)).relu()
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


@in_float32
def fusion_loss(peers: Sequence[Tensor], fused: Tensor, temperature: float = 3.0) -> Tensor:
    """Σ_k T² · KL( fused || z_k ) + T² · KL( mean_k z_k || fused ), of logits (B, K), softened by T.

    Summed over classes and peers, averaged over the batch; no gradient reaches a target. Jangho-Kim/FFL-pytorch adds
    1e-7 to the targets' probabilities.
    """
    ensemble = torch.stack(list(peers)).mean(0).detach()
    return native_ensemble_loss(peers, fused, temperature) + kl(fused, ensemble, temperature)


class FFL(Method):
    """Peers on a shared trunk and the classifier of their fused features teach each other; the first is deployed.

    L = Σ_k CE(y, z_k) + CE(y, z_f) + λ · `fusion_loss`(z, z_f),  z_f = `Fusion` of the peers' last maps

    that is the ensemble of the peers teaches the fused classifier, which teaches each peer. The student is trunk and
    first peer in one; the others are as its end, freshly initialised. The passes through them alone do not count as
    forward passes. The authors' optimiser of the fusion has a weight decay of its own, ours shares the protocol's.

    Args:
        peers: networks that are fused.
        temperature: T.
    """

    leaf = "online/ensemble-of-students"
    paper = "kim2019feature"
    title = "FFL"
    needs = frozenset({"labels", "peers"})
    taps = Taps(student=("stage-2", "stage-1"))
    terms = ("ce", "kd")
    survey: ClassVar = {
        "type": "ensemble of students",
        "students": "2 peers and a fused classifier",
        "targets": "fused classifier; ensemble of the peers",
        "loss": "CE + KL",
        "adaptation": "learned fusion of features",
    }

    def __init__(
        self, peers: Annotated[int, Field(ge=2, le=100)] = 2, temperature: Temperature = 3.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_peers, self.temperature = peers, temperature

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.trunk = last_stage_but_one(student)
        self.last = student.all("stage")[-1]
        self.peers = branches(self.spawn, self.trunk, self.num_peers - 1)
        self.fusion = Fusion(student.channels(self.last), self.num_peers, student.channels("logits"))

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        peers = [s, *(Out(peer.tap(s[self.trunk], (self.last,))) for peer in self.peers)]  # type: ignore[operator]
        logits = [peer.logits for peer in peers]
        fused = self.fusion([peer[self.last] for peer in peers])
        return {
            "ce": torch.stack([cross_entropy(z, batch.y) for z in (*logits, fused)]).sum(),
            "kd": fusion_loss(logits, fused, self.temperature),
        }
