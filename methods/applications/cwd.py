"""Channel-wise knowledge distillation for dense prediction (Shu et al., ICCV 2021, arXiv:2011.13256)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import in_float32, kl
from kdbench.method import Method
from kdbench.settings import Temperature
from kdbench.taps import Out


@in_float32
def cwd_loss(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """T² · KL( φ(t) || φ(s) ), φ = softmax of a channel over its H·W *positions* at T.

    Summed over positions, averaged over channels and images; `student` and `teacher` are maps (B, C, H, W). No gradient
    reaches `teacher`.
    """
    s, t = (x.flatten(2).flatten(0, 1) for x in (student, teacher.detach()))  # a row for each channel of each image
    return kl(s, t, temperature)


class CWD(Method):
    """L = task(y, s) + λ · `cwd_loss`(s, t) on the maps of class scores."""

    leaf = "applications/segmentation"
    paper = "shu2021channel"
    title = "CWD"
    extension = True
    terms = ("task", "cwd")
    tasks = frozenset({"segmentation"})
    survey: ClassVar = {
        "task": "segmentation",
        "knowledge": "where each class's score is high",
        "objective": "CE(y, s) + λ T² KL over positions",
    }

    def __init__(self, temperature: Temperature = 4.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {"task": self.task.loss(s.logits, batch.y), "cwd": cwd_loss(s.logits, t.logits, self.temperature)}
