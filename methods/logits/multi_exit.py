"""Distillation-based training for multi-exit architectures (Phuong and Lampert, ICCV 2019).

DOI 10.1109/ICCV.2019.00144.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import HOTTEST, cross_entropy, divergence, in_float32
from kdbench.method import Method
from kdbench.settings import Share, Temperature
from kdbench.taps import Out, Spec, Taps
from methods.teacher_free.byot import Exit


@in_float32
def early_exits_loss(exits: Sequence[Tensor], last: Tensor, temperature: Tensor) -> Tensor:
    """T² · Σ_i H( softmax(last / T), softmax(exit_i / T) ) over the early exits, for logits (B, K).

    Summed over classes and exits, averaged over the batch; no gradient reaches the last exit. Computed as the
    divergence (to every digit at any T, see `kdbench.losses.divergence`) plus the last exit's entropy, a constant.
    """
    last, temperature = last.detach(), temperature.clamp(max=HOTTEST)
    q = (last / temperature).softmax(1)
    entropy = torch.special.entr(q).sum(1)
    rows = [divergence(q, (z - last) / temperature) + entropy for z in exits]
    return temperature**2 * torch.stack(rows).sum(0).mean()


@in_float32
def annealed(temperature: Tensor, last: Tensor, confidence: float, factor: float = 1.05) -> Tensor:
    """The temperature of the next step: T · `factor` while the last exit, softmax(last / T), is sharper than wanted.

    That is, while its largest probability, averaged over the batch, exceeds `confidence`.
    """
    sharp = (last.detach() / temperature).softmax(1).amax(1).mean() > confidence
    return torch.where(sharp, (temperature * factor).clamp(max=HOTTEST), temperature)


class MultiExit(Method):
    """L = (1 - C) · Σ_i CE(exit_i) + C · `early_exits_loss`, over all exits and the early ones

    with 1 - C and C as the weights of ``ce`` and ``kd``. T is 1 at first, and is `annealed` step by step; with a
    `factor` of 1 it stays what it is. Exits are BYOT's, on every inner stage, where the paper's network is an MSDNet;
    the last one is the plain network, which is what is deployed and evaluated.

    Args:
        temperature: T at first.
        confidence: the mean of the last exit's largest probability below which T stays.
        factor: of a step of T.
    """

    leaf = "logits/distribution-ensemble"
    paper = "phuong2019distillation"
    title = "Multi-exit"
    needs = frozenset({"labels"})
    taps = Taps(student=("stage*",))
    terms = ("ce", "kd")
    survey: ClassVar = {
        "description": "the last exit of a network, for its early ones",
        "objective": "(1 - C) Σ CE(y, s_i) + C T² Σ H(s_last/T, s_i/T)",
    }
    heat: Tensor

    def __init__(
        self,
        temperature: Temperature = 1.0,
        confidence: Share = 0.5,
        factor: Annotated[float, Field(ge=1)] = 1.05,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.temperature, self.confidence, self.factor = temperature, confidence, factor

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        *self.inner, last = student.all("stage")
        if not self.inner:
            raise DoesNotFit(f"Multi-exit needs at least two stages, {student.name} has one: choose another student.")
        self.exits = nn.ModuleList(
            Exit(student.shapes[tap], student.shapes[last], student.channels("embed"), data.num_classes)
            for tap in self.inner
        )
        self.register_buffer("heat", torch.tensor(self.temperature))

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        exits = [branch(s[tap])[1] for branch, tap in zip(self.exits, self.inner, strict=True)]
        self._step_saw = s.logits.detach()
        return {
            "ce": torch.stack([cross_entropy(z, batch.y) for z in (*exits, s.logits)]).sum(),
            "kd": early_exits_loss(exits, s.logits, self.heat),
        }

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        self.heat.copy_(annealed(self.heat, self._step_saw, self.confidence, self.factor))
