"""Multi-level logit distillation (Jin, Wang, Lin, CVPR 2023, DOI 10.1109/CVPR52729.2023.02325)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy, in_float32, kl
from kdbench.method import Method
from kdbench.settings import Temperature
from kdbench.taps import Out

Temperatures = Annotated[tuple[Temperature, ...], Field(min_length=1)]


@in_float32
def batch_relation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """1/B · ‖ P_t P_tᵀ - P_s P_sᵀ ‖² of P = softmax(z / T), (B, K): how alike the samples of a batch are.

    Rows sum to one, so taking 1/K from each entry of P changes all products alike, and keeps more digits.
    """
    p, q = ((z / temperature).softmax(1) - 1 / z.shape[1] for z in (student, teacher))
    return (q @ q.T - p @ p.T).square().sum() / len(p)


@in_float32
def class_relation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """1/K · ‖ P_tᵀ P_t - P_sᵀ P_s ‖² of P = softmax(z / T), (B, K): how often classes are taken for each other."""
    p, q = ((z / temperature).softmax(1) for z in (student, teacher))
    return (q.T @ q - p.T @ p).square().sum() / p.shape[1]


def level_terms(student: Tensor, teacher: Tensor, temperatures: Sequence[float]) -> dict[str, Tensor]:
    """``kd``, ``classes`` and ``batch``: each level's loss of logits (B, K), summed over all temperatures."""
    zero = student.new_zeros(())
    return {
        "kd": sum((kl(student, teacher, t) for t in temperatures), start=zero),
        "classes": sum((class_relation_loss(student, teacher, t) for t in temperatures), start=zero),
        "batch": sum((batch_relation_loss(student, teacher, t) for t in temperatures), start=zero),
    }


@in_float32
def uncertain(teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Of a teacher's logits (B, K), without temperature: which samples (B,) it is no surer of than of the median one,
    and which classes (K,) it sees no more of, summed over the batch, than of the median one."""
    q = teacher.softmax(1)
    sure, seen = q.amax(1), q.sum(0)
    return sure <= sure.quantile(0.5), seen <= seen.quantile(0.5)


class OneViewMLKD(Method):
    """The equations of the paper, with one view of each image and nothing left out; see `MLKD` for the authors' code.

    L = CE(y, s) + Σ_T [ KL_T(t, s) + `class_relation_loss` + `batch_relation_loss` ]

    Predictions are augmented by several temperatures T, and at each of them samples, classes and batch are aligned.

    Args:
        temperatures: T.
    """

    leaf = "logits/softened-labels"
    paper = "jin2023multi"
    title = "MLKD, one view"
    extension = True
    terms = ("ce", "kd", "classes", "batch")
    survey: ClassVar = {
        "description": "probabilities at several temperatures; relations of classes and of samples",
        "objective": "CE(y, s) + Σ_T KL_T + Gram matrices' distances",
    }

    def __init__(self, temperatures: Temperatures = (4.0, 3.0, 5.0, 2.0, 6.0), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperatures = temperatures

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {"ce": cross_entropy(s.logits, batch.y), **level_terms(s.logits, t.logits, self.temperatures)}


class MLKD(OneViewMLKD):
    """The authors' code, which the published numbers are of, with two views x and x' of each image.

    L = CE(y, s(x)) + CE(y, s(x')) + Σ_T [ f · KL_T(x) + f_c · class_relation(x) + f · batch_relation(x) ]
          + Σ_both KL_T(x') + Σ_weak KL_T(x)

    It means to leave out what the teacher is sure of, but its losses are means already: f and f_c are the fractions of
    samples and of classes that are `uncertain`, about a half. The relations of x' are computed there and not used, and
    its last two temperatures read x again. Theirs is a strongly augmented view, here another crop.

    Args:
        temperatures: T of both views, of Σ_both.
        weak_temperatures: T of the first view alone, of Σ_weak.
    """

    needs = frozenset({"teacher", "labels", "again"})
    title = "MLKD"

    def __init__(
        self,
        temperatures: Temperatures = (4.0, 3.0, 5.0),
        weak_temperatures: Temperatures = (2.0, 6.0),
        **kwargs: Any,
    ) -> None:
        super().__init__(temperatures=temperatures, **kwargs)
        self.weak_temperatures = weak_temperatures

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        views = (batch.x, batch["again"].x)
        s = [self.student_out(x).logits for x in views]
        t = [self.teacher_out(x).logits for x in views]
        yield "student", self.two_view_terms(s, t, batch.y)

    def two_view_terms(self, s: Sequence[Tensor], t: Sequence[Tensor], y: Tensor) -> dict[str, Tensor]:
        """Of the logits of both views, each (B, K)."""
        samples, classes = (part.float().mean() for part in uncertain(t[0]))
        levels = level_terms(s[0], t[0], (*self.temperatures, *self.weak_temperatures))
        strong = torch.stack([kl(s[1], t[1], each) for each in self.temperatures]).sum()
        weak = torch.stack([kl(s[0], t[0], each) for each in self.weak_temperatures]).sum()
        return {
            "ce": cross_entropy(s[0], y) + cross_entropy(s[1], y),
            "kd": samples * levels["kd"] + strong + weak,
            "classes": classes * levels["classes"],
            "batch": samples * levels["batch"],
        }
