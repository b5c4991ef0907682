"""Teachers who take turns (Fukuda et al., Interspeech 2017, DOI 10.21437/Interspeech.2017-614)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import kl
from kdbench.settings import Temperature
from kdbench.taps import Out
from methods.multi_teacher.pool import Pool, logits_of


def told_by(teachers: Sequence[Tensor], whose: Tensor) -> Tensor:
    """Logits (B, K), row n as teacher ``whose[n]`` has it, of teachers (B, K) each and numbers (B,)."""
    return torch.stack(list(teachers))[whose, torch.arange(len(whose), device=whose.device)]


class Switching(Pool):
    """L = T² · KL( softmax(t_k / T) || softmax(s / T) ), with the teacher k drawn anew; no labels.

    The paper's targets are soft labels of speech, at cross-entropy; KL has the same gradient.

    Args:
        temperature: T.
        each: how often k is drawn. For each ``batch``: labels are switched at the level of minibatches. For each
            ``sample``: minibatches come from the union of all teachers' labelled copies of the data, m times as large,
            of which an epoch shows each image once.
    """

    leaf = "multi-teacher/ensemble-of-logits"
    paper = "fukuda2017efficient"
    title = "Teacher switching"
    needs = frozenset({"teachers"})
    terms = ("kd",)
    survey: ClassVar = {
        "ensemble_logits": "one teacher at a time",
        "ensemble_features": "none",
        "unify_data": "no",
        "customize": "no",
        "peers": "no",
        "online": "no",
        "objective": "KL",
    }

    def __init__(
        self, temperature: Temperature = 4.0, each: Literal["batch", "sample"] = "batch", **kwargs: Any
    ) -> None:
        super().__init__(temperature, **kwargs)
        self.each = each

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        drawn = (1,) if self.each == "batch" else (len(batch),)
        whose = torch.randint(len(self.teachers), drawn, generator=self.rng).expand(len(batch)).to(batch.x.device)
        return {"kd": kl(s.logits, told_by(logits_of(t), whose), self.temperature)}
