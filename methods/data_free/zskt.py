"""Zero-shot knowledge transfer via adversarial belief matching (Micaelli & Storkey, NeurIPS 2019, arXiv:1905.09768)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import in_float32, kl
from kdbench.settings import Count, Positive, Temperature
from kdbench.taps import Out, Spec, Taps, aligned
from methods.data_free.game import Game
from methods.data_free.generators import UnboundedGenerator
from methods.intermediate.at import at_loss

Reduction = Literal["code", "paper"]


@in_float32
def belief_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0, variant: Reduction = "code") -> Tensor:
    """D = KL( softmax(t / T) || softmax(s / T) ) of logits (B, K), without a factor T².

    Averaged over the batch, and summed over classes (``paper``) or averaged over them, too (``code``): to
    that belongs the authors' weight of the attention term.
    """
    summed = kl(student, teacher, temperature) / temperature**2
    return summed if variant == "paper" else summed / student.shape[1]


@in_float32
def attention_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Σ over pairs of maps (B, C, H, W) of `at_loss`: normalised spatial attention, mean of squares."""
    return torch.stack([at_loss(a, b) for a, b in zip(student, teacher, strict=True)]).sum()


class ZSKT(Game):
    """L = D + β · `attention_loss`, the student's; the generator's is -D, with D = `belief_loss`.

    For each batch the generator has one step, and then the student has `student_steps` of them, all on the images that
    the generator now makes of the same noise. The authors' code also clips gradients to a norm of 5
    (``protocol.clip_norm``) and lowers the generator's learning rate along a cosine.

    Args:
        temperature: T.
        variant: whose reduction, see `belief_loss`.
    """

    leaf = "data-free/generator"
    paper = "micaelli2019zero"
    title = "ZSKT"
    taps = Taps(student=("stage*",), teacher=("stage*",))
    terms = ("adversarial", "kd", "at")
    maker = UnboundedGenerator
    survey: ClassVar = {
        "original_data": "no",
        "prior": "divergence of teacher and student, attention",
        "generators": "1",
        "input": "noise",
        "discriminator": "teacher and student, by their divergence",
        "multi_task": "no",
    }

    def __init__(
        self,
        noise: Count = 100,
        generator_lr: Positive = 1e-3,
        student_steps: Count = 10,
        temperature: Temperature = 1.0,
        variant: Reduction = "code",
        **kwargs: Any,
    ) -> None:
        super().__init__(noise, generator_lr, student_steps, **kwargs)
        self.temperature, self.variant = temperature, variant

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        super().build(student, teacher, data)
        self.pairs = aligned(student, teacher)

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        z = self.draw(len(batch))
        images = self.generator(z)
        s, t = self.student_out(images), self.teacher_out(images, grad=True)
        yield "generator", {"adversarial": -self.divergence(s, t)}
        images = self.generator(z).detach()
        t = self.teacher_out(images)
        for _ in range(self.student_steps):
            s = self.student_out(images)
            maps = [s[a] for a, _ in self.pairs], [t[b] for _, b in self.pairs]
            yield "student", {"kd": self.divergence(s, t), "at": attention_loss(*maps)}

    def divergence(self, s: Out, t: Out) -> Tensor:
        return belief_loss(s.logits, t.logits, self.temperature, self.variant)
