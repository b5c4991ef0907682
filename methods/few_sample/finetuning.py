"""Fine-tuning of a pruned network, the baseline of few-sample distillation (Li et al., CVPR 2020, arXiv:1812.01839)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.method import Stage
from kdbench.taps import Out
from methods.few_sample.fskd import FSKD


class Finetuning(FSKD):
    """L = CE(y, s), from the teacher without its weakest channels: where `FSKD` begins, too.

    The same images repair it, but with their labels and by gradient steps. Its teacher says nothing.
    """

    title = "Fine-tuning"
    needs = frozenset({"teacher", "labels"})
    terms = ("ce",)  # type: ignore[assignment]
    survey: ClassVar = {
        "data": "few labelled images",
        "objective": "CE(y, s) of the pruned teacher",
    }

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def stages(self) -> Sequence[Stage]:
        return (Stage("prune", 0, self.prune), Stage("train"))

    def teach(self, batch: Batch) -> None:
        return None

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {"ce": self.task.loss(s.logits, batch.y)}
