"""Classification of what arrives one experience after the other: of classes, or of the same in another domain."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdbench.measures import Measure
from kdbench.tasks.base import Meter, Scores
from kdbench.tasks.classification import Classification

if TYPE_CHECKING:
    from kdbench.data.batch import Batch, DataSpec


class Course(Meter):
    """``average``, ``top1`` and ``forgetting`` in percent, of the experiences up to the current one.

    The network chooses among the classes seen so far, and is asked about test samples of past experiences and the
    current one alone, without being told of which they are; or if `told`, among the classes of that experience. With
    a(k, j) the accuracy on experience j's samples after experience k:

    * ``top1``: accuracy on all that has arrived, now;
    * ``average``: the mean of ``top1`` at the ends of all experiences so far, the first included (average incremental
      accuracy, Rebuffi et al., CVPR 2017, arXiv:1611.07725);
    * ``forgetting``: the mean over earlier experiences j of max(a(l, j), l < k) - a(k, j) (Chaudhry et al., ECCV 2018,
      arXiv:1801.10112, equation 3); 0 in the first.

    What was right at the end of an experience stays in buffers that a checkpoint keeps; evaluations before its end are
    written over by those that follow. An example's score is whether it is right, of the samples asked about.

    Args:
        ends: how many classes have been seen at the end of each experience.
        told: whether the network is told of which experience a sample is.
        arrivals: of each split, how many samples are of each experience, in order; empty where their classes tell.
    """

    hits: Tensor
    totals: Tensor
    arrival: Tensor

    def __init__(
        self, ends: tuple[int, ...], told: bool = False, arrivals: Mapping[str, tuple[int, ...]] | None = None
    ) -> None:
        super().__init__()
        self.ends, self.told = ends, told
        sizes = torch.tensor([new - old for old, new in zip((0, *ends), ends, strict=False)])
        self.register_buffer("hits", torch.zeros(len(ends), len(ends), dtype=torch.int64))
        self.register_buffer("totals", torch.zeros(len(ends), dtype=torch.int64))
        self.register_buffer("arrival", torch.arange(len(ends)).repeat_interleave(sizes), persistent=False)
        for split, there in (arrivals or {}).items():
            self.register_buffer(f"{split}_ends", torch.tensor(there).cumsum(0), persistent=False)
        self.right, self.asked = Scores(), Scores()

    def begin(self) -> None:
        super().begin()
        self.hits[self.experience].zero_()
        self.totals.zero_()

    def update(self, net: nn.Module, batch: Batch) -> None:
        seen, arrived = self.ends[self.experience], self._arrived(batch)
        scores = net(batch.x)[:, :seen]
        if self.told:
            scores = scores.masked_fill(self.arrival[:seen] != arrived[:, None], -math.inf)
        right = scores.argmax(1) == batch.y
        self.hits[self.experience].index_add_(0, arrived, right.long())
        self.totals.index_add_(0, arrived, torch.ones_like(arrived))
        self.right.update(right)
        self.asked.update(arrived <= self.experience)

    def _arrived(self, batch: Batch) -> Tensor:
        """Number of each sample's experience, (B,)."""
        ends: Tensor | None = getattr(self, f"{self.split}_ends", None)
        return self.arrival[batch.y] if ends is None else torch.bucketize(batch.index, ends, right=True)

    def compute(self) -> dict[str, Tensor]:
        now = self.experience
        hits = self.hits[: now + 1, : now + 1].tril()
        totals = self.totals[: now + 1]
        top1 = hits.sum(1) / totals.cumsum(0)
        shares = hits / totals
        forgotten = shares[:-1, :-1].amax(0) - shares[-1, :-1] if now else shares.new_zeros(1)
        found = {"average": top1.mean(), "top1": top1[-1], "forgetting": forgotten.mean()}
        return {name: 100 * value for name, value in found.items()}

    def examples(self) -> Tensor:
        return self.right.rows()[self.asked.rows()]


@dataclass(frozen=True)
class ClassIncremental(Classification):
    """`Classification` whose classes are numbered in the order of their arrival, see `Course`."""

    told: bool = False

    name = "class-incremental"
    primary = Measure("average")
    cumulative = True

    def meter(self, data: DataSpec) -> Meter:
        return Course(data.experiences or (data.num_classes,), self.told)


@dataclass(frozen=True)
class DomainIncremental(Classification):
    """`Classification` of the same classes in one domain after the other, see `Course`."""

    name = "domain-incremental"
    primary = Measure("average")
    cumulative = True

    def meter(self, data: DataSpec) -> Meter:
        return Course(data.experiences or (data.num_classes,), arrivals=data.arrivals)
