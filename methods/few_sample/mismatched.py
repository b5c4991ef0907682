"""Knowledge distillation using unlabeled mismatched images (Kulkarni, Patil & Karande, 2017, arXiv:1703.07131)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import kl
from kdbench.method import Method
from kdbench.settings import Temperature


class Mismatched(Method):
    """L = KL_T(x) + KL_T(x'), KL_T = T² · KL( softmax(t / T) || softmax(s / T) ), x' of the stream ``unlabelled``.

    No label is used. The images x are the few that are at hand, and with a weight of 0 for ``kd`` none is. Whether the
    others are mismatched is the scenario's affair: images of another domain, or of other things altogether.

    Args:
        temperature: T.
    """

    leaf = "few-sample/pseudo-examples"
    paper = "kulkarni2017knowledge"
    title = "Mismatched images"
    needs = frozenset({"teacher", "unlabelled"})
    terms = ("kd", "mismatched")
    survey: ClassVar = {
        "data": "few images, and unlabelled ones of other things",
        "objective": "KL of softened probabilities on both",
    }

    def __init__(self, temperature: Temperature = 4.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        other = batch["unlabelled"]
        both = torch.cat([batch.x, other.x]), torch.cat([batch.for_teacher.x, other.for_teacher.x])
        s, t = self.student_out(both[0]).logits, self.teacher_out(both[1]).logits
        here, there = ((s[part], t[part]) for part in (slice(len(batch)), slice(len(batch), None)))
        yield "student", {"kd": kl(*here, self.temperature), "mismatched": kl(*there, self.temperature)}
