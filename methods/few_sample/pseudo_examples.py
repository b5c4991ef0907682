"""Few-shot learning of neural networks by pseudo example optimization (Kimura et al., BMVC 2018, arXiv:1802.03039)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy, kl
from kdbench.method import Player
from kdbench.settings import Count, Positive
from methods.data_free.pool import Pool


class PseudoExamples(Pool):
    """L = λ₁ · CE(y, s) + λ₂ · KL( softmax(t) || softmax(s) ), the first on real, the second on pseudo examples.

    Pseudo examples x̃ begin anywhere between two real ones. In each of the `rounds` behind the first there
    are as many more, which are the last ones moved to where the student is not trained yet, by Adam:

    x̃ <- argmax KL( softmax(t(x̃)) || softmax(s(x̃)) )

    The paper's teachers are Gaussian processes of the same few real examples, which also weigh pseudo examples by their
    own uncertainty; here the teacher is a network, and all weigh the same.

    Args:
        images: pseudo examples in all.
        rounds: see above.
        iterations, image_lr: of Adam, in each round.
        image_batch: pseudo examples that are moved at once.
    """

    leaf = "few-sample/pseudo-examples"
    paper = "kimura2018few"
    title = "Pseudo examples"
    needs = frozenset({"teacher", "labels"})
    terms = ("ce", "kd")
    survey: ClassVar = {
        "data": "few labelled images, and interpolated ones",
        "objective": "CE on real images, KL on adversarially moved ones",
    }

    def __init__(
        self,
        images: Count = 10_000,
        rounds: Count = 8,
        iterations: Count = 10,
        image_lr: Positive = 0.02,
        image_batch: Annotated[int, Field(ge=2)] = 250,
        **kwargs: Any,
    ) -> None:
        super().__init__(images, rounds, 1.0, **kwargs)
        self.iterations, self.image_lr, self.image_batch = iterations, image_lr, image_batch

    def dream(self) -> None:
        if self.round == 0:
            self.fresh.copy_(self.between())
            return
        start = (self.round - 1) * self.per_round
        before = self.images[start : start + self.per_round]
        for images, last in zip(self.fresh.split(self.image_batch), before.split(self.image_batch), strict=True):
            x = last.clone().requires_grad_()
            adam = torch.optim.Adam([x], lr=self.image_lr, maximize=True)
            for _ in range(self.iterations):
                s, t = self.student_out(x), self.teacher_out(x, grad=True)
                (x.grad,) = torch.autograd.grad(kl(s.logits, t.logits), [x])
                adam.step()
            images.copy_(x.detach())

    def between(self) -> Tensor:
        """Images on the way from a real example to another one."""
        index = self.positions()
        n = self.per_round
        first, second = index[torch.randint(len(index), (2, n), generator=self.rng).to(index.device)]
        return torch.lerp(
            self.take(first, plain=True).x, self.take(second, plain=True).x,
            torch.rand(n, 1, 1, 1, generator=self.rng).to(self.device),
        )  # fmt: skip

    def batch(self, batch: Batch) -> Batch:
        return batch

    def players(self) -> tuple[Player, ...]:
        return (Player("student", list(self.student.parameters())),)

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        pseudo = self.drawn(len(batch))
        s, t = self.student_out(torch.cat([batch.x, pseudo])).logits, self.teacher_out(pseudo).logits
        yield "student", {"ce": cross_entropy(s[: len(batch)], batch.y), "kd": kl(s[len(batch) :], t)}
