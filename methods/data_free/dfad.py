"""Data-free adversarial distillation (Fang et al., 2019, arXiv:1912.11006)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import in_float32
from kdbench.settings import Count, Positive
from methods.data_free.game import Game

Discrepancy = Literal["l1", "log"]


@in_float32
def discrepancy(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean |s - t| of logits (B, K), or maps of them, over all elements: the student's loss."""
    return (student - teacher).abs().mean()


@in_float32
def adversarial_loss(student: Tensor, teacher: Tensor, variant: Discrepancy = "l1") -> Tensor:
    """- `discrepancy`, or -log( 1 + `discrepancy` ), whose gradient shrinks as the two come apart (``log``).

    Its gradient reaches the images through the student and through the teacher. The authors' scripts have the first,
    and the second in a comment.
    """
    apart = discrepancy(student, teacher)
    return -apart if variant == "l1" else -apart.log1p()


class DFAD(Game):
    """L = ``mean |s - t|``, which the student minimises and a generator of the images maximises.

    For each batch the student has `student_steps` steps, each on new images, and then the generator has one. Images are
    as many as in a batch, in each of these steps.

    Args:
        variant: of the generator's loss, see `adversarial_loss`.
    """

    leaf = "data-free/generator"
    paper = "fang2019data"
    title = "DFAD"
    tasks = frozenset({"classification", "segmentation"})
    terms = ("adversarial", "kd")
    survey: ClassVar = {
        "original_data": "no",
        "prior": "discrepancy of teacher and student",
        "generators": "1",
        "input": "noise",
        "discriminator": "teacher and student, by their discrepancy",
        "multi_task": "no; segmentation, too",
    }

    def __init__(
        self,
        noise: Count = 256,
        generator_lr: Positive = 1e-3,
        student_steps: Count = 5,
        variant: Discrepancy = "l1",
        **kwargs: Any,
    ) -> None:
        super().__init__(noise, generator_lr, student_steps, **kwargs)
        self.variant = variant

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        for _ in range(self.student_steps):
            images = self.generator(self.draw(len(batch))).detach()
            s, t = self.student_out(images), self.teacher_out(images)
            yield "student", {"kd": discrepancy(s.logits, t.logits)}
        images = self.generator(self.draw(len(batch)))
        s, t = self.student_out(images), self.teacher_out(images, grad=True)
        yield "generator", {"adversarial": adversarial_loss(s.logits, t.logits, self.variant)}
