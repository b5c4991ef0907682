"""Born-again neural networks (Furlanello et al., ICML 2018, arXiv:1805.04770)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, kl
from kdbench.method import Method, Snapshot, Stage
from kdbench.settings import Temperature
from kdbench.taps import Out, Spec


class BAN(Method):
    """Generations of one architecture, each from a fresh start, each taught by the one before; the last is deployed.

    Generation 1:      L = CE(y, s)
    Generation k > 1:  L = CE(y, s) + T² · KL( softmax(s_{k-1} / T) || softmax(s / T) )

    with the weights of ``first``, ``ce`` and ``kd``; the paper's networks without labels have no ``ce``. The
    generations share the protocol's epochs, where the paper's have a whole schedule each.

    Args:
        generations: networks trained one after the other.
        temperature: T.
    """

    leaf = "teacher-free/born-again"
    paper = "furlanello2018born"
    title = "BAN"
    needs = frozenset({"labels"})
    terms = ("first", "ce", "kd")
    survey: ClassVar = {
        "logits_hints": "logits",
        "deep_supervision": "none",
        "augmentation": "none",
        "architecture": "none",
        "task": "classification",
    }

    def __init__(
        self, generations: Annotated[int, Field(ge=2)] = 2, temperature: Temperature = 1.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.generations, self.temperature = generations, temperature

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.parent = Snapshot(self.student)

    def stages(self) -> Sequence[Stage]:
        share = 1 / self.generations
        born_again = (Stage(f"generation{k}", share, self.be_born) for k in range(2, self.generations + 1))
        return (Stage("generation1", share), *born_again)

    def be_born(self) -> None:
        self.parent.take(self.student)
        number = int(self.stage.removeprefix("generation"))
        self.student.load_state_dict(self.spawn(number - 1).state_dict())

    def teach(self, batch: Batch) -> Out | None:
        return None if self.stage == "generation1" else self.teacher_out(batch.x, self.parent)

    def losses(self, s: Out, t: Out | None, batch: Batch) -> dict[str, Tensor]:
        ce = cross_entropy(s.logits, batch.y)
        return {"first": ce} if t is None else {"ce": ce, "kd": kl(s.logits, t.logits, self.temperature)}
