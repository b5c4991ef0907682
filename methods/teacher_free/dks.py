"""DKS: deeply-supervised knowledge synergy (Sun et al., CVPR 2019, arXiv:1906.00675)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32, kl
from kdbench.method import Method
from kdbench.settings import Temperature
from kdbench.taps import Out, Spec, Taps
from methods.online.trunk import branches, last_stage_but_one


@in_float32
def synergy_loss(exits: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
    """Σ_i Σ_{j≠i} T² · KL( softmax(z_j / T) || softmax(z_i / T) ) of logits (B, K) of two exits at least.

    Summed over classes and ordered pairs, averaged over the batch (all β of the paper are 1); no gradient reaches z_j.
    """
    return torch.stack([kl(z, other.detach(), temperature) for z, other in permutations(exits, 2)]).sum()


class DKS(Method):
    """A branch of its own behind each inner stage, and every classifier teaches every other.

    L = Σ_i CE(y, z_i) + Σ_i Σ_{j≠i} T² · KL( softmax(z_j / T) || softmax(z_i / T) )

    over the branches and the last exit, see `synergy_loss`; the plain network is deployed. Branches are fresh ends of
    the student's architecture, which the authors make of fewer blocks. The passes through them alone do not count as
    forward passes.

    Args:
        temperature: T.
    """

    leaf = "teacher-free/deep-supervision"
    paper = "sun2019deeply"
    title = "DKS"
    extension = True
    needs = frozenset({"labels", "peers"})
    taps = Taps(student=("stage*",))
    terms = ("ce", "synergy")
    survey: ClassVar = {
        "logits_hints": "logits",
        "deep_supervision": "branches behind inner stages, all pairs",
        "augmentation": "none",
        "architecture": "none",
        "task": "classification",
    }

    def __init__(self, temperature: Temperature = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        stages = student.all("stage")
        self.inner = stages[: stages.index(last_stage_but_one(student)) + 1]
        self.branches = nn.ModuleList(self.branch(k, after) for k, after in enumerate(self.inner, start=1))

    def branch(self, k: int, after: str) -> nn.Module:
        """The end of the `k`-th peer, behind a stage."""
        (end,) = branches(lambda _: self.spawn(k), after, 1)
        return end

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        exits = [s.logits, *(branch(s[tap]) for branch, tap in zip(self.branches, self.inner, strict=True))]
        return {
            "ce": torch.stack([cross_entropy(z, batch.y) for z in exits]).sum(),
            "synergy": synergy_loss(exits, self.temperature),
        }
