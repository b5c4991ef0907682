"""LUCIR: a unified classifier, learned incrementally via rebalancing (Hou et al., CVPR 2019).

DOI 10.1109/CVPR.2019.00092.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Stage
from kdbench.settings import Count, Weight
from kdbench.taps import Out, Spec, Taps
from methods.learning.icarl import Herding
from methods.learning.rehearsal import Mix


class CosineHead(nn.Module):
    """Cosines between features (B, D) and class weights (K, D): (B, K), in [-1, 1] before the scale η."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        bound = features**-0.5
        self.weight = nn.Parameter(torch.empty(classes, features).uniform_(-bound, bound))  # the authors' code
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, features: Tensor, held: int = 0) -> Tensor:
        """The weights of the first `held` classes do not learn."""
        weight = torch.cat([self.weight[:held].detach(), self.weight[held:]])
        return F.linear(F.normalize(features, dim=1), F.normalize(weight, dim=1))


@in_float32
def less_forget_loss(feature: Tensor, past: Tensor) -> Tensor:
    """Mean over the batch of 1 - cos(f, f*), for features (B, D) of now and of the past model.

    No gradient reaches `past`.
    """
    return (1 - F.cosine_similarity(feature, past.detach(), dim=1)).mean()


@in_float32
def margin_ranking_loss(cosines: Tensor, y: Tensor, old: int, hardest: int = 2, margin: float = 0.5) -> Tensor:
    """Mean over samples of old classes and their K hardest new ones of max(0, m - cos_y + cos_k).

    Zero where the batch has no sample of an old class. The paper sums where the authors' code takes the mean.

    Args:
        cosines: (B, seen), before the scale; columns from `old` on are new classes.
        y: class indices, (B,).
        hardest: K, at most the number of new classes.
    """
    truth = cosines.gather(1, y[:, None])
    rivals = cosines[:, old:].topk(min(hardest, cosines.shape[1] - old), dim=1).values
    rows = (y < old)[:, None]
    hinge = (margin - truth + rivals).clamp(min=0) * rows
    return hinge.sum() / (rows.sum() * rivals.shape[1]).clamp(min=1)


def pooled(x: Tensor) -> Tensor:
    """Maps (B, C, H, W) to their means, (B, C)."""
    return x.mean((2, 3))


class CosineNet(nn.Module):
    """The student's last maps before their ReLU, pooled, under a `CosineHead` with its scale."""

    def __init__(self, student: nn.Module, tap: str, features: int, classes: int) -> None:
        super().__init__()
        self.student, self.tap_name = student, tap
        self.head = CosineHead(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.student.tap(x, (self.tap_name,))[self.tap_name]  # type: ignore[operator]
        scores: Tensor = self.head.scale * self.head(pooled(maps))
        return scores


class LUCIR(Herding):
    """A cosine classifier, whose old features are held in place and whose new classes keep their distance.

    L = CE(y, η · cos) + λ · √(old / new) · `less_forget_loss`(f, past self's f) + `margin_ranking_loss`(cos)

    over the classes seen, on new samples and exemplars (chosen by `Herding`). The past self is the student as it was
    when the new classes came; then their weights are imprinted: the mean of their normalised features, as long as the
    old classes' weights on average. Features are the last maps *before* their ReLU, as in the paper, so the student's
    own last layer has no part in it. The fine-tuning on balanced classes that the authors try too is left out.

    Args:
        hardest, margin: K and m of the margin ranking.
        hold: whether the weights of old classes stay as they are, as the authors' code has it.
    """

    leaf = "learning/incremental"
    paper = "hou2019learning"
    title = "LUCIR"
    terms = ("ce", "less_forget", "margin")
    taps = Taps(student=("pre-1",))
    added: ClassVar = {"hold": False}
    earlier: ClassVar = frozenset({"b76f92bc9b52c85099ba8093d4324dd5ada68c0996fa7e098c8b7a65240d1d68"})
    survey: ClassVar = {
        "knowledge": "feature directions of the past self; herded exemplars",
        "objective": "CE on cosines + less-forget + margin ranking",
    }

    def __init__(
        self,
        hardest: Count = 2,
        margin: Weight = 0.5,
        hold: bool = True,
        mix: Mix = "union",
        **kwargs: Any,
    ) -> None:
        super().__init__(mix=mix, **kwargs)
        self.hardest, self.margin, self.hold = hardest, margin, hold

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        super().build(student, teacher, data)
        (self.tap,) = student.resolve(self.taps.student)
        self.net = CosineNet(self.student, self.tap, student.channels(self.tap), data.num_classes)

    def stages(self) -> Sequence[Stage]:
        return (Stage("train", begin=self.welcome), Stage("keep", 0, self.keep_some))

    @torch.no_grad()
    def welcome(self) -> None:
        """Remember the past self, and imprint the weights of the new classes."""
        self.past.take(self.student)
        if self.experience.old:
            length = self.net.head.weight[: self.experience.old].norm(dim=1).mean()
            for label, index in self.arrived():
                self.net.head.weight[label] = length * F.normalize(self.features(index).mean(0), dim=0)

    def feature(self, out: Out) -> Tensor:
        return pooled(out[self.tap])

    def losses(self, s: Out, t: Out | None, batch: Batch) -> dict[str, Tensor]:
        old, seen = self.experience.old, self.experience.seen
        f, head = self.feature(s), self.net.head
        cosines = head(f, held=old if self.hold else 0)[:, :seen]
        terms = {"ce": cross_entropy(head.scale * cosines, batch.y)}
        if t:
            terms["less_forget"] = (old / (seen - old)) ** 0.5 * less_forget_loss(f, self.feature(t))
            terms["margin"] = margin_ranking_loss(cosines, batch.y, old, self.hardest, self.margin)
        return terms

    def deployed(self) -> nn.Module:
        return self.net
