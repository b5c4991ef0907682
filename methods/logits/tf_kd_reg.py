"""Teacher-free knowledge distillation by regularisation (Yuan et al., CVPR 2020, arXiv:1909.11723)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy, in_float32, kl, kl_of_logs
from kdbench.method import Method
from kdbench.settings import Temperature
from kdbench.taps import Out

Variant = Literal["authors", "paper"]


def virtual_teacher(like: Tensor, y: Tensor, correct: float) -> Tensor:
    """Probabilities made by hand, (B, K): `correct` for the class y (B,), (1 - `correct`) / (K - 1) for each other."""
    u = torch.full_like(like, (1 - correct) / (like.shape[1] - 1))
    return u.scatter_(1, y[:, None], correct)


@in_float32
def virtual_teacher_loss(
    student: Tensor, y: Tensor, temperature: float, correct: float, variant: Variant = "authors"
) -> Tensor:
    """KL of the student (logits, (B, K)) from the `virtual_teacher` u, summed over classes, averaged over the batch.

    ``authors``: KL( softmax(u / T) || softmax(s) ), of *probabilities* that pass through a second softmax, so that the
    target is all but uniform; the student has no temperature. It is K times what my_loss_function.py of
    yuanli2333/Teacher-free-Knowledge-Distillation returns, whose mean is over B·K.
    ``paper`` (section 5): T² · KL( softmax(log u / T) || softmax(s / T) ), both sides softened as in KD.
    """
    u = virtual_teacher(student, y, correct)
    if variant == "paper":
        return kl(student, u.log(), temperature)
    return kl_of_logs(student.log_softmax(1), (u / temperature).log_softmax(1))


class TfKDReg(Method):
    """L = (1 - α) · CE(y, s) + α · `virtual_teacher_loss`, with α in ``weights``: a teacher that is always right.

    Args:
        temperature: T, of the virtual teacher.
        correct: its probability of the true class.
        variant: of the loss.
    """

    leaf = "logits/softened-labels"
    paper = "yuan2019revisit"
    title = "Tf-KD_reg"
    needs = frozenset({"labels"})
    terms = ("ce", "kd")
    survey: ClassVar = {
        "description": "a virtual teacher made by hand",
        "objective": "(1 - α) CE(y, s) + α KL(u/T, s)",
    }

    def __init__(
        self,
        temperature: Temperature = 20.0,
        correct: Annotated[float, Field(gt=0, lt=1)] = 0.99,
        variant: Variant = "authors",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.temperature, self.correct, self.variant = temperature, correct, variant

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {
            "ce": cross_entropy(s.logits, batch.y),
            "kd": virtual_teacher_loss(s.logits, batch.y, self.temperature, self.correct, self.variant),
        }
