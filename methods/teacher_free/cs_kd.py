"""CS-KD: class-wise self-distillation (Yun et al., CVPR 2020, arXiv:2003.13964)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy, kl
from kdbench.method import Method
from kdbench.settings import Temperature
from kdbench.taps import Out


def partners(y: Tensor, keys: Tensor) -> Tensor:
    """For each sample another one of its class, by position in the batch, (B,); itself where there is no other.

    Args:
        y: class indices, (B,).
        keys: positive numbers, (B, B); of several others the one with the largest is taken.
    """
    other = (y[:, None] == y) & ~torch.eye(len(y), dtype=torch.bool, device=y.device)
    found = torch.where(other, keys, -1).argmax(1)
    return torch.where(other.any(1), found, torch.arange(len(y), device=y.device))


class CSKD(Method):
    """What the student says of another image of the class, as a constant, is a soft label.

    L = CE(y, s(x)) + λ · T² · KL( softmax(s(x') / T) || softmax(s(x) / T) ),  x' of the class of x

    The partner x' is drawn among the others of its class in the batch, and seen in another view; an image that is alone
    with its class meets its own other view, as it may in the paper, which draws x' from the whole class. The second
    pass is without gradient and in train mode, as in the authors' code.

    Args:
        temperature: T.
    """

    leaf = "teacher-free/data-augmentation"
    paper = "yun2020regularizing"
    title = "CS-KD"
    extension = True
    needs = frozenset({"labels", "again"})
    terms = ("ce", "kd")
    survey: ClassVar = {
        "logits_hints": "logits",
        "deep_supervision": "none",
        "augmentation": "pairs of images of one class",
        "architecture": "none",
        "task": "classification",
    }

    def __init__(self, temperature: Temperature = 4.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature

    @torch.no_grad()
    def teach(self, batch: Batch) -> Out:
        keys = torch.rand(len(batch), len(batch), generator=self.rng).to(batch.y.device)
        said = self.student_out(batch["again"].x).logits
        return Out({"logits": said[partners(batch.y, keys)]})

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {"ce": cross_entropy(s.logits, batch.y), "kd": kl(s.logits, t.logits, self.temperature)}
