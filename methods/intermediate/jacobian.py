"""Knowledge transfer with Jacobian matching (Srinivas & Fleuret, ICML 2018, arXiv:1803.00443)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method
from kdbench.taps import Out, Spec
from methods.logits.logits_mse import logits_mse_loss

Variant = Literal["paper", "zoo"]


@in_float32
def input_gradient(outputs: Tensor, x: Tensor, *, differentiable: bool) -> Tensor:
    """The rows of Jacobians, ∂ outputs_b / ∂ x_b, flattened, (B, D), of one number for each sample (B,).

    It is the gradient of the sum: exact unless the network mixes samples, as batch norm does in training mode.

    Args:
        x: float32, which `outputs` were computed from.
        differentiable: gradients of this gradient are wanted.
    """
    (gradient,) = torch.autograd.grad(outputs.sum(), x, create_graph=differentiable)
    return gradient.flatten(1)


@in_float32
def jacobian_loss(student: Tensor, teacher: Tensor, variant: Variant = "paper") -> Tensor:
    """‖ J_s / ‖J_s‖ - J_t / ‖J_t‖ ‖², averaged over the batch, of gradients by the input (B, D).

    ``paper`` (equation 10): as it stands.
    ``zoo`` (AberHu/Knowledge-Distillation-Zoo, kd_losses/sobolev.py): the mean over B·D, that is D times less.
    """
    squares = (F.normalize(student, dim=1) - F.normalize(teacher.detach(), dim=1)).square()
    return squares.mean() if variant == "zoo" else squares.sum(1).mean()


class ByInput(Method):
    """Base of methods that compare derivatives by the image: a batch costs more backward passes."""

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        if data.shape_for_teacher is not None:
            raise DoesNotFit(
                f"{self.title} compares derivatives by the image, and teachers see another modality here: choose a "
                "scenario that shows both the same."
            )

    def batch(self, batch: Batch) -> Batch:
        return replace(batch, x=batch.x.detach().requires_grad_())

    def teach(self, batch: Batch) -> Out:
        return self.teacher_out(batch.x, grad=True)

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        with torch.compiler.set_stance("force_eager"):  # a compiled graph can be differentiated once
            s = self.student_out(batch.x)
        yield "student", self.losses(s, self.teach(batch), batch)


class JacobianMatching(ByInput):
    """L = CE(y, s) + α · ½ ‖s - t‖² + β · `jacobian_loss`, J = ∂ z_k / ∂ x of one output k of both networks.

    Matching outputs under small noise of the image is matching both outputs and Jacobians. A whole Jacobian
    would cost a backward pass for each class: ``paper`` takes the class that the teacher gives the largest output,
    ``zoo`` that of the label.

    Args:
        variant: of the loss, and of the output that is differentiated.
    """

    leaf = "intermediate/features"
    paper = "srinivas2018knowledge"
    title = "Jacobian matching"
    terms = ("ce", "mimic", "jacobian")
    survey: ClassVar = {
        "teacher_transform": "gradient by the image",
        "student_transform": "gradient by the image",
        "knowledge": "Jacobian of the outputs",
        "position": "logits",
        "distance": "L2 of normalised gradients",
        "lost": "Jacobians of all outputs but one",
    }

    def __init__(self, variant: Variant = "paper", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.variant = variant

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        output = (batch.y if self.variant == "zoo" else t.logits.argmax(1))[:, None]
        j_t = input_gradient(t.logits.gather(1, output), batch.x, differentiable=False)
        j_s = input_gradient(s.logits.gather(1, output), batch.x, differentiable=True)
        return {
            "ce": cross_entropy(s.logits, batch.y),
            "mimic": logits_mse_loss(s.logits, t.logits.detach()),
            "jacobian": jacobian_loss(j_s, j_t, self.variant),
        }
