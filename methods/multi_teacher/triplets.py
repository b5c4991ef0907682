"""Learning from multiple teacher networks (You et al., KDD 2017, DOI 10.1145/3097983.3098135)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32
from kdbench.settings import Count, Temperature
from kdbench.taps import Out, Spec, Taps
from methods.multi_teacher.average import average_loss
from methods.multi_teacher.pool import Pool, logits_of, tap_of_each


def dissimilarity(feature: Tensor, triplets: Tensor) -> Tensor:
    """d(a, j) - d(a, i), (N,): how much more example j differs from a than i does; d = ‖f_a - f_b‖² at length one.

    Args:
        feature: (B, ...).
        triplets: positions (a, i, j) in the batch, (3, N).
    """
    f = F.normalize(feature.flatten(1), dim=1)
    anchor, i, j = f[triplets]
    return (anchor - j).square().sum(1) - (anchor - i).square().sum(1)


@in_float32
def triplet_voting_loss(student: Tensor, teachers: Sequence[Tensor], triplets: Tensor, margin: float) -> Tensor:
    """Mean over triplets of max(0, δ - z · ( d_s(a, j) - d_s(a, i) )), with z = sign Σ_k sign( d_k(a, j) - d_k(a, i) ).

    The teachers vote on which of two examples is the more like a third, and the student's features shall say the same.
    Where the vote is a tie there is nothing to say.

    Args:
        student, teachers: intermediate features, (B, ...), of any shape each.
        triplets: see `dissimilarity`.
        margin: δ.
    """
    vote = torch.stack([dissimilarity(teacher, triplets).sign() for teacher in teachers]).sum(0).sign()
    return (vote.abs() * (margin - vote * dissimilarity(student, triplets)).relu()).mean()


class AverageTriplets(Pool):
    """L = (1 - α) · CE(y, s) + α · `average_loss` + β · `triplet_voting_loss`, with α and β in ``weights``.

    Triplets are drawn uniformly from the batch.

    Args:
        temperature: T.
        tap: the intermediate features, of teachers and student.
        triplets: how many are drawn, for each image of a batch.
        margin: δ.
    """

    leaf = "multi-teacher/ensemble-of-logits"
    paper = "you2017learning"
    title = "AVG-KD + triplets"
    terms = ("ce", "kd", "triplet")
    survey: ClassVar = {
        "ensemble_logits": "mean of softened probabilities",
        "ensemble_features": "vote on relative dissimilarities",
        "unify_data": "no",
        "customize": "no",
        "peers": "no",
        "online": "no",
        "objective": "CE + KL + triplet",
    }

    def __init__(
        self,
        temperature: Temperature = 4.0,
        tap: str = "stage-2",
        triplets: Count = 16,
        margin: Annotated[float, Field(ge=0)] = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(temperature, **kwargs)
        self.triplets, self.margin = triplets, margin
        self.taps = Taps(student=(tap,), teacher=(tap,))

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        super().build(student, teacher, data)
        self.own, self.theirs = tap_of_each(self.taps.student[0], student, self.teachers)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        n = len(batch)
        triplets = torch.randint(n, (3, self.triplets * n), generator=self.rng).to(batch.x.device)
        theirs = [each[tap] for each, tap in zip(t.each, self.theirs, strict=True)]
        return {
            "ce": cross_entropy(s.logits, batch.y),
            "kd": average_loss(s.logits, logits_of(t), self.temperature),
            "triplet": triplet_voting_loss(s[self.own], theirs, triplets, self.margin),
        }
