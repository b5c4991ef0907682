"""Be your own teacher (Zhang et al., ICCV 2019, arXiv:1905.08094)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import HOT, HOTTEST, cross_entropy, in_float32, kl
from kdbench.method import Method
from kdbench.settings import Temperature
from kdbench.taps import Out, Spec, Taps


@in_float32
def exit_kd_loss(exit_logits: Tensor, final_logits: Tensor, temperature: float = 3.0) -> Tensor:
    """T² · H( softmax(final / T), softmax(exit / T) ), summed over classes, averaged over the batch.

    The cross-entropy form of luanyunteng/pytorch-be-your-own-teacher: the gradient of the KL divergence, plus the
    final exit's entropy as a constant. No gradient reaches the final exit. Logits are (B, K).
    """
    final_logits, temperature = final_logits.detach(), min(temperature, HOTTEST)
    q = (final_logits / temperature).softmax(1)
    if temperature > HOT:  # the same, with a gradient of full precision
        return kl(exit_logits, final_logits, temperature) + torch.special.entr(q).sum(1).mean() * temperature**2
    return -(q * (exit_logits / temperature).log_softmax(1)).sum(1).mean() * temperature**2


@in_float32
def exit_feature_loss(exit_feature: Tensor, final_feature: Tensor) -> Tensor:
    """Σ (f_exit - f_final)² over samples and elements where either feature is positive (the reference's partial L2)."""
    final_feature = final_feature.detach()
    active = (exit_feature > 0) | (final_feature > 0)
    return ((exit_feature - final_feature).square() * active).sum()


class Exit(nn.Module):
    """A bottleneck from an inner map to the size of the last one, global pooling and a classifier."""

    def __init__(self, inner: tuple[int, ...], last: tuple[int, ...], embed: int, num_classes: int) -> None:
        super().__init__()
        step = max(inner[1] // last[1], 1)
        middle = max(embed // 4, 1)
        self.bottleneck = nn.Sequential(
            nn.Conv2d(inner[0], middle, 1, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            nn.Conv2d(middle, middle, step, stride=step, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(),
            nn.Conv2d(middle, embed, 1, bias=False),
            nn.BatchNorm2d(embed),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
        )
        self.classifier = nn.Linear(embed, num_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(feature (B, D), logits (B, K))."""
        feature = self.bottleneck(x)
        return feature, self.classifier(feature)


class BYOT(Method):
    """Exits on the inner stages learn from the last one; only the plain network is deployed.

    L = (1 - α) · [CE(final) + Σ_i CE(exit_i)] + α · Σ_i `exit_kd_loss` + β · Σ_i `exit_feature_loss`, with 1 - α, α
    and β as the weights of ``ce``, ``kd`` and ``feature``.
    """

    leaf = "teacher-free/deep-supervision"
    paper = "zhang2019your"
    title = "BYOT"
    needs = frozenset({"labels"})
    taps = Taps(student=("stage*", "embed"))
    terms = ("ce", "kd", "feature")
    survey: ClassVar = {
        "logits_hints": "logits and features",
        "deep_supervision": "exits on inner stages",
        "augmentation": "none",
        "architecture": "none",
        "task": "classification",
    }

    def __init__(self, temperature: Temperature = 3.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        *self.inner, last = student.all("stage")
        if not self.inner:
            raise DoesNotFit(f"BYOT needs at least two stages, {student.name} has one: choose another student.")
        self.exits = nn.ModuleList(
            Exit(student.shapes[tap], student.shapes[last], student.channels("embed"), data.num_classes)
            for tap in self.inner
        )

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        exits = [branch(s[tap]) for branch, tap in zip(self.exits, self.inner, strict=True)]
        return {
            "ce": torch.stack([cross_entropy(z, batch.y) for z in (s.logits, *(z for _, z in exits))]).sum(),
            "kd": torch.stack([exit_kd_loss(z, s.logits, self.temperature) for _, z in exits]).sum(),
            "feature": torch.stack([exit_feature_loss(f, s.embed) for f, _ in exits]).sum(),
        }
