"""Adversarial learning of portable student networks (Wang, Xu, Xu, Tao, AAAI 2018, DOI 10.1609/aaai.v32i1.11667)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy
from methods.learning.anc import ANC, taken_for


class PortableStudent(ANC):
    """A teaching assistant D tells the teacher's pooled features from the student's, who learns labels beside it.

    Student:    L = CE(y, s) + γ · log(1 - D(f_s))
    Assistant:  L = - log D(f_t) - log(1 - D(f_s))

    The student plays the same game as its assistant, not the one with - log D(f_s), as in `ANC`, whose network D has
    here. Features are compared in the teacher's space: the student's pass a linear layer where the teacher has another
    number of them.
    """

    paper = "wang2018adversarial"
    title = "Portable student"
    needs = frozenset({"teacher", "labels"})
    terms = ("ce", "adversarial", "discriminator")  # type: ignore[assignment]
    survey: ClassVar = ANC.survey | {"purpose": "a thin student with the teacher's features"}

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        s, t = self.student_out(batch.x), self.teacher_out(batch.for_teacher.x)
        features = self.adapter(s.embed)
        yield (
            "student",
            {
                "ce": cross_entropy(s.logits, batch.y),
                "adversarial": -taken_for(teacher=False, scores=self.discriminator(features)),
            },
        )
        fake, real = self.discriminator(features.detach()), self.discriminator(t.embed)
        told_apart = taken_for(teacher=True, scores=real) + taken_for(teacher=False, scores=fake)
        yield "discriminator", {"discriminator": told_apart}
