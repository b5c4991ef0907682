"""KDGAN: knowledge distillation with generative adversarial networks (Wang, Zhang, Sun, Qi, NeurIPS 2018,
https://proceedings.neurips.cc/paper/2018)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method, Player
from kdbench.settings import Positive, Share, Temperature
from kdbench.taps import Spec
from methods.learning.anc import logits_loss, taken_for


@in_float32
def concrete(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """softmax( (log p + g) / τ ), p = softmax(logits), g = -log(-log u): a nearly one-hot label with a gradient.

    Args:
        logits: (B, K).
        uniform: u, (B, K), from (0, 1).
        temperature: τ; for τ → 0 a label drawn from p.
    """
    gumbel = -(-uniform.log()).log()
    return F.softmax((logits.log_softmax(1) + gumbel) / temperature, dim=1)


@in_float32
def distance(own: Tensor, other: Tensor) -> Tensor:
    """½ ‖z - z'‖² of logits (B, K), summed over classes, averaged over the batch; no gradient reaches `other`."""
    return logits_loss(own, other.detach()) / 2


def scored(scores: Tensor, labels: Tensor) -> Tensor:
    """What the discriminator's ``scores`` of each class, (B, K), say of (soft) labels, (B, K): logits, (B,)."""
    return (scores * labels).sum(1)


class KDGAN(Method):
    """Classifier C and teacher T label images and learn from each other; D tells their labels from the true ones.

    V = log D(x, y) + α · log(1 - D(x, y_c)) + (1 - α) · log(1 - D(x, y_t)) + β · d(c, t) + γ · d(t, c)

    D maximises V, C and T minimise it, one step each for a batch; d is their `distance`. D(x, y) is the sigmoid of the
    score that a network gives to class y; y_c and y_t are `concrete` samples of what C and T say, at a temperature that
    falls geometrically from its first to its last value. The student is C. Unlike in other methods T goes on learning:
    it is a copy of the frozen teacher, from where it begins. The networks D and C have the same architecture.

    The authors' code has a CE for C beside, and so has this. It draws hard labels, and takes D's opinion of them for
    a target; samples and gradients here are the paper's.

    Args:
        alpha: α, the part of C in what D is shown.
        temperature, end_temperature: of the samples, in the first and in the last epoch.
        teacher_lr, discriminator_lr: learning rates of their Adam.
    """

    leaf = "learning/adversarial"
    paper = "wang2018kdgan"
    title = "KDGAN"
    needs = frozenset({"teacher", "labels", "peers"})
    terms = ("ce", "adversarial", "distillation", "teacher_adversarial", "teacher_distillation", "discriminator")
    survey: ClassVar = {
        "gan": "GAN of three players",
        "purpose": "labels like the true ones",
        "discriminator_input": "image and label",
        "generators": "2, student and teacher",
        "discriminators": "1",
        "online": "yes, the teacher learns too",
    }

    def __init__(
        self,
        alpha: Share = 0.2,
        temperature: Temperature = 10.0,
        end_temperature: Temperature = 0.1,
        teacher_lr: Positive = 5e-4,
        discriminator_lr: Positive = 1e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.alpha, self.temperature, self.end_temperature = alpha, temperature, end_temperature
        self.teacher_lr, self.discriminator_lr = teacher_lr, discriminator_lr

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        self.mentor = copy.deepcopy(teacher.net).requires_grad_(True).train()  # type: ignore[union-attr]
        self.discriminator = self.spawn(1)

    def players(self) -> Sequence[Player]:
        def adam(rate: float) -> dict[str, Any]:
            return {"_target_": "torch.optim.Adam", "lr": rate}

        return [
            Player("discriminator", list(self.discriminator.parameters()), adam(self.discriminator_lr)),
            Player("teacher", list(self.mentor.parameters()), adam(self.teacher_lr)),
            Player("student", list(self.student.parameters())),
        ]

    def cooled(self) -> float:
        """τ of this epoch."""
        time = self.epoch / max(self.protocol.epochs - 1, 1)
        return self.temperature * (self.end_temperature / self.temperature) ** min(time, 1.0)

    def drawn(self, logits: Tensor) -> Tensor:
        uniform = torch.rand(logits.shape, generator=self.rng).clamp(1e-6, 1 - 1e-6).to(logits)
        return concrete(logits, uniform, self.cooled())

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        c = self.student_out(batch.x).logits
        t = self.student_out(batch.for_teacher.x, self.mentor).logits
        y_c, y_t = self.drawn(c), self.drawn(t)
        scores = self.student_out(batch.x, self.discriminator).logits
        real = scored(scores, F.one_hot(batch.y, scores.shape[1]))
        fakes = [taken_for(teacher=False, scores=scored(scores, y.detach())) for y in (y_c, y_t)]
        of_labels = taken_for(teacher=True, scores=real) + self.alpha * fakes[0] + (1 - self.alpha) * fakes[1]
        yield "discriminator", {"discriminator": of_labels}
        with torch.no_grad():
            scores = self.student_out(batch.x, self.discriminator).logits
        yield (
            "teacher",
            {
                "teacher_adversarial": -(1 - self.alpha) * taken_for(teacher=False, scores=scored(scores, y_t)),
                "teacher_distillation": distance(t, c),
            },
        )
        yield (
            "student",
            {
                "ce": cross_entropy(c, batch.y),
                "adversarial": -self.alpha * taken_for(teacher=False, scores=scored(scores, y_c)),
                "distillation": distance(c, t),
            },
        )
