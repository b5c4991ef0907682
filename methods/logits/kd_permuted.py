"""KD without dark knowledge, a negative control (the permutation: Furlanello et al., ICML 2018, arXiv:1805.04770)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import kl
from kdbench.taps import Out
from methods.logits.kd import KD
from methods.teacher_free.dkpp import permuted


class PermutedKD(KD):
    """L = (1 - α) · CE(y, s) + α · T² · KL( softmax(π(t) / T) || softmax(s / T) ), π permutes t but for its entry y.

    The teacher's confidence in the label stays, and so does its entropy, which is what smoothing has; which other
    classes it thinks of says nothing, as they change places at random, anew whenever a sample is seen. What KD gains
    over this control is what it gains by dark knowledge. The authors keep the teacher's likeliest class in place
    (`DKPP <methods.teacher_free.dkpp.DKPP>`), here it is the label, of which KD's other term speaks too.
    """

    paper = "furlanello2018born"
    title = "KD, permuted"
    control = None  # type: ignore[assignment]
    tasks = frozenset({"classification"})
    survey: ClassVar = {
        "description": "softened probabilities of which all but the label's change places",
        "objective": "(1 - α) CE(y, s) + α T² KL(π(t)/T, s/T)",
    }

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        keys = torch.rand(t.logits.shape, generator=self.rng).to(t.logits.device)
        target = permuted(t.logits, batch.y, keys)
        return {"ce": self.task.loss(s.logits, batch.y), "kd": kl(s.logits, target, self.temperature)}
