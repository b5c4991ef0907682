"""Route constrained optimization (Jin et al., ICCV 2019, arXiv:1904.09149)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import cross_entropy, kl
from kdbench.method import Method, Stage
from kdbench.settings import Temperature
from kdbench.taps import Out, Spec


class RCO(Method):
    """L = (1 - α) · CE(y, s) + α · T² · KL( softmax(a_k / T) || softmax(s / T) ), anchor after anchor

    with α in ``weights``. The anchors a_1, a_2, ... are the teachers as they are given: states of one network, from
    early in its training to its end, as ``teacher.epochs=4 teachers=[{epochs:8},{epochs:12}]`` has them at equal
    intervals. Each teaches for an equal share of the epochs, from the weights where the anchor before it left the
    student, and with the protocol's schedule from its beginning.

    Teachers of one seed see the same data in the same order, but each follows its own schedule to its end: with
    ``protocol.schedule.kind=constant`` they are states of one run, as in the paper, else runs of several lengths.

    Args:
        temperature: T.
    """

    leaf = "logits/strictness"
    paper = "jin2019knowledge"
    title = "RCO"
    needs = frozenset({"teachers", "labels"})
    terms = ("ce", "kd")
    survey: ClassVar = {
        "description": "a teacher's states on its way, one after the other",
        "objective": "(1 - α) CE(y, s) + α T² KL(a_k/T, s/T)",
    }

    def __init__(self, temperature: Temperature = 4.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        for anchor in self.teachers:
            if anchor.classes is not None:
                raise DoesNotFit(
                    f"the anchors of RCO are states of one teacher, and {anchor.name} knows only "
                    f"{len(anchor.classes)} of the student's classes: have it learn all (teacher.dataset.classes)."
                )

    def stages(self) -> Sequence[Stage]:
        return tuple(Stage(f"anchor{k}", 1 / len(self.teachers)) for k in range(1, len(self.teachers) + 1))

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        anchor = t.each[int(self.stage.removeprefix("anchor")) - 1]
        return {"ce": cross_entropy(s.logits, batch.y), "kd": kl(s.logits, anchor.logits, self.temperature)}
