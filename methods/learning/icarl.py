"""iCaRL: incremental classifier and representation learning (Rebuffi et al., CVPR 2017, arXiv:1611.07725)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import in_float32
from kdbench.method import Snapshot, Stage
from kdbench.taps import Out, Spec, Taps
from methods.learning.rehearsal import Rehearsal

PART = 500
"""Images whose features are computed at once."""


@in_float32
def icarl_loss(student: Tensor, past: Tensor | None, y: Tensor, old: int) -> Tensor:
    """Binary cross-entropy of every class, with what the `past` model said for old ones as targets (algorithm 3).

    Targets are sigmoid(past) for the classes 0..old-1 and the one-hot label for all others. Averaged over B·K: all K
    classes of the data set, so classes to come are learned as absent; the paper sums over classes (the authors' code).

    Args:
        student, past: logits, (B, K); no gradient reaches `past`, which is None where `old` is 0.
        y: class indices, (B,).
    """
    target = F.one_hot(y, student.shape[1]).to(student.dtype)
    if past is not None:
        target[:, :old] = past.detach()[:, :old].sigmoid()
    return F.binary_cross_entropy_with_logits(student, target)


@in_float32
def herded(features: Tensor, n: int) -> Tensor:
    """Positions of the `n` L2-normalised features (N, D) whose mean is nearest to that of all: (n,) (algorithm 4).

    The k-th is the one that brings the mean of the first k nearest to it: any beginning of the list is a good choice.
    """
    mean = features.mean(0)
    left, total = torch.ones(len(features), dtype=torch.bool, device=features.device), torch.zeros_like(mean)
    chosen = []
    for k in range(1, min(n, len(features)) + 1):
        distance = (mean - (total + features) / k).norm(dim=1).masked_fill(~left, torch.inf)
        best = distance.argmin()
        total, left[best] = total + features[best], False
        chosen.append(best)
    return torch.stack(chosen) if chosen else torch.zeros(0, dtype=torch.long, device=features.device)


@in_float32
def nearest_mean_scores(features: Tensor, means: Tensor) -> Tensor:
    """-‖φ(x) - μ_c‖² for features (B, D) and class means (K, D), both L2-normalised: (B, K) (algorithm 1)."""
    return -torch.cdist(features, means).square()


class NearestMean(nn.Module):
    """Scores of the student's features by their distance to the classes' means; -inf for classes without one."""

    means: Tensor

    def __init__(self, student: nn.Module, features: int, classes: int) -> None:
        super().__init__()
        self.student = student
        self.register_buffer("means", torch.zeros(classes, features))

    def forward(self, x: Tensor) -> Tensor:
        features = F.normalize(self.student.tap(x, ("embed",))["embed"], dim=1)  # type: ignore[operator]
        return nearest_mean_scores(features, self.means).masked_fill(~self.means.any(1), -torch.inf)


class Herding(Rehearsal):
    """Exemplars are the samples whose mean feature stays nearest to their class's; a base of methods.

    After an experience the m = memory / seen exemplars of each new class are `herded`, those of old classes reduced to
    their first m.
    """

    ranked: Tensor

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.past = Snapshot(self.student)
        # exemplars of each class, best first
        self.register_buffer("ranked", torch.full((data.num_classes, data.memory), -1))

    def stages(self) -> Sequence[Stage]:
        return (Stage("train", begin=lambda: self.past.take(self.student)), Stage("keep", 0, self.keep_some))

    @torch.no_grad()
    def keep_some(self) -> None:
        for label, index in self.arrived():
            chosen = index[herded(self.features(index), self.per_class)]
            self.ranked[label, : len(chosen)] = chosen.to(self.ranked)
        self.ranked[:, self.per_class :] = -1
        self.keep(self.ranked[self.ranked >= 0])

    def arrived(self) -> Iterator[tuple[int, Tensor]]:
        """The new classes, and the positions of their samples."""
        at_hand = self.positions()
        labels = self.labels(at_hand)
        for label in range(self.experience.old, self.experience.seen):
            yield label, at_hand[(labels == label).to(at_hand.device)]

    def features(self, index: Tensor) -> Tensor:
        """L2-normalised features of training samples, as the student sees them now: (N, D)."""
        parts = [self.feature(self.student_out(self.take(part, plain=True).x)) for part in index.split(PART)]
        return F.normalize(torch.cat(parts), dim=1)

    def feature(self, out: Out) -> Tensor:
        """What the classifier sees, (B, D)."""
        return out.embed

    def teach(self, batch: Batch) -> Out | None:
        return self.teacher_out(batch.x, self.past) if self.experience.old else None


class ICaRL(Herding):
    """L = `icarl_loss`(s, past self) on new samples and exemplars, whose means classify.

    The past self is the student as it was when the new classes came; exemplars are chosen by `Herding`. A sample is of
    the class whose exemplars have the nearest mean feature (`NearestMean`, which is what is deployed). The means are
    those of the newest features, and set at the end of each experience. The authors' code averages each exemplar with
    its mirror image.
    """

    leaf = "learning/incremental"
    paper = "rebuffi2017icarl"
    title = "iCaRL"
    extension = True
    terms = ("bce",)
    taps = Taps(student=("embed",))
    survey: ClassVar = {
        "knowledge": "sigmoids of the past self; herded exemplars",
        "objective": "BCE(y and past, s); nearest mean of exemplars",
    }

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        if data.memory < data.num_classes:
            raise DoesNotFit(
                f"iCaRL classifies by exemplars of {data.num_classes} classes, and there is memory for {data.memory}: "
                "raise dataset.scenario.memory."
            )
        super().build(student, teacher, data)
        self.classifier = NearestMean(self.student, student.channels("embed"), data.num_classes)

    @torch.no_grad()
    def keep_some(self) -> None:
        super().keep_some()
        for label in range(self.experience.seen):
            exemplars = self.ranked[label][self.ranked[label] >= 0]
            self.classifier.means[label] = F.normalize(self.features(exemplars).mean(0), dim=0)

    def losses(self, s: Out, t: Out | None, batch: Batch) -> dict[str, Tensor]:
        return {"bce": icarl_loss(s.logits, t.logits if t else None, batch.y, self.experience.old)}

    def deployed(self) -> nn.Module:
        return self.classifier
