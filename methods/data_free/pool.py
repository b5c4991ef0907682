"""Images that are synthesised once and distilled on for long: the plan that several data-free works share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import kl
from kdbench.method import Method, Stage
from kdbench.settings import Count, Temperature
from kdbench.taps import Out, Spec


class Pool(Method):
    """L = T² · KL( softmax(t / T) || softmax(s / T) ) on images that `dream` makes.

    Training has `rounds`; each begins with more images, and its student is distilled on all of them so far, drawn at
    random. No training image is distilled on: batches say no more than their size, so the budget in images equals the
    other methods'.

    Args:
        images: how many are made in all, in equal parts for each round.
        temperature: T of the distillation.
    """

    terms: tuple[str, ...] = ("kd",)
    images: Tensor

    def __init__(self, images: Count, rounds: Count, temperature: Temperature, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rounds, self.per_round, self.temperature = rounds, -(-images // rounds), temperature

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.register_buffer("images", torch.zeros(self.rounds * self.per_round, *data.shape))

    def stages(self) -> Sequence[Stage]:
        return [Stage(f"round{k}", 1 / self.rounds, self.dream) for k in range(self.rounds)]

    @property
    def round(self) -> int:
        """Number of the one in course, from 0."""
        return int(self.stage.removeprefix("round"))

    @property
    def fresh(self) -> Tensor:
        """The part of `images` that this round makes."""
        return self.images[self.round * self.per_round : (self.round + 1) * self.per_round]

    def dream(self) -> None:
        """Fill `fresh`, with images as networks see them."""
        raise NotImplementedError

    def drawn(self, n: int) -> Tensor:
        """Images of this round and those before, at random."""
        return self.images[torch.randint((self.round + 1) * self.per_round, (n,), generator=self.rng)]

    def batch(self, batch: Batch) -> Batch:
        return replace(batch, x=self.drawn(len(batch)))

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {"kd": kl(s.logits, t.logits, self.temperature)}
