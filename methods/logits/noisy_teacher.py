"""Distilling knowledge from noisy teachers (Sau & Balasubramanian, 2016, arXiv:1610.09650)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import in_float32
from kdbench.settings import Share
from kdbench.taps import Out
from methods.logits.logits_mse import LogitsMSE, Variant


@in_float32
def noisy_logits(teacher: Tensor, noise: Tensor, variance: float) -> Tensor:
    """(1 + σ·ξ) · z of logits z and standard normal noise ξ, one for each of them, both (B, K); σ² is `variance`."""
    return teacher * (1 + variance**0.5 * noise)


class NoisyTeacher(LogitsMSE):
    """L = `logits_mse_loss`(s, t'): t' are the teacher's logits, under noise for some samples; no labels.

    Whether a sample's logits are noisy (`noisy_logits`) is drawn anew each time that it is seen, as the noise is.

    Args:
        variance: σ² of the noise.
        share: α, the chance of a sample to have noisy logits.
        variant: of the loss.
    """

    leaf = "logits/noisy-labels"
    paper = "sau2016deep"
    title = "Noisy teacher"
    survey: ClassVar = {
        "description": "logits of one teacher under multiplicative noise",
        "objective": "½ ‖(1 + ξ) t - s‖²",
    }

    def __init__(
        self,
        variance: Annotated[float, Field(ge=0)] = 0.1,
        share: Share = 0.5,
        variant: Variant = "sum",
        **kwargs: Any,
    ) -> None:
        super().__init__(variant=variant, **kwargs)
        self.variance, self.share = variance, share

    def teach(self, batch: Batch) -> Out:
        t = self.teacher_out(batch.for_teacher.x)
        chosen = torch.rand(len(batch), 1, generator=self.rng) < self.share
        noise = torch.randn(t.logits.shape, generator=self.rng) * chosen
        return Out({"logits": noisy_logits(t.logits, noise.to(t.logits.device), self.variance)})
