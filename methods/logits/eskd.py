"""Early-stopped knowledge distillation: on the efficacy of KD (Cho & Hariharan, ICCV 2019, arXiv:1910.01348)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy, kl
from kdbench.method import Method
from kdbench.settings import Temperature
from kdbench.taps import Out


class ESKD(Method):
    """KD for the first epochs, labels alone for the rest: a small student cannot follow a large teacher to the end.

    Epochs before ``stop``:  L = (1 - α) · CE(y, s) + α · T² · KL( softmax(t / T) || softmax(s / T) )
    The others:              L = CE(y, s)

    with the weights of ``ce``, ``kd`` and ``alone``; the schedule goes on. Its teacher is stopped early, too, trained
    by a whole schedule of fewer epochs: that is the teacher's recipe, ``teacher.epochs``.

    Args:
        temperature: T.
        stop: share of the epochs that are taught.
    """

    leaf = "logits/softened-labels"
    paper = "cho2019efficacy"
    title = "ESKD"
    terms = ("ce", "kd", "alone")
    survey: ClassVar = {
        "description": "softened probabilities of an early-stopped teacher, until an epoch",
        "objective": "(1 - α) CE(y, s) + α T² KL(t/T, s/T), then CE(y, s)",
    }

    def __init__(
        self, temperature: Temperature = 4.0, stop: Annotated[float, Field(gt=0, le=1)] = 0.75, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.temperature, self.stop = temperature, stop

    def teach(self, batch: Batch) -> Out | None:
        taught = self.epoch < self.stop * self.protocol.epochs
        return self.teacher_out(batch.for_teacher.x) if taught else None

    def losses(self, s: Out, t: Out | None, batch: Batch) -> dict[str, Tensor]:
        ce = cross_entropy(s.logits, batch.y)
        if t is None:
            return {"alone": ce}
        return {"ce": ce, "kd": kl(s.logits, t.logits, self.temperature), "alone": ce.new_zeros(())}
