"""Mimicking logits by a student that was trained on labels before, as KDGAN's code has its rivals (Wang et al., NeurIPS
2018, https://proceedings.neurips.cc/paper/2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method, Stage
from kdbench.settings import Share
from kdbench.taps import Out
from methods.logits.logits_mse import Variant, logits_mse_loss


@in_float32
def dropped_logits(teacher: Tensor, kept: Tensor, noise: Tensor, dropped: float, sigma: float) -> Tensor:
    """( m / (1 - p) + σ·ξ ) · z of logits z, a mask m of what is kept and standard normal noise ξ, all (B, K)."""
    return teacher * (kept / (1 - dropped) + sigma * noise)


class WarmMimic(Method):
    """1. ``start``: L = CE(y, s) on plain images, for a share of the epochs; what this leaves the student begins with.
    2. ``mimic``: L = CE(y, s) + `logits_mse_loss`(s, t'), weighted; t' are the teacher's logits as `dropped_logits`.

    The optimiser starts anew with the second stage, which alone sees augmented images. Without the term ``mimic`` this
    is the control of such a comparison: labels alone, with the same start and the same images.

    Args:
        start: share of the epochs of the first stage.
        dropped: p, the chance of a logit of the teacher's to be dropped each time that it is seen.
        sigma: σ of the noise.
        variant: of the loss.
    """

    leaf = "logits/softened-labels"
    paper = "wang2018kdgan"
    title = "Mimic logits (warm start)"
    terms = ("start", "ce", "mimic")
    survey: ClassVar = {
        "description": "raw logits of one teacher, by a student that knows the labels",
        "objective": "CE(y, s) first; then α CE(y, s) + β ‖t - s‖²",
    }

    def __init__(
        self,
        start: Annotated[float, Field(gt=0, lt=1)] = 0.5,
        dropped: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        sigma: Annotated[float, Field(ge=0)] = 0.0,
        variant: Variant = "mean",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.first: Share = start
        self.dropped, self.sigma, self.variant = dropped, sigma, variant

    def stages(self) -> Sequence[Stage]:
        return (Stage("start", self.first), Stage("mimic", 1 - self.first))

    def batch(self, batch: Batch) -> Batch:
        return self.take(batch.index, plain=True) if self.stage == "start" else batch

    def teach(self, batch: Batch) -> Out | None:
        if self.stage == "start":
            return None
        t = self.teacher_out(batch.for_teacher.x).logits
        kept, noise = (draw(t.shape, generator=self.rng) for draw in (torch.rand, torch.randn))
        kept = (kept >= self.dropped).to(t)
        return Out({"logits": dropped_logits(t, kept, noise.to(t.device), self.dropped, self.sigma)})

    def losses(self, s: Out, t: Out | None, batch: Batch) -> dict[str, Tensor]:
        ce = cross_entropy(s.logits, batch.y)
        return {"ce": ce, "mimic": logits_mse_loss(s.logits, t.logits, self.variant)} if t else {"start": ce}
