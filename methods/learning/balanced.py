"""What methods share that end each experience on as many samples of every class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.method import Player, Stage
from kdbench.settings import Positive, Share
from kdbench.taps import Spec
from methods.learning.icarl import Herding, herded
from methods.learning.rehearsal import Mix, drawn


class Balanced(Herding):
    """Behind stage ``train`` comes stage ``balance``, on the exemplars and as many samples of each new class.

    Those of the new classes are `herded` when the stage begins, which the first experience does not have.

    Args:
        balance_share: share of the epochs of an experience in which classes are balanced.
        balance_lr: learning rate of the SGD with momentum .9 there, constant.
    """

    balanced: Tensor

    def __init__(self, balance_share: Share, balance_lr: Positive, mix: Mix, **kwargs: Any) -> None:
        super().__init__(mix=mix, **kwargs)
        self.balance_share, self.balance_lr = balance_share, balance_lr

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        if data.memory < data.num_classes:
            raise DoesNotFit(
                f"{self.title} shows exemplars of {data.num_classes} classes in equal numbers, and there is memory for "
                f"{data.memory}: raise dataset.scenario.memory."
            )
        super().build(student, teacher, data)
        self.register_buffer("balanced", torch.zeros(data.n_train, dtype=torch.bool))

    def stages(self) -> Sequence[Stage]:
        keep = Stage("keep", 0, self.keep_some)
        if not self.experience.old:
            return (Stage("train", begin=self.welcome), keep)
        return (
            Stage("train", 1 - self.balance_share, self.welcome),
            Stage("balance", self.balance_share, self.even_out),
            keep,
        )

    def welcome(self) -> None:
        """What is done when new classes come."""
        self.past.take(self.student)

    @torch.no_grad()
    def even_out(self) -> None:
        """Choose the data of the second stage."""
        each = self.data.memory // self.experience.old  # as many as were kept of each old class
        self.balanced.zero_()
        self.balanced[self.kept.to(self.balanced.device)] = True
        for _, index in self.arrived():
            self.balanced[index[herded(self.features(index), each)].to(self.balanced.device)] = True

    def batch(self, batch: Batch) -> Batch:
        if self.stage == "balance":
            return self.take(drawn(self.balanced.cpu().nonzero()[:, 0], len(batch), self.rng))
        return super().batch(batch)

    def players(self) -> Sequence[Player]:
        if self.stage != "balance":
            return super().players()
        sgd = {"_target_": "torch.optim.SGD", "lr": self.balance_lr, "momentum": 0.9}
        return (Player("balance", self.balances(), sgd),)

    def balances(self) -> list[nn.Parameter]:
        """What learns in the second stage."""
        return list(self.student.parameters())
