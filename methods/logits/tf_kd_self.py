"""Tf-KD_self: revisiting distillation as label smoothing (Yuan et al., CVPR 2020, arXiv:1909.11723)."""

from __future__ import annotations

from typing import Any, ClassVar

from kdbench.settings import Temperature
from methods.teacher_free.ban import BAN


class TfKDSelf(BAN):
    """The student, trained once from labels, teaches a fresh copy of itself.

    Stage ``generation1``:  L = CE(y, s)
    Stage ``generation2``:  L = (1 - α) · CE(y, s) + α · T² · KL( softmax(past / T) || softmax(s / T) )

    with 1 - α and α in ``weights``. The two share the protocol's epochs. The paper's equation has no T², and
    yuanli2333/Teacher-free-Knowledge-Distillation multiplies the *mean* over samples and K classes by T² and a
    ``multiplier``: its weight of ``kd`` is α · multiplier / K.

    Args:
        temperature: T.
    """

    leaf = "logits/softened-labels"
    paper = "yuan2019revisit"
    title = "Tf-KD self"
    survey: ClassVar = {
        "description": "softened probabilities of the student's own past",
        "objective": "(1 - α) CE(y, s) + α KL(past, s)",
    }

    def __init__(self, temperature: Temperature = 6.0, **kwargs: Any) -> None:
        super().__init__(generations=2, temperature=temperature, **kwargs)
