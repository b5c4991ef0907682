"""Snapshot distillation: a teacher in one generation (Yang, Xie, Su, Yuille, CVPR 2019, arXiv:1812.00123)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method, Snapshot, Stage
from kdbench.settings import Temperature
from kdbench.taps import Out, Spec


@in_float32
def asymmetric_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """H( softmax(teacher / T), softmax(student) ) of logits (B, K): only the teacher's are softened.

    Summed over classes, averaged over the batch.
    """
    return cross_entropy(student, (teacher / temperature).softmax(1))


class SnapshotDistillation(Method):
    """Cycles of the learning rate, each taught by the network that stood at the end of the one before.

    Cycle 1:      L = CE(y, s)
    Cycle k > 1:  L = (1 + 1 / T) · CE(y, s) + `asymmetric_loss`(s, snapshot_{k-1}, T)

    with the weights of ``first``, ``ce`` and ``kd``. The network goes on where it was. Each cycle has the schedule of
    the protocol, from its beginning: the paper's is the cosine, ``protocol.schedule.kind=cosine``.

    Args:
        cycles: the paper's mini-generations.
        temperature: T.
    """

    leaf = "teacher-free/born-again"
    paper = "yang2019snapshot"
    title = "Snapshot distillation"
    needs = frozenset({"labels"})
    terms = ("first", "ce", "kd")
    survey: ClassVar = {
        "logits_hints": "logits",
        "deep_supervision": "none",
        "augmentation": "none",
        "architecture": "none",
        "task": "classification",
    }

    def __init__(self, cycles: Annotated[int, Field(ge=2)] = 4, temperature: Temperature = 2.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cycles, self.temperature = cycles, temperature

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.snapshot = Snapshot(self.student)

    def stages(self) -> Sequence[Stage]:
        share = 1 / self.cycles
        taught = (Stage(f"cycle{k}", share, self.take_snapshot) for k in range(2, self.cycles + 1))
        return (Stage("cycle1", share), *taught)

    def take_snapshot(self) -> None:
        self.snapshot.take(self.student)

    def teach(self, batch: Batch) -> Out | None:
        return None if self.stage == "cycle1" else self.teacher_out(batch.x, self.snapshot)

    def losses(self, s: Out, t: Out | None, batch: Batch) -> dict[str, Tensor]:
        ce = cross_entropy(s.logits, batch.y)
        return {"first": ce} if t is None else {"ce": ce, "kd": asymmetric_loss(s.logits, t.logits, self.temperature)}
