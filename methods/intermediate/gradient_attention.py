"""Learning without memorizing, its attention distillation (Dhar et al., CVPR 2019, arXiv:1811.08051)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import cross_entropy, in_float32, to_smaller
from kdbench.method import Method
from kdbench.taps import Out, Spec, Taps

Variant = Literal["paper", "zoo"]


def slope(logits: Tensor, maps: Tensor, classes: Tensor) -> Tensor:
    """∂z_c / ∂F for the class c of each sample, (B, C, H, W); a student learns through it, too."""
    chosen = logits.gather(1, classes[:, None]).sum()
    (gradient,) = torch.autograd.grad(chosen, maps, create_graph=True)
    return gradient


@in_float32
def class_attention(maps: Tensor, gradient: Tensor, variant: Variant = "paper") -> Tensor:
    """ReLU( Σ_c w_c F_c ), w_c = mean_hw ∂z/∂F_c (Grad-CAM), of maps (B, C, H, W): (B, 1, H, W).

    ``zoo`` (AberHu/Knowledge-Distillation-Zoo) weights the gradient and not the map, Σ_c w_c ∂z/∂F_c.
    """
    weights = gradient.mean((2, 3), keepdim=True)
    return (weights * (gradient if variant == "zoo" else maps)).sum(1, keepdim=True).relu()


@in_float32
def class_attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over B·H·W of the absolute Q_s - Q_t, attention maps (B, 1, H, W), each divided by its 2-norm.

    The larger map is average-pooled to the smaller first. The paper sums over positions, which is H·W times this value.
    """
    student, teacher = to_smaller(student, teacher)
    return (F.normalize(student.flatten(1), dim=1) - F.normalize(teacher.flatten(1), dim=1)).abs().mean()


class GradientAttention(Method):
    """L = CE(y, s) + λ · `class_attention_loss` of where both networks see one class of each sample.

    Learning without Memorizing compares a network with its past self; here a teacher takes that place, as in
    AberHu/Knowledge-Distillation-Zoo. A step costs a gradient of the student's gradient, and one of the teacher.

    Args:
        tap: of both networks. Behind the last stage, in front of average pooling, gradients are the same everywhere.
        variant: ``paper``: Grad-CAM of the teacher's first choice; ``zoo``: of the label, see `class_attention`.
    """

    leaf = "intermediate/features"
    paper = "dhar2019learning"
    title = "LwM attention"
    extension = True
    terms = ("ce", "attention")
    survey: ClassVar = {
        "teacher_transform": "attention map of a class, from gradients",
        "student_transform": "attention map of a class, from gradients",
        "knowledge": "where a class is seen",
        "position": "one middle layer",
        "distance": "L1 of normalised maps",
        "lost": "channels",
    }

    def __init__(self, tap: str = "stage2", variant: Variant = "paper", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tap, self.variant = tap, variant
        self.taps = Taps(student=(tap,), teacher=(tap,))

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        for spec in (student, *self.teachers):
            if len(spec.shapes[self.tap]) != 3:
                raise DoesNotFit(f"'{self.tap}' of {spec.name} is no map, (C, H, W): choose a stage (the setting tap).")

    def teach(self, batch: Batch) -> Out:
        return self.teacher_out(batch.for_teacher.x.detach().requires_grad_(), grad=True)

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        with torch.compiler.set_stance("force_eager"):  # a compiled graph can be differentiated once
            s = self.student_out(batch.x)
        yield "student", self.losses(s, self.teach(batch), batch)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        classes = batch.y if self.variant == "zoo" else t.logits.argmax(1)

        def attention(out: Out) -> Tensor:
            return class_attention(out[self.tap], slope(out.logits, out[self.tap], classes), self.variant)

        loss = class_attention_loss(attention(s), attention(t).detach())
        return {"ce": cross_entropy(s.logits, batch.y), "attention": loss}
