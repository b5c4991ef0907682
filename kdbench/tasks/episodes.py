"""Few-shot classification: new classes, of which a few examples are shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.draws import random_bits
from kdbench.errors import UserError
from kdbench.measures import Measure
from kdbench.tasks.base import Meter, Scores
from kdbench.tasks.classification import Classification

if TYPE_CHECKING:
    from kdbench.data.batch import Batch, DataSpec

SEED = 0
"""Of the episodes, which are the same for every network."""
CLASSES, SAMPLES = range(2)
"""The streams of random numbers of an episode."""
AT_ONCE = 4_000_000
"""So many numbers are at hand at a time while episodes are played."""


class FewShot(Meter):
    """``accuracy`` over all queries of all episodes, and half the width of its 95 % interval, ``ci95``, in percent.

    The test split holds samples of classes that were not trained. An episode draws `way` of them, and of each `shot`
    examples to show and `query` others to ask about. A query belongs to the class whose centroid, the mean of the
    embeddings of the examples shown, has the largest cosine with its embedding (Dvornik et al., ICCV 2019,
    arXiv:1903.11341, and dvornikita/fewshot_ensemble). Episodes are functions of their number and of the order of the
    split. The interval is 1.96 standard errors over episodes; an episode's score is its accuracy in percent.
    """

    def __init__(self, way: int, shot: int, query: int, episodes: int) -> None:
        super().__init__()
        self.way, self.shot, self.query, self.episodes = way, shot, query, episodes
        self.embeddings, self.labels = Scores(), Scores()
        self._played: Tensor | None = None

    def begin(self) -> None:
        super().begin()
        self._played = None

    def update(self, net: nn.Module, batch: Batch) -> None:
        self.embeddings.update(net.tap(batch.x, ("embed",))["embed"].float())  # type: ignore[operator]
        self.labels.update(batch.y)

    def compute(self) -> dict[str, Tensor]:
        scores = self.examples()
        return {"accuracy": scores.mean(), "ci95": 1.96 * scores.std() / len(scores) ** 0.5}

    def examples(self) -> Tensor:
        if self._played is None:
            self._played = self._play()
        return self._played

    def _play(self) -> Tensor:
        x, labels = self.embeddings.rows(), self.labels.rows()
        _, y, sizes = labels.unique(return_inverse=True, return_counts=True)
        needed = self.shot + self.query
        if len(sizes) < self.way or int(sizes.min()) < needed:
            raise UserError(
                f"an episode takes {self.way} classes of {needed} samples each, but the split has {len(sizes)} classes "
                f"of at least {int(sizes.min())}: ask for fewer ways, shots or queries."
            )
        # the positions of each class's samples, (classes, most of a class), filled up with -1
        order = y.argsort(stable=True)
        rank = torch.arange(len(y), device=x.device) - (sizes.cumsum(0) - sizes)[y[order]]
        members = y.new_full((len(sizes), int(sizes.max())), -1)
        members[y[order], rank] = order
        scores = []
        each = self.way * max(members.shape[1], needed * x.shape[1])
        for numbers in torch.arange(self.episodes, device=x.device).split(max(1, AT_ONCE // each)):
            classes = torch.arange(len(sizes), device=x.device).expand(len(numbers), -1)
            chosen = _bits(CLASSES, numbers, classes, len(sizes)).argsort(dim=1, stable=True)[:, : self.way]
            pool = members[chosen]
            bits = _bits(SAMPLES, numbers, pool.flatten(1), len(x)).view_as(pool)
            place = bits.masked_fill(pool < 0, torch.iinfo(bits.dtype).max).argsort(dim=2, stable=True)
            drawn = x[pool.gather(2, place[:, :, :needed])]  # (episodes, way, needed, D)
            shown, asked = drawn.split([self.shot, self.query], dim=2)
            centroids = F.normalize(shown.mean(2), dim=2)
            cosines = torch.einsum("ewqd,ecd->ewqc", F.normalize(asked, dim=3), centroids)
            right = cosines.argmax(3) == torch.arange(self.way, device=x.device)[:, None]
            scores.append(100 * right.float().mean((1, 2)))
        return torch.cat(scores)


def _bits(stream: int, episodes: Tensor, things: Tensor, n: int) -> Tensor:
    """Random bits for `things`, numbered 0..n - 1, in each of some episodes: (E,) and (E, M) to (E, M)."""
    return random_bits(SEED, 0, stream, episodes[:, None] * n + things)


@dataclass(frozen=True)
class Episodes(Classification):
    """`Classification` of base classes that is judged by episodes of new ones, see `FewShot`.

    Attributes:
        way, query, episodes: 5, 15 and 1000 in Dvornik et al. (dvornikita/fewshot_ensemble, ``singles/config.py``).
        shot: 1 and 5 are what papers report.
    """

    primary = Measure("accuracy", examples="episodes")

    way: int = 5
    shot: int = 1
    query: int = 15
    episodes: int = 1000

    def meter(self, data: DataSpec) -> Meter:
        return FewShot(self.way, self.shot, self.query, self.episodes)
