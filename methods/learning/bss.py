"""Adversarial samples supporting the decision boundary (Heo, Lee, Yun, Choi, AAAI 2019, arXiv:1805.05532)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method
from kdbench.settings import Count, Positive, Temperature


@in_float32
def base_samples(student: Tensor, teacher: Tensor, y: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """(rows, base), each (min(size, B),): which samples are attacked, those first that both networks have right.

    `base` says of each row whether they have: only these count. Where more than `size` are right, those come first
    where the networks differ most, by Σ_{k ≠ y} (p_t - p_s)², p = softmax(z); else in the order of the batch.

    Args:
        student, teacher: logits, (B, K).
        y: class indices, (B,).
    """
    right = (student.argmax(1) == y) & (teacher.argmax(1) == y)
    differences = (teacher.softmax(1) - student.softmax(1)).square()
    score = differences.scatter(1, y[:, None], 0).sum(1)
    place = -torch.arange(len(y), device=y.device, dtype=score.dtype)
    rank = torch.where(right.sum() > size, score, place).masked_fill(~right, -torch.inf)
    rows = rank.sort(descending=True, stable=True).indices[:size]
    return rows, right[rows]


@in_float32
def target_classes(teacher: Tensor, uniform: Tensor) -> Tensor:
    """For each sample a class other than the teacher's first, drawn by the teacher's probabilities, (B,).

    Args:
        teacher: logits, (B, K).
        uniform: uniform random numbers from [0, 1), (B,).
    """
    p, classes = teacher.softmax(1).sort(dim=1, descending=True)
    passed = p[:, 1:].cumsum(1) < uniform[:, None] * p[:, 1:].sum(1, keepdim=True)
    place = 1 + passed.sum(1).clamp(max=p.shape[1] - 2)
    return classes.gather(1, place[:, None]).squeeze(1)


def boundary_samples(
    net: Callable[[Tensor], Tensor], x: Tensor, target: Tensor, *, step: float, steps: int, limit: float
) -> Tensor:
    """Images (B, C, H, W) moved over the boundary between the class g that `net` sees in them and the `target` k.

    x <- clip( x + η · (z_g - z_k + 1e-4) · ∇(z_k - z_g) / ‖∇(z_k - z_g)‖ ),  z = net(x)

    at most `steps` times, each sample until its class is another. As in bhheo/BSS_distillation, attacks/attack_BSS.py,
    the gradient is divided by its norm once (DeepFool's, of the linear step, is squared), and whatever the data are,
    normalised pixels are clipped at ± `limit`.

    Args:
        net: logits (B, K) of images, through which gradients flow to them.
        target: class indices, (B,).
        step: η.
    """
    own = torch.zeros_like(target)
    for k in range(steps):
        x = x.detach().requires_grad_()
        z = net(x)
        own = z.argmax(1) if k == 0 else own
        gap = (z.gather(1, own[:, None]) - z.gather(1, target[:, None])).squeeze(1)
        (slope,) = torch.autograd.grad(-gap.sum(), x)
        length = slope.flatten(1).norm(dim=1).clamp(min=torch.finfo(slope.dtype).tiny)
        move = step * (gap.detach() + 1e-4) / length * (z.argmax(1) == own)
        x = (x.detach() + move[:, None, None, None] * slope).clamp(-limit, limit)
    return x


@in_float32
def soft_cross_entropy(student: Tensor, teacher: Tensor, temperature: float, base: Tensor | None = None) -> Tensor:
    """H( softmax(t / T), softmax(s / T) ) of logits (B, K), without T²: summed over classes, averaged over samples.

    Over all, or over those that `base` (B,) names; of none it is 0.
    """
    rows = -((teacher / temperature).softmax(1) * (student / temperature).log_softmax(1)).sum(1)
    return rows.mean() if base is None else (rows * base).sum() / base.sum().clamp(min=1)


class BSS(Method):
    """L = CE(y, s) + α · `soft_cross_entropy`(s(x), t(x)) + β · `soft_cross_entropy`(s(x'), t(x'))

    x' are the `base_samples` of the batch, moved over the teacher's boundary to one of the `target_classes`
    (`boundary_samples`); α and β, the weights of ``kd`` and ``bss``, fall while the student learns. Rows that are no
    base samples are moved and shown too, so that shapes are the same in each step, but do not count.

    Args:
        temperature: T.
        size: how many samples of a batch are attacked at most.
        step: η of the attack.
        steps: of the attack: forward and backward passes more of the teacher for every batch.
        limit: how far from 0 normalised pixels may be.
    """

    leaf = "learning/adversarial"
    paper = "heo2019knowledge"
    title = "BSS"
    terms = ("ce", "kd", "bss")
    survey: ClassVar = {
        "gan": "none: adversarial images",
        "purpose": "samples that support the teacher's boundary",
        "discriminator_input": "none",
        "generators": "none",
        "discriminators": "none",
        "online": "no",
    }

    def __init__(
        self,
        temperature: Temperature = 3.0,
        size: Count = 64,
        step: Positive = 0.3,
        steps: Count = 10,
        limit: Positive = 2.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.temperature, self.size, self.step, self.steps, self.limit = temperature, size, step, steps, limit

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        s, t = self.student_out(batch.x).logits, self.teacher_out(batch.x).logits
        rows, base = base_samples(s.detach(), t, batch.y, self.size)
        target = target_classes(t[rows], torch.rand(len(rows), generator=self.rng).to(t.device))
        x = boundary_samples(
            lambda x: self.teacher_out(x, grad=True).logits,
            batch.x[rows],
            target,
            step=self.step,
            steps=self.steps,
            limit=self.limit,
        )
        moved_s, moved_t = self.student_out(x).logits, self.teacher_out(x).logits
        yield (
            "student",
            {
                "ce": cross_entropy(s, batch.y),
                "kd": soft_cross_entropy(s, t, self.temperature),
                "bss": soft_cross_entropy(moved_s, moved_t, self.temperature, base),
            },
        )
