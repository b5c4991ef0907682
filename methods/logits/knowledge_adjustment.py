"""Knowledge adjustment: better supervision for distillation (Wen, Lai, Qian, arXiv 2019, arXiv:1911.07471)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import in_float32, kl, kl_of_logs
from kdbench.method import Method
from kdbench.settings import Temperature
from kdbench.taps import Out

Form = Literal["shift", "smoothing"]


def shifted(teacher: Tensor, y: Tensor) -> Tensor:
    """Logits (B, K) whose largest value changes places with that of the label (B,); what is right stays as it is."""
    largest, label = teacher.argmax(1, keepdim=True), y[:, None]
    swapped = teacher.scatter(1, largest, teacher.gather(1, label))
    return swapped.scatter(1, label, teacher.gather(1, largest))


@in_float32
def adjusted_loss(
    student: Tensor, teacher: Tensor, y: Tensor, temperature: float, form: Form = "shift", correct: float = 0.9
) -> Tensor:
    """T² · KL( A(softmax(t / T)) || softmax(s / T) ) of logits (B, K), summed over classes, averaged over the batch.

    A leaves what a teacher says who is right as it is. Where its largest class is not the label y (B,):

    ``shift`` (probability shift): the probabilities of both change places.
    ``smoothing`` (label smoothing): the label has `correct`, each other class (1 - `correct`) / (K - 1).
    """
    if form == "shift":
        return kl(student, shifted(teacher, y), temperature)
    smooth = torch.full_like(teacher, (1 - correct) / (teacher.shape[1] - 1)).scatter_(1, y[:, None], correct)
    wrong = (teacher.argmax(1) != y)[:, None]
    log_q = torch.where(wrong, smooth.log(), (teacher / temperature).log_softmax(1))
    return temperature**2 * kl_of_logs((student / temperature).log_softmax(1), log_q)


class KnowledgeAdjustment(Method):
    """L = `adjusted_loss`: what the teacher says, mended where it is wrong; so there is no need of CE with labels.

    Args:
        temperature: T.
        form: how it is mended.
        correct: probability of the label in a mended target of form ``smoothing``; ``shift`` has no use for it.
    """

    leaf = "logits/softened-labels"
    paper = "wen2019preparing"
    title = "KA"
    terms = ("kd",)
    survey: ClassVar = {
        "description": "softened probabilities, mended where the teacher is wrong",
        "objective": "T² KL(A(t/T), s/T)",
    }

    def __init__(
        self,
        temperature: Temperature = 4.0,
        form: Form = "shift",
        correct: Annotated[float, Field(gt=0, lt=1)] = 0.9,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.temperature, self.form, self.correct = temperature, form, correct

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {"kd": adjusted_loss(s.logits, t.logits, batch.y, self.temperature, self.form, self.correct)}
