"""Learning without forgetting (Li and Hoiem, ECCV 2016 and TPAMI 2018, arXiv:1606.09282)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method, Snapshot, Stage
from kdbench.settings import Temperature, Weight
from kdbench.taps import Out, Spec


@in_float32
def old_classes_loss(student: Tensor, past: Tensor, temperature: float = 2.0) -> Tensor:
    """H( softmax(t / T), softmax(s / T) ) over the old classes' logits (B, old) (equation 2).

    Summed over classes, averaged over the batch, without a factor T²; no gradient reaches `past`, the model before the
    new classes came. The paper has one such term for each old task, a single head one for all (PyCIL). FACIL mixes
    1e-5 of the uniform distribution into the student's.
    """
    return cross_entropy(student / temperature, (past.detach() / temperature).softmax(1))


@in_float32
def new_classes_loss(student: Tensor, y: Tensor, old: int) -> Tensor:
    """CE over the new classes alone, of logits (B, seen) and class indices (B,) from `old` on (equation 1)."""
    return cross_entropy(student[:, old:], y - old)


class LwF(Method):
    """L = CE over the new classes + λ · `old_classes_loss`(s, past self), without any exemplar.

    The past self is the student as it was when the new classes came. Each step trains the scores of all classes seen;
    where data come whole, or in the first experience, this is plain training.

    Args:
        temperature: T.
        labels: what CE tells apart: ``new`` classes, or all ``seen`` (van de Ven and Tolias 2019, arXiv:1904.07734).
        balance: ``experiences``: in the k-th CE counts 1 / k and the second term (1 - 1 / k) · T² (the same); numbers:
            CE counts 1 / k, and the second term so much in each experience; else ``weights`` alone.
    """

    leaf = "learning/incremental"
    paper = "li2016learning"
    title = "LwF"
    extension = True
    needs = frozenset({"labels"})
    terms = ("ce", "kd")
    tasks = frozenset({"class-incremental"})
    survey: ClassVar = {
        "knowledge": "softened old-class scores of the past self",
        "objective": "CE on new classes + λ CE(past/T, s/T)",
    }

    added: ClassVar = {"labels": "new", "balance": "weights"}

    def __init__(
        self,
        temperature: Temperature = 2.0,
        labels: Literal["new", "seen"] = "new",
        balance: Literal["weights", "experiences"] | Sequence[Weight] = "weights",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.temperature, self.labels, self.balance = temperature, labels, balance

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        if not isinstance(self.balance, str) and len(self.balance) != (there := max(1, len(data.experiences))):
            raise DoesNotFit(
                f"LwF: balance has {len(self.balance)} numbers for {there} experiences: give one for each."
            )
        self.past = Snapshot(self.student)

    def stages(self) -> Sequence[Stage]:
        return (Stage("train", begin=lambda: self.past.take(self.student)),)

    def teach(self, batch: Batch) -> Out | None:
        return self.teacher_out(batch.x, self.past) if self.experience.old else None

    def losses(self, s: Out, t: Out | None, batch: Batch) -> dict[str, Tensor]:
        old, seen = self.experience.old, self.experience.seen
        terms = {"ce": new_classes_loss(s.logits[:, :seen], batch.y, old if self.labels == "new" else 0)}
        if t:
            terms["kd"] = old_classes_loss(s.logits[:, :old], t.logits[:, :old], self.temperature)
        if self.balance == "weights":
            return terms
        number = self.experience.number
        share = 1 / (number + 1)
        of_past = (1 - share) * self.temperature**2 if self.balance == "experiences" else float(self.balance[number])
        return {name: (share if name == "ce" else of_past) * term for name, term in terms.items()}
