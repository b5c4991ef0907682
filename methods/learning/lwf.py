"""Learning without forgetting (Li and Hoiem, ECCV 2016 and TPAMI 2018, arXiv:1606.09282)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method, Snapshot, Stage
from kdbench.settings import Temperature, Weight
from kdbench.taps import Out, Spec

Compared = Callable[[Tensor, Tensor, float], Tensor]


@in_float32
def old_classes_loss(student: Tensor, past: Tensor, temperature: float = 2.0) -> Tensor:
    """H( softmax(t / T), softmax(s / T) ) over the old classes' logits (B, old) (equation 2).

    Summed over classes, averaged over the batch, without a factor T²; no gradient reaches `past`, the model before the
    new classes came. FACIL mixes 1e-5 of the uniform distribution into the student's.
    """
    return cross_entropy(student / temperature, (past.detach() / temperature).softmax(1))


def seen_classes_loss(student: Tensor, past: Tensor, temperature: float = 2.0) -> Tensor:
    """`old_classes_loss` of logits (B, seen) and (B, old): the past self gives the classes that it lacks nothing."""
    lacking = student.shape[1] - past.shape[1]
    return old_classes_loss(student, F.pad(past, (0, lacking), value=-torch.inf), temperature)


def by_head(
    student: Tensor, past: Tensor, ends: Sequence[int], temperature: float, loss: Compared = old_classes_loss
) -> Tensor:
    """Σ_f L(s_f, t_f) over heads f, the classes that came at one time: from ends[f - 1] to ends[f] - 1 (section 3).

    Args:
        student, past: logits, (B, ends[-1] or more).
        ends: how many classes had been seen when a head was complete.
        loss: of two heads' logits and a temperature.
    """
    return torch.stack([loss(student[:, a:b], past[:, a:b], temperature) for a, b in pairwise((0, *ends))]).sum()


@in_float32
def new_classes_loss(student: Tensor, y: Tensor, old: int) -> Tensor:
    """CE over the new classes alone, of logits (B, seen) and class indices (B,) from `old` on (equation 1)."""
    return cross_entropy(student[:, old:], y - old)


class LwF(Method):
    """L = CE over the new classes + λ · `old_classes_loss`(s, past self), without any exemplar.

    The past self is the student as it was when the new classes came. Each step trains the scores of all classes seen;
    where data come whole, or in the first experience, this is plain training. Where the same classes come again in
    another domain, all are new and all are old.

    Args:
        temperature: T.
        labels: what CE tells apart: ``new`` classes, or all ``seen`` (van de Ven and Tolias 2019, arXiv:1904.07734).
        heads: ``one`` softmax over all old classes (PyCIL); ``seen``: the student's is over the new ones, too, which
            the past self gives nothing (van de Ven and Tolias, where a network is not told of the experience); or a
            term for each earlier experience, of its classes, in ``sum``, as in the paper, or in the ``mean`` (van de
            Ven and Tolias, where it is).
        balance: ``experiences``: in the k-th CE counts 1 / k and the second term (1 - 1 / k) · T² (the same); numbers:
            CE counts 1 / k, and the second term so much in each experience; else ``weights`` alone.
    """

    leaf = "learning/incremental"
    paper = "li2016learning"
    title = "LwF"
    extension = True
    needs = frozenset({"labels"})
    terms = ("ce", "kd")
    tasks = frozenset({"class-incremental", "domain-incremental"})
    survey: ClassVar = {
        "knowledge": "softened old-class scores of the past self",
        "objective": "CE on new classes + λ CE(past/T, s/T)",
    }

    added: ClassVar = {"labels": "new", "balance": "weights", "heads": "one"}
    earlier: ClassVar = frozenset(
        {
            "000083683d89db2cabbf77c930930b53aebfb8c2d7eaced4284287c1a974b8ac",
            "9e1c349341621772ea140060f92863e1a54673ee1b76a6819ed6f0e6bb5a2c2f",
        }
    )

    def __init__(
        self,
        temperature: Temperature = 2.0,
        labels: Literal["new", "seen"] = "new",
        balance: Literal["weights", "experiences"] | Sequence[Weight] = "weights",
        heads: Literal["one", "seen", "sum", "mean"] = "one",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.temperature, self.labels, self.balance, self.heads = temperature, labels, balance, heads

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        if not isinstance(self.balance, str) and len(self.balance) != (there := max(1, len(data.experiences))):
            raise DoesNotFit(
                f"LwF: balance has {len(self.balance)} numbers for {there} experiences: give one for each."
            )
        if data.task == "domain-incremental" and self.heads in ("sum", "mean"):
            raise DoesNotFit(f"LwF: all domains have one head, not a {self.heads} of them: set heads=one.")
        self.past = Snapshot(self.student)

    def stages(self) -> Sequence[Stage]:
        return (Stage("train", begin=lambda: self.past.take(self.student)),)

    def teach(self, batch: Batch) -> Out | None:
        return self.teacher_out(batch.x, self.past) if self.experience.number else None

    def losses(self, s: Out, t: Out | None, batch: Batch) -> dict[str, Tensor]:
        old, seen, known = self.experience.old, self.experience.seen, self.experience.known
        terms = {"ce": new_classes_loss(s.logits[:, :seen], batch.y, old if self.labels == "new" else 0)}
        if t and self.heads == "seen":
            terms["kd"] = seen_classes_loss(s.logits[:, :seen], t.logits[:, :known], self.temperature)
        elif t:
            ends = (known,) if self.heads == "one" else self.data.experiences[: self.experience.number]
            kd = by_head(s.logits, t.logits, ends, self.temperature)
            terms["kd"] = kd / len(ends) if self.heads == "mean" else kd
        if self.balance == "weights":
            return terms
        number = self.experience.number
        share = 1 / (number + 1)
        of_past = (1 - share) * self.temperature**2 if self.balance == "experiences" else float(self.balance[number])
        return {name: (share if name == "ce" else of_past) * term for name, term in terms.items()}
