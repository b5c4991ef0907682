"""Sobolev training for neural networks (Czarnecki et al., NIPS 2017, arXiv:1706.04859)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import in_float32
from kdbench.taps import Out
from methods.intermediate.jacobian import ByInput, input_gradient
from methods.logits.logits_mse import logits_mse_loss


@in_float32
def derivative_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """‖ D_s - D_t ‖², averaged over the batch, of derivatives (B, D) by the input; no gradient reaches `teacher`."""
    return (student - teacher.detach()).square().sum(1).mean()


class Sobolev(ByInput):
    """L = ½ ‖s - t‖² + β · `derivative_loss`, D = ∂ <z, v> / ∂ x, v drawn from the unit sphere; no labels.

    A function is matched in its values and in its derivatives. Stochastic Sobolev training: instead of Jacobians their
    projections on one random direction v of the outputs, anew for each sample and step.
    """

    leaf = "intermediate/features"
    paper = "czarnecki2017sobolev"
    title = "Sobolev"
    extension = True
    needs = frozenset({"teacher"})
    terms = ("mimic", "sobolev")
    survey: ClassVar = {
        "teacher_transform": "gradient by the image",
        "student_transform": "gradient by the image",
        "knowledge": "derivative of the outputs",
        "position": "logits",
        "distance": "L2",
        "lost": "none, in expectation",
    }

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        v = F.normalize(torch.randn(s.logits.shape, generator=self.rng), dim=1).to(batch.x.device)
        d_t = input_gradient((v * t.logits).sum(1), batch.x, differentiable=False)
        d_s = input_gradient((v * s.logits).sum(1), batch.x, differentiable=True)
        return {"mimic": logits_mse_loss(s.logits, t.logits.detach()), "sobolev": derivative_loss(d_s, d_t)}
