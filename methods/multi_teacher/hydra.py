"""Hydra: a head for each member of an ensemble (Tran et al., 2020, arXiv:2001.04694)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import in_float32, kl
from kdbench.method import Player, Stage
from kdbench.settings import Temperature
from kdbench.taps import Out, Spec, Taps
from methods.multi_teacher.average import average_loss
from methods.multi_teacher.pool import Pool, logits_of
from methods.online.trunk import branches, last_stage_but_one


@in_float32
def heads_loss(heads: Sequence[Tensor], teachers: Sequence[Tensor], temperature: float) -> Tensor:
    """Mean over k of T² · KL( softmax(t_k / T) || softmax(z_k / T) ), of logits (B, K): each head learns one member.

    Summed over classes, averaged over the batch.
    """
    return torch.stack([kl(head, teacher, temperature) for head, teacher in zip(heads, teachers, strict=True)]).mean()


class Hydra(nn.Module):
    """The ensemble in one network: log Σ_k a_k · softmax(z_k), with a_k = 1/m once all heads have grown.

    Args:
        student: body and first head.
        trunk: the tap behind which the heads part.
        others: the other heads, which make ``logits`` of that tap.
    """

    shares: Tensor

    def __init__(self, student: nn.Module, trunk: str, others: nn.ModuleList) -> None:
        super().__init__()
        self.student, self.trunk, self.others = student, trunk, others
        self.register_buffer("shares", torch.eye(1 + len(others))[0])

    def forward(self, x: Tensor) -> Tensor:
        taps = self.student.tap(x, (self.trunk,))  # type: ignore[operator]
        heads = torch.stack([taps["logits"], *(head(taps[self.trunk]) for head in self.others)])
        return (self.shares.log()[:, None, None] + heads.float().log_softmax(2)).logsumexp(0)

    @torch.no_grad()
    def grow(self) -> None:
        """From now on all heads count; they begin as copies of the first."""
        first = self.student.tail(self.trunk).state_dict()  # type: ignore[operator]
        for head in self.others:
            head.load_state_dict(first)
        self.shares.fill_(1 / len(self.shares))


class HydraKD(Pool):
    """Heads on a shared body, one for each teacher, whose mean prediction is deployed; no labels.

    Stage ``body``:     L = `average_loss`(z_1, teachers)
    Stage ``heads``:    L = `heads_loss`(z_1 ... z_m, teachers)

    First a single head learns the mean of all teachers, as in plain distillation. Then the others grow as copies of it,
    and each goes on with a teacher of its own. A head is the student's last stage with its classifier; passes through
    the others alone do not count as forward passes.

    Args:
        temperature: T.
        body_share: share of the epochs before there is more than one head.
    """

    leaf = "multi-teacher/ensemble-of-logits"
    paper = "tran2020hydra"
    title = "Hydra"
    needs = frozenset({"teachers", "peers"})
    taps = Taps(student=("stage-2",))
    terms = ("mean", "heads")
    survey: ClassVar = {
        "ensemble_logits": "a head for each teacher",
        "ensemble_features": "none",
        "unify_data": "no",
        "customize": "no",
        "peers": "no",
        "online": "no",
        "objective": "mean KL of each head to its teacher",
    }

    def __init__(
        self,
        temperature: Temperature = 4.0,
        body_share: Annotated[float, Field(gt=0, lt=1)] = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(temperature, **kwargs)
        self.body_share = body_share

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        super().build(student, teacher, data)
        trunk = last_stage_but_one(student)
        self.hydra = Hydra(self.student, trunk, branches(self.spawn, trunk, len(self.teachers) - 1))

    def stages(self) -> Sequence[Stage]:
        return (Stage("body", self.body_share), Stage("heads", 1 - self.body_share, self.hydra.grow))

    def players(self) -> Sequence[Player]:
        net = self.student if self.stage == "body" else self.hydra
        return (Player("student", list(net.parameters())),)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        if self.stage == "body":
            return {"mean": average_loss(s.logits, logits_of(t), self.temperature)}
        heads = [s.logits, *(head(s[self.hydra.trunk]) for head in self.hydra.others)]
        return {"heads": heads_loss(heads, logits_of(t), self.temperature)}

    def deployed(self) -> nn.Module:
        return self.hydra
