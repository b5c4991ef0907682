"""Protocols: everything besides method, pair and data that makes two numbers comparable."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError, field_validator

from kdbench.errors import UserError
from kdbench.sparse import Sparse


class _Strict(Sparse):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Schedule(_Strict):
    """Learning rate as a factor of its base value; a function of progress in [0, 1), so short runs keep the shape.

    `warmup` is the share of the epochs that climb linearly to the base value. Then ``multistep`` multiplies by `gamma`
    at each of `milestones`, ``cosine`` falls to zero, and ``constant`` stays.
    """

    kind: Literal["multistep", "cosine", "constant"] = "multistep"
    milestones: tuple[float, ...] = (0.625, 0.75, 0.875)
    gamma: float = 0.1
    warmup: float = Field(0.0, ge=0, lt=1)

    def factor(self, epoch: int, epochs: int) -> float:
        """Factor for the 0-based `epoch` out of `epochs`."""
        climb = self.warmup * epochs
        if epoch < climb:
            return (epoch + 1) / (climb + 1)
        if self.kind == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (epoch - climb) / (epochs - climb)))
        if self.kind == "constant":
            return 1.0
        return self.gamma ** sum(epoch >= math.floor(m * epochs + 0.5) for m in self.milestones)


class Protocol(_Strict):
    """Epochs, batch, optimiser, schedule, precision and selection rule.

    The defaults are those of HobbitLong/RepDistiller on CIFAR-100 (``crd240``). The reported number is always the last
    epoch's; `eval_every` only decides how often the curve (and with it the unranked oracle) is sampled.
    """

    name: str = "crd240"
    epochs: int = Field(240, ge=1)
    batch_size: int = Field(64, ge=2)
    optimizer: Mapping[str, Any] = Field(
        default_factory=lambda: {
            "_target_": "torch.optim.SGD",
            "lr": 0.05,
            "momentum": 0.9,
            "weight_decay": 5e-4,
        }
    )
    lr_for: Mapping[str, float] = Field(default_factory=dict)
    schedule: Schedule = Schedule()
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    eval_every: int = Field(1, ge=1)

    @field_validator("optimizer")
    @classmethod
    def _optimizer_is_a_recipe(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        lr = value.get("lr")
        if "_target_" not in value or isinstance(lr, bool) or not isinstance(lr, (int, float)):
            raise ValueError("the optimizer needs '_target_' and a number 'lr'")
        return value

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Protocol:
        """A validated protocol; raises `UserError` naming the first field that is wrong."""
        try:
            return cls(**config)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UserError(f"protocol.{where}: {first['msg']}; see conf/protocol for the fields.") from None

    def lr(self, student: str) -> float:
        """Base learning rate of an architecture: the first pattern of `lr_for` that matches, else the optimiser's."""
        for pattern, lr in self.lr_for.items():
            if fnmatch(student, pattern):
                return lr
        return float(self.optimizer["lr"])
