"""Distillation by soft targets alone (Hinton, Vinyals, Dean, NIPS 2014 workshop, arXiv:1503.02531)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import kl
from kdbench.method import Method
from kdbench.settings import Temperature
from kdbench.taps import Out, Spec


class Shifted(nn.Module):
    """A network some of whose logits are higher by a number: what an offset of its last biases makes of it."""

    offsets: Tensor

    def __init__(self, net: nn.Module, offsets: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("offsets", offsets)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.offsets

    def tap(self, x: Tensor, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """As of `kdbench.taps.Net`."""
        taps: dict[str, Tensor] = self.net.tap(x, names)  # type: ignore[operator]
        return taps | {"logits": taps["logits"] + self.offsets}


class KDUnlabelled(Method):
    """L = T² · KL( softmax(t / T) || softmax(s / T) ), on a transfer set without labels.

    The paper's simplest form (section 2), before labels are known: KD with α = 1. On images of another data set, or of
    noise, it is what data-free methods are compared with. Where the transfer set lacks some classes, or has too many of
    them, the student learns their biases wrong: the paper mends them by an offset (section 3), which is no part of
    training.

    Args:
        temperature: T.
        shifted: classes whose biases are offset in the student that is judged.
        offset: by how much.
    """

    leaf = "logits/softened-labels"
    paper = "hinton2015distilling"
    title = "KD without labels"
    needs = frozenset({"teacher"})
    terms = ("kd",)
    survey: ClassVar = {
        "description": "softened class probabilities of one teacher, no labels",
        "objective": "T² KL(t/T, s/T)",
    }

    added: ClassVar = {"shifted": [], "offset": 0.0}

    def __init__(
        self, temperature: Temperature = 4.0, shifted: Sequence[int] = (), offset: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.temperature, self.shifted, self.offset = temperature, tuple(shifted), offset

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        if not set(self.shifted) <= set(range(data.num_classes)):
            raise DoesNotFit(f"{self.title} shifts {list(self.shifted)} of {data.num_classes} classes: name 0 and up.")
        if self.shifted:
            offsets = torch.zeros(data.num_classes)
            offsets[list(self.shifted)] = self.offset
            self.judged = Shifted(self.student, offsets)

    def deployed(self) -> nn.Module:
        return self.judged if self.shifted else self.student

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {"kd": kl(s.logits, t.logits, self.temperature)}
