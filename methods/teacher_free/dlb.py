"""DLB: self-distillation from the last mini-batch (Shen et al., CVPR 2022, arXiv:2203.16172)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, kl
from kdbench.method import Method
from kdbench.settings import Temperature
from kdbench.taps import Out, Spec


class Last(NamedTuple):
    """The batch before, in the view that is still to be seen, and what was said of its first view, (B, K)."""

    epoch: int
    again: Batch
    logits: Tensor


class DLB(Method):
    """Each batch is seen a second time, in another view, beside the next one; what was said of it then teaches.

    L = CE( (y_{t-1}, y_t), (s_{t-1}, s_t) ) + α · T² · KL( softmax(s'_{t-1} / T) || softmax(s_{t-1} / T) )

    where s' is what the student said of the batch t - 1 one step ago, a constant, and s what it says now; the CE is the
    mean over both batches, which are passes of their own, as in the authors' code. The first step of an epoch has no
    batch before it, where theirs takes the last one of the epoch before.

    Args:
        temperature: T.
    """

    leaf = "teacher-free/data-augmentation"
    paper = "shen2022self"
    title = "DLB"
    extension = True
    needs = frozenset({"labels", "again"})
    terms = ("ce", "kd")
    survey: ClassVar = {
        "logits_hints": "logits of the step before",
        "deep_supervision": "none",
        "augmentation": "two views of each image, a step apart",
        "architecture": "none",
        "task": "classification",
    }

    def __init__(self, temperature: Temperature = 3.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self._last: Last | None = None  # outlives no epoch, and so need not outlive a kill

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        now, last = self.student_out(batch.x).logits, self._last
        self._last = Last(self.epoch, batch["again"], now.detach())
        if last is None or last.epoch != self.epoch:
            yield "student", {"ce": cross_entropy(now, batch.y), "kd": now.new_zeros(())}
            return
        s = Out({"logits": torch.cat([self.student_out(last.again.x).logits, now])})
        yield "student", self.losses(s, Out({"logits": last.logits}), last.again + batch)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        """Of the last batch and the one in course, in this order; `t` said something of the last alone."""
        seen_again = s.logits[: len(t.logits)]
        return {"ce": cross_entropy(s.logits, batch.y), "kd": kl(seen_again, t.logits, self.temperature)}
