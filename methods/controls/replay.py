"""Replay of exemplars: the control of class-incremental tables."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy
from kdbench.taps import Out
from methods.learning.rehearsal import Mix, Rehearsal


class Replay(Rehearsal):
    """L = CE(y, s) over the classes seen so far, on new samples and kept ones; without memory this is fine-tuning."""

    leaf = "controls"
    paper = ""
    title = "Replay"
    control = "scratch"
    terms = ("ce",)

    def __init__(self, mix: Mix = "equal", **kwargs: Any) -> None:
        super().__init__(mix=mix, **kwargs)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {"ce": cross_entropy(s.logits[:, : self.experience.seen], batch.y)}
