"""Knowledge distillation by on-the-fly native ensemble (Lan, Zhu, Gong, NeurIPS 2018, arXiv:1806.04606)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32, kl
from kdbench.method import Method
from kdbench.settings import Temperature
from kdbench.taps import Out, Spec, Taps
from methods.online.trunk import branches, last_stage_but_one


class Gate(nn.Module):
    """g = softmax( ReLU( BN( W · f ) ) ): the weight of each branch, (B, m), by the trunk's pooled features (B, D)."""

    def __init__(self, features: int, branches: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(features, branches), nn.BatchNorm1d(branches)

    def forward(self, features: Tensor) -> Tensor:
        z, norm = self.linear(features), self.norm
        if len(z) == 1:  # has no statistics of its own, and takes the running ones
            z = F.batch_norm(z, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
        else:
            z = norm(z)
        return z.relu().softmax(1)


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


class ONE(Method):
    """Branches on a shared trunk learn from their gated ensemble, which learns with them; the first is deployed.

    L = Σ_i CE(y, z_i) + CE(y, z_e) + λ · `native_ensemble_loss`(z_1 ... z_m, z_e),  z_e = `gated` logits

    The student is trunk and first branch in one; the others are as its end, freshly initialised. The passes through
    them alone do not count as forward passes.

    Args:
        branches: m.
        temperature: T.
    """

    leaf = "online/shared-blocks"
    paper = "lan2018knowledge"
    title = "ONE"
    needs = frozenset({"labels", "peers"})
    taps = Taps(student=("stage-2",))
    terms = ("ce", "kd")
    survey: ClassVar = {
        "type": "shared blocks",
        "students": "3 branches",
        "targets": "gated ensemble of the branches",
        "loss": "CE + KL",
        "adaptation": "learned gate",
    }

    def __init__(
        self, branches: Annotated[int, Field(ge=2, le=100)] = 3, temperature: Temperature = 3.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num_branches, self.temperature = branches, temperature

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.trunk = last_stage_but_one(student)
        self.branches = branches(self.spawn, self.trunk, self.num_branches - 1)
        self.gate = Gate(student.channels(self.trunk), self.num_branches)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        trunk = s[self.trunk]
        logits = [s.logits, *(branch(trunk) for branch in self.branches)]
        ensemble = gated(self.gate(trunk.mean((2, 3))), logits)
        return {
            "ce": torch.stack([cross_entropy(z, batch.y) for z in (*logits, ensemble)]).sum(),
            "kd": native_ensemble_loss(logits, ensemble, self.temperature),
        }
