"""Data-distortion guided self-distillation (Xu & Liu, AAAI 2019, DOI 10.1609/aaai.v33i01.33015565)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy, in_float32, kl
from kdbench.method import Method
from kdbench.settings import Temperature
from kdbench.taps import Taps


@in_float32
def posterior_loss(a: Tensor, b: Tensor, temperature: float = 3.0) -> Tensor:
    """T² · [ KL( p_b || p_a ) + KL( p_a || p_b ) ] of two views' logits (B, K); the first of each pair is a constant.

    Summed over classes, averaged over the batch.
    """
    return kl(a, b.detach(), temperature) + kl(b, a.detach(), temperature)


@in_float32
def mean_feature_loss(a: Tensor, b: Tensor) -> Tensor:
    """‖ mean_i a_i - mean_i b_i ‖² of two views' features (B, D): their squared MMD with the linear kernel.

    winycg/Self-KD-Lib compares one number per view, the mean over B and D, whose square it weighs with 5e-4.
    """
    return (a.mean(0) - b.mean(0)).square().sum()


class DDGSD(Method):
    """Two views of each image in one forward pass; each view teaches the other.

    L = CE over both views + μ · `posterior_loss` + λ · `mean_feature_loss`
    """

    leaf = "teacher-free/data-augmentation"
    paper = "xu2019data"
    title = "DDGSD"
    needs = frozenset({"labels", "again"})
    taps = Taps(student=("embed",))
    terms = ("ce", "kd", "mmd")
    survey: ClassVar = {
        "logits_hints": "logits and features",
        "deep_supervision": "none",
        "augmentation": "two views of each image",
        "architecture": "none",
        "task": "classification",
    }

    def __init__(self, temperature: Temperature = 3.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        s = self.student_out(torch.cat([batch.x, batch["again"].x]))
        (z_a, z_b), (f_a, f_b) = s.logits.chunk(2), s.embed.chunk(2)
        yield (
            "student",
            {
                "ce": cross_entropy(s.logits, torch.cat([batch.y, batch.y])),
                "kd": posterior_loss(z_a, z_b, self.temperature),
                "mmd": mean_feature_loss(f_a, f_b),
            },
        )
