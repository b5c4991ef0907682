"""Mean Teacher (Tarvainen and Valpola, NeurIPS 2017, arXiv:1703.01780)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method
from kdbench.settings import Share
from kdbench.taps import Spec


@in_float32
def consistency_loss(student: Tensor, teacher: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over B·K of ( softmax(s) - softmax(t) )², for logits (B, K) of two views; no gradient reaches `teacher`.

    Samples that the `mask` (B,) leaves out count as zero.
    """
    squares = (student.softmax(1) - teacher.detach().softmax(1)).square().mean(1)
    return (squares if mask is None else squares * mask).mean()


def decay_at(step: Tensor, decay: float) -> Tensor:
    """min(1 - 1 / (step + 1), α) for the 0-based `step`, a scalar: the average forgets its random start first."""
    return (1 - 1 / (step + 1)).clamp(max=decay)


@torch.no_grad()
def follow(average: nn.Module, net: nn.Module, decay: Tensor | float) -> None:
    """w̄ <- α·w̄ + (1 - α)·w for every parameter. Batch norms are left out: the average has its own statistics."""
    for mine, theirs in zip(average.parameters(), net.parameters(), strict=True):
        mine.copy_(decay * mine + (1 - decay) * theirs)


class MeanTeacher(Method):
    """The average of the student's weights teaches it to be consistent on images without labels, and is deployed.

    L = CE(y, s) on labelled images + w · `consistency_loss`(s, average) on all

    for two views of each image, of which the average sees the other. As in the authors' code CE is divided by the whole
    batch, labelled and not, and the average normalises by its own batches while training. The
    average begins as the student, theirs with weights of its own.

    Args:
        decay: α of the average.
    """

    leaf = "learning/semi-self-supervised"
    paper = "tarvainen2017mean"
    title = "Mean Teacher"
    needs = frozenset({"labels", "unlabelled"})
    terms = ("ce", "consistency")
    survey: ClassVar = {
        "supervision": "semi-supervised",
        "labelled_data": "a part",
        "consistency": "MSE of softmax to the averaged student's",
    }
    steps: Tensor

    def __init__(self, decay: Share = 0.97, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.decay = decay

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.average = copy.deepcopy(self.student).requires_grad_(False)
        self.register_buffer("steps", torch.zeros(()))

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        x = torch.cat([batch.x, batch["unlabelled"].x])
        again = torch.cat([batch["again"].x, batch["unlabelled"]["again"].x])
        s, t = self.student_out(x).logits, self.teacher_out(again, self.average).logits
        ce = cross_entropy(s[: len(batch)], batch.y, reduction="sum") / len(x)
        yield "student", {"ce": ce, "consistency": consistency_loss(s, t)}

    def after_step(self, batch: Batch) -> None:
        follow(self.average, self.student, decay_at(self.steps, self.decay))
        self.steps += 1

    def deployed(self) -> nn.Module:
        return self.average
