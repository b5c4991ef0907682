"""LwM: learning without memorizing (Dhar et al., CVPR 2019, arXiv:1811.08051)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import in_float32
from kdbench.settings import Temperature
from kdbench.taps import Out, Spec, Taps
from methods.intermediate.gradient_attention import class_attention, slope
from methods.learning.lwf import LwF


def grad_cam(logits: Tensor, maps: Tensor, classes: Tensor) -> Tensor:
    """Q = ReLU( Σ_c α_c A_c ) with α_c = mean_hw ∂z_b / ∂A_c, for maps A (B, C, H, W) and a class b of each: (B, H, W).

    Gradients flow through α, too (Selvaraju et al., ICCV 2017, arXiv:1610.02391).
    """
    return class_attention(maps, slope(logits, maps, classes)).squeeze(1)


@in_float32
def attention_loss(student: Tensor, past: Tensor, normalised: bool = True) -> Tensor:
    """Σ_j | Q_t,j / ‖Q_t‖₂ - Q_s,j / ‖Q_s‖₂ | over positions j, averaged over the batch (L_AD of section 4).

    Of attention maps (B, H, W). Not `normalised`, they are |Q|, as mmasana/FACIL once took the norm over the single
    channel. No gradient reaches `past`.
    """
    s, t = (F.normalize(q, dim=1) if normalised else q.abs() for q in (student.flatten(1), past.detach().flatten(1)))
    return (t - s).abs().sum(1).mean()


class LwM(LwF):
    """L = CE over the new classes + β · `old_classes_loss`(s, past self) + γ · `attention_loss`(Q_s, Q_past).

    Q is the `grad_cam` of the old class that the past self thinks most of, without any exemplar. A step costs a
    gradient of the student's gradient, and one of the past self.

    Args:
        tap: maps that attention is of; by default those of the last stage.
        normalised: whether each map is divided by its norm.
    """

    paper = "dhar2019learning"
    title = "LwM"
    tasks = frozenset({"class-incremental"})
    terms = ("ce", "kd", "attention")  # type: ignore[assignment]
    earlier: ClassVar = frozenset(
        {
            "47f179f281338507ea49625643e64f7d106d4fe8be994b983932b4b208fda4d2",
            "c990bc25a511ef979c8a356994cea428538ed9c03044fabecfb74fdb77150279",
        }
    )
    survey: ClassVar = {
        "knowledge": "softened old-class scores and attention maps of the past self",
        "objective": "CE on new classes + β CE(past/T, s/T) + γ L1 of Grad-CAM maps",
    }

    def __init__(
        self, temperature: Temperature = 2.0, tap: str = "stage-1", normalised: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(temperature=temperature, **kwargs)
        self.normalised, self.taps = normalised, Taps(student=(tap,))

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        super().build(student, teacher, data)
        (self.place,) = student.resolve(self.taps.student)
        if len(student.shapes[self.place]) != 3:
            raise DoesNotFit(f"'{self.place}' of {student.name} is no map, (C, H, W): choose a stage (tap).")

    def teach(self, batch: Batch) -> Out | None:
        if not self.experience.old:
            return None
        return self.teacher_out(batch.x.detach().requires_grad_(), self.past, grad=True)

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        with torch.compiler.set_stance("force_eager"):  # a compiled graph can be differentiated once
            s = self.student_out(batch.x)
        yield "student", self.losses(s, self.teach(batch), batch)

    def losses(self, s: Out, t: Out | None, batch: Batch) -> dict[str, Tensor]:
        terms = super().losses(s, t, batch)
        if t:
            top = t.logits[:, : self.experience.old].argmax(1)
            now, before = (grad_cam(out.logits, out[self.place], top) for out in (s, t))
            terms["attention"] = attention_loss(now, before, self.normalised)
        return terms
