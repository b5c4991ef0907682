"""Protocols: everything besides method, pair and data that makes two numbers comparable."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StrictBool, StrictInt, ValidationError, field_validator

from kdbench.errors import UserError
from kdbench.settings import explain
from kdbench.sparse import Sparse

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0)]
Count = Annotated[StrictInt, Field(ge=1)]


class _Strict(Sparse):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Schedule(_Strict):
    """Learning rate as a factor of its base value; a function of progress in [0, 1), so short runs keep the shape.

    `warmup` is the share of the epochs that climb linearly to the base value. Then ``multistep`` multiplies by `gamma`
    at each of `milestones`, ``cosine`` falls to zero, and ``constant`` stays.
    """

    kind: Literal["multistep", "cosine", "constant"] = "multistep"
    milestones: tuple[Annotated[Number, Field(gt=0, le=1)], ...] = (0.625, 0.75, 0.875)
    gamma: Positive = 0.1
    warmup: Annotated[Number, Field(ge=0, lt=1)] = 0.0

    @field_validator("milestones")
    @classmethod
    def _milestones_rise(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if list(value) != sorted(set(value)):
            raise ValueError("each milestone is later than the one before")
        return value

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

    Attributes:
        precision: of the students, in Lightning's words, and ``tf32``: float32 of which a GPU multiplies only 10 bits
            of the mantissa (NVIDIA's since Ampere). ``32-true`` is float32 on a GPU too.
        clip_norm: before each step, a player's gradients are scaled down to this 2-norm of all of them together.
        accumulate: batches of which the gradients are averaged, sample by sample, for one step of each player; a last
            group of fewer batches is averaged over those. Batch norm, memory banks and `Method.after_step` go by batch.
        drop_last: leave out the last batch of an epoch where it is not full.
    """

    ADDED = frozenset({"clip_norm", "accumulate", "drop_last"})

    name: Annotated[str, Field(min_length=1, max_length=100)] = "crd240"
    epochs: Count = 240
    batch_size: Annotated[StrictInt, Field(ge=2)] = 64
    optimizer: Mapping[str, Any] = Field(
        default_factory=lambda: {
            "_target_": "torch.optim.SGD",
            "lr": 0.05,
            "momentum": 0.9,
            "weight_decay": 5e-4,
        }
    )
    lr_for: Mapping[str, Positive] = Field(default_factory=dict)
    schedule: Schedule = Schedule()
    precision: Literal["32-true", "tf32", "bf16-mixed", "16-mixed"] = "32-true"
    eval_every: Count = 1
    clip_norm: Positive | None = None
    accumulate: Count = 1
    drop_last: StrictBool = False

    @field_validator("name")
    @classmethod
    def _name_is_printable(cls, value: str) -> str:
        if not value.isprintable():
            raise ValueError("a name has no control characters")
        return value

    @field_validator("optimizer")
    @classmethod
    def _optimizer_is_a_recipe(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        lr = value.get("lr")
        if "_target_" not in value or isinstance(lr, bool) or not isinstance(lr, (int, float)) or not 0 < lr < math.inf:
            raise ValueError(f"the optimizer needs '_target_' and a number 'lr' above 0, not {lr!r}")
        return value

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Protocol:
        """A validated protocol; raises `UserError` naming the first field that is wrong."""
        try:
            return cls(**config)
        except ValidationError as error:
            told = explain(error, "protocol").replace(": value error, ", ": ")
            raise UserError(f"{told}; see conf/protocol for the fields.") from None

    def batches(self, samples: int) -> int:
        """How many batches an epoch of so many training samples has.

        Raises:
            UserError: none.
        """
        whole, rest = divmod(samples, self.batch_size)
        if not self.drop_last:
            return whole + (rest > 0)
        if not whole and samples:
            raise UserError(
                f"protocol.drop_last=true leaves nothing of {samples} training images with "
                f"protocol.batch_size={self.batch_size}: choose a smaller batch, or keep the last one."
            )
        return whole

    def images(self, samples: int) -> int:
        """How many of so many training samples an epoch shows."""
        return self.batches(samples) * self.batch_size if self.drop_last else samples

    def lr(self, student: str) -> float:
        """Base learning rate of an architecture: the first pattern of `lr_for` that matches, else the optimiser's."""
        for pattern, lr in self.lr_for.items():
            if fnmatch(student, pattern):
                return lr
        return float(self.optimizer["lr"])
