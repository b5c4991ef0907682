"""Unifying heterogeneous classifiers with distillation (Vongkulbhisal et al., CVPR 2019, arXiv:1904.06062)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import in_float32, kl
from kdbench.method import Method
from kdbench.settings import Temperature
from kdbench.taps import Out, Spec


@in_float32
def uhc_loss(
    student: Tensor, teachers: Sequence[Tensor], classes: Sequence[Sequence[int]], temperature: float = 3.0
) -> Tensor:
    """Σ_k T² · KL( softmax(teacher_k / T) || softmax(student / T), restricted to C_k and renormalised ).

    Summed over classes and teachers, averaged over the batch: the cross-entropy form of the paper, minimised over the
    student itself rather than, before, over a table of soft labels. Classes of different teachers may overlap.

    Args:
        student: logits over the union of classes, (B, K).
        teachers: logits over each teacher's own classes, (B, K_k).
        classes: C_k, what each output of teacher k means, as positions among the K.
    """
    parts = [kl(student[:, list(own)], teacher, temperature) for teacher, own in zip(teachers, classes, strict=True)]
    return torch.stack(parts).sum()


def known_classes(teachers: Sequence[Spec], data: DataSpec) -> list[tuple[int, ...]]:
    """What the outputs of each teacher mean, as the student's classes."""
    everything = tuple(range(data.num_classes))
    return [everything if teacher.classes is None else teacher.classes for teacher in teachers]


class UHC(Method):
    """L = `uhc_loss`: one student for the classes of all teachers, each of which knows some; no labels."""

    leaf = "multi-teacher/unified-data-sources"
    paper = "vongkulbhisal2019unifying"
    title = "UHC"
    needs = frozenset({"teachers"})
    terms = ("kd",)
    survey: ClassVar = {
        "ensemble_logits": "distributions on subsets of classes",
        "ensemble_features": "none",
        "unify_data": "yes",
        "customize": "no",
        "peers": "no",
        "online": "no",
        "objective": "KL on each teacher's classes",
    }

    def __init__(self, temperature: Temperature = 3.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.classes = known_classes(self.teachers, data)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {"kd": uhc_loss(s.logits, [each.logits for each in t.each], self.classes, self.temperature)}
