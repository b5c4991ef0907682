"""Self-ensembling for visual domain adaptation (French et al., ICLR 2018, arXiv:1706.05208)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, ClassVar

from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method
from kdbench.settings import Share
from kdbench.taps import Spec
from methods.learning.mean_teacher import consistency_loss, follow


@in_float32
def confident(teacher: Tensor, threshold: float) -> Tensor:
    """1 where the largest probability of the teacher's logits (B, K) exceeds the threshold, else 0: (B,)."""
    return (teacher.softmax(1).amax(1) > threshold).to(teacher.dtype)


@in_float32
def class_balance_loss(student: Tensor, mask: Tensor) -> Tensor:
    """Σ_c BCE(p̄_c, 1/K) · mean(mask), p̄ = mean over the batch of softmax(s): targets should be of all classes.

    BCE(p, q) = -q log(p + 1e-6) - (1 - q) log(1 - p + 1e-6). The mean is over all samples, confident or not; the code's
    mean over classes times their number is the sum written here.
    """
    p, uniform = student.softmax(1).mean(0), 1 / student.shape[1]
    bce = -uniform * (p + 1e-6).log() - (1 - uniform) * (1 - p + 1e-6).log()
    return bce.sum() * mask.mean()


class SelfEnsembling(Method):
    """The average of the student's weights labels the other domain where it is confident, and is deployed.

    L = CE(y, s) on the source + w · ( `consistency_loss`(s, average) + b · `class_balance_loss`(s) ) on the target

    where the average is `confident`, for two views of each target image, of which the average sees the other. Source
    and target pass the student one after the other, and the average sees the target alone: so batch norms have each
    domain's own statistics, and what is deployed those of the target.

    Args:
        decay: of the average.
        threshold: the confidence above which a target sample counts.
    """

    leaf = "applications/domain-adaptation"
    paper = "french2017self"
    title = "Self-ensembling"
    needs = frozenset({"labels", "unlabelled"})
    terms = ("ce", "consistency", "balance")
    survey: ClassVar = {
        "task": "domain adaptation",
        "knowledge": "confident predictions of the averaged student",
        "objective": "CE on the source + masked MSE and class balance on the target",
    }

    def __init__(self, decay: Share = 0.99, threshold: Share = 0.96837722, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.decay, self.threshold = decay, threshold

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.average = copy.deepcopy(self.student).requires_grad_(False)

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        target = batch["unlabelled"]
        source = self.student_out(batch.x).logits
        s, t = self.student_out(target.x).logits, self.teacher_out(target["again"].x, self.average).logits
        mask = confident(t, self.threshold)
        yield (
            "student",
            {
                "ce": cross_entropy(source, batch.y),
                "consistency": consistency_loss(s, t, mask),
                "balance": class_balance_loss(s, mask),
            },
        )

    def after_step(self, batch: Batch) -> None:
        follow(self.average, self.student, self.decay)

    def deployed(self) -> nn.Module:
        return self.average
