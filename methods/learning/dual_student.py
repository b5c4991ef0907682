"""Dual student (Ke et al., ICCV 2019, arXiv:1909.01804)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import in_float32
from kdbench.method import Method, Player
from kdbench.settings import Share
from kdbench.taps import Spec
from methods.learning.consistency import everything, everything_again, masked_ce
from methods.learning.mean_teacher import consistency_loss


class Stability(NamedTuple):
    """Of each sample for one student: whether it is stable, and how far its two views are apart; (N,) each."""

    stable: Tensor
    distance: Tensor


@in_float32
def stability(a: Tensor, b: Tensor, threshold: float) -> Stability:
    """Logits (N, K) of two views: a sample is stable if both choose one class, and one of them is sure of it.

    The distance is the mean over K of ( softmax(a) - softmax(b) )². No gradient.
    """
    p, q = a.detach().softmax(1), b.detach().softmax(1)
    (sure_a, class_a), (sure_b, class_b) = p.max(1), q.max(1)
    sure = (sure_a > threshold) | (sure_b > threshold)
    return Stability((class_a == class_b) & sure, (p - q).square().mean(1))


def learns_from(mine: Stability, other: Stability) -> Tensor:
    """The samples whose stable knowledge the other student has and I do not, or less so: bool, (N,)."""
    return other.stable & (~mine.stable | (mine.distance >= other.distance))


class DualStudent(Method):
    """Two students that start apart; each is consistent with itself, and learns from the other what is stable there.

    L_i = (1 / N) · Σ CE(y, s_i) of labelled images + w · `consistency_loss`(s_i, s_i of the other view)
          + u · `consistency_loss`(s_i, s_j) on unlabelled images, of those that i `learns_from` j

    Targets are constants. Each student sees one view of all images and its own target in the other's view; both step on
    predictions of the same moment. All terms are divided by the N images of the batch, as in the authors' code. The
    first student is deployed, where theirs is the better one in the test.

    Args:
        threshold: the confidence that makes a sample stable.
    """

    leaf = "learning/semi-self-supervised"
    paper = "ke2019dual"
    title = "Dual student"
    needs = frozenset({"labels", "unlabelled", "peers"})
    terms = ("ce", "consistency", "stabilisation")
    survey: ClassVar = {
        "supervision": "semi-supervised",
        "labelled_data": "a part",
        "consistency": "MSE of softmax to the other view, and to the other student on stable samples",
    }

    def __init__(self, threshold: Share = 0.8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.threshold = threshold

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.other = self.spawn(1)

    def players(self) -> Sequence[Player]:
        return [Player("first", list(self.student.parameters())), Player("second", list(self.other.parameters()))]

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        nets, views = (self.student, self.other), (everything(batch), everything_again(batch))
        said = [self.student_out(x, net).logits for net, x in zip(nets, views, strict=True)]
        again = [self.target(x, net) for net, x in zip(nets, reversed(views), strict=True)]
        known = [stability(a, b, self.threshold) for a, b in zip(said, again, strict=True)]
        unlabelled = torch.arange(len(views[0]), device=batch.x.device) >= len(batch)
        for i, player in enumerate(("first", "second")):
            learned = unlabelled & learns_from(known[i], known[1 - i])
            yield (
                player,
                {
                    "ce": masked_ce(said[i], batch.y),
                    "consistency": consistency_loss(said[i], again[i]),
                    "stabilisation": consistency_loss(said[i], said[1 - i], learned),
                },
            )

    @torch.no_grad()
    def target(self, x: Tensor, net: nn.Module) -> Tensor:
        return self.student_out(x, net).logits
