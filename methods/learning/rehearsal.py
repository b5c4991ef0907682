"""What methods share that keep some samples of past experiences, and show them again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.method import Method, Stage

Mix = Literal["union", "equal"]


def first_of_each(y: Tensor, index: Tensor, n: int) -> Tensor:
    """The first `n` of each class among the samples at positions `index`, of classes `y`, both (N,)."""
    found = [index[y == label][:n] for label in y.unique()]
    return torch.cat(found) if found else index


def drawn(index: Tensor, n: int, rng: torch.Generator) -> Tensor:
    """`n` of the positions, drawn with replacement."""
    return index[torch.randint(len(index), (n,), generator=rng)]


class Rehearsal(Method):
    """Exemplars of past experiences join each batch; after each experience the memory is divided among all classes.

    Args:
        mix: how many exemplars join a batch of B new samples. ``equal``: B (experience replay, Chaudhry et al. 2019,
            arXiv:1902.10486). ``union``: as many as in a batch of all at hand, B · kept / new, so that old classes are
            as rare as they are there.
    """

    needs = frozenset({"labels"})
    tasks = frozenset({"class-incremental"})

    def __init__(self, mix: Mix = "union", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.mix = mix

    def stages(self) -> Sequence[Stage]:
        return (Stage("train"), Stage("keep", 0, self.keep_some))

    @property
    def per_class(self) -> int:
        """Exemplars for each class seen."""
        return self.data.memory // self.experience.seen

    def keep_some(self) -> None:
        """By default the first of each class; data stand in an order without meaning."""
        at_hand = torch.cat([self.kept, self.positions().cpu()])
        self.keep(first_of_each(self.labels(at_hand), at_hand, self.per_class))

    def labels(self, index: Tensor) -> Tensor:
        """Classes of the samples at these positions, on the CPU as they are."""
        return self.take(index, plain=True).y.cpu()

    def batch(self, batch: Batch) -> Batch:
        return self.with_exemplars(batch, self.kept)

    def with_exemplars(self, batch: Batch, exemplars: Tensor) -> Batch:
        """The batch and some of the exemplars, as many as `mix` says."""
        if not len(exemplars):
            return batch
        share = len(exemplars) / len(self.positions()) if self.mix == "union" else 1.0
        return batch + self.take(drawn(exemplars, max(1, round(share * len(batch))), self.rng))
