"""DeepInversion: dreaming to distill (Yin et al., CVPR 2020, arXiv:1912.08795)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from kdbench.data.batch import DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import cross_entropy, in_float32
from kdbench.settings import Count, Positive, Temperature, Weight
from kdbench.taps import Spec
from methods.data_free.pool import Pool


@in_float32
def statistics_loss(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """‖μ(x) - μ‖₂ + ‖σ²(x) - σ²‖₂ between a batch norm's input x (B, C, H, W) and its running statistics (C,).

    One layer of R_feature. The norms are not squared, the batch's variance is the biased one (the authors' code).
    """
    batch_var, batch_mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return (batch_mean - mean).norm() + (batch_var - var).norm()


@in_float32
def total_variation(images: Tensor) -> Tensor:
    """Σ over four directions of ‖x - its neighbour‖₂, over all images (B, C, H, W) at once (R_TV).

    The directions are right, down and both diagonals. One root per direction over the whole batch, as in the authors'
    code: so the term grows with the root of the batch's size.
    """
    return torch.stack([difference.norm() for difference in _differences(images)]).sum()


@in_float32
def absolute_variation(images: Tensor) -> Tensor:
    """The same differences, Σ over directions of their mean absolute value (an option of the authors' code)."""
    return torch.stack([difference.abs().mean() for difference in _differences(images)]).sum()


def _differences(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        x[..., :, :-1] - x[..., :, 1:],
        x[..., :-1, :] - x[..., 1:, :],
        x[..., 1:, :-1] - x[..., :-1, 1:],
        x[..., :-1, :-1] - x[..., 1:, 1:],
    )


@in_float32
def image_norm(images: Tensor) -> Tensor:
    """Mean over the batch of ‖x‖₂ (R_l2); the authors' CIFAR-10 script takes the whole batch's norm."""
    return images.flatten(1).norm(dim=1).mean()


@in_float32
def competition_loss(student: Tensor, teacher: Tensor, temperature: float = 3.0) -> Tensor:
    """1 - JS( softmax(t / T), softmax(s / T) ) of logits (B, K): images on which the two differ.

    As in the authors' code: JS = ½ KL(m || p) + ½ KL(m || q) with the mean m as the *target* of both, summed over
    classes, averaged over the batch and clamped to [0, 1]; probabilities are clamped to [.01, .99] before.
    """
    p, q = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    m = ((p + q) / 2).clamp(0.01, 0.99)
    p, q = p.clamp(0.01, 0.99), q.clamp(0.01, 0.99)
    js = (m * (2 * m.log() - p.log() - q.log())).sum(1).mean() / 2
    return 1 - js.clamp(0, 1)


class Statistics:
    """While it is entered: a `measure` of every batch norm that a forward pass of `net` meets, in order.

    Args:
        measure: (input, running mean, running variance) -> what is kept.
    """

    def __init__(self, net: nn.Module, measure: Callable[[Tensor, Tensor, Tensor], Tensor] = statistics_loss) -> None:
        self.norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
        self.measure = measure
        self.seen: list[Tensor] = []

    @classmethod
    def kept_by(cls, teacher: Spec, title: str) -> nn.Module:
        """The teacher's network.

        Raises:
            DoesNotFit: it keeps no statistics of batch norms.
        """
        assert teacher.net is not None
        if not cls(teacher.net).norms:
            raise DoesNotFit(
                f"{title} reads the statistics of batch norms, and {teacher.name} has none: choose another pair."
            )
        return teacher.net

    def __enter__(self) -> Statistics:
        self.hooks = [norm.register_forward_hook(self._see) for norm in self.norms]
        return self

    def __exit__(self, *args: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _see(self, norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.seen.append(self.measure(inputs[0], norm.running_mean, norm.running_var))  # type: ignore[arg-type]

    def pop(self) -> list[Tensor]:
        """What was measured since the last call."""
        seen, self.seen = self.seen, []
        return seen


class DeepInversion(Pool):
    """Images are dreamt from what the teacher's batch norms remember, and the student is distilled on them.

    x̂ = argmin CE(t(x), y) + tv · `total_variation` + l2 · `image_norm`
               + bn · Σ_l `statistics_loss` + c · `competition_loss`(s, t)

    from Gaussian noise, by Adam, for as many images of each class. The dreams are shifted a little before every step.
    Training has `rounds`; each begins with more images, and its student has been distilled on all of them by

    L = T² · KL( softmax(t / T) || softmax(s / T) ).

    In the first round there is no student to compete with (DeepInversion), later there is (Adaptive DeepInversion). No
    training image is seen: batches carry only their size, so the budget in images equals the other methods'.

    Args:
        images: how many are dreamt in all, in equal parts for each round.
        rounds: 1 is DeepInversion, more are adaptive.
        iterations, image_lr, image_batch: of Adam, for each batch of images.
        variation, norm, statistics, competition: tv, l2, bn and c.
        jitter: the largest shift, in pixels.
        temperature: T of the distillation; that of the competition is 3.
    """

    leaf = "data-free/metadata"
    paper = "yin2019dreaming"
    title = "DeepInversion"
    needs = frozenset({"teacher", "no_data"})
    survey: ClassVar = {
        "original_data": "no",
        "prior": "statistics kept in batch norms, natural images",
        "generators": "none",
        "input": "noise",
        "discriminator": "none; student and teacher compete",
        "multi_task": "no",
    }

    def __init__(
        self,
        images: Count = 2560,
        rounds: Count = 2,
        iterations: Count = 2000,
        image_lr: Positive = 0.05,
        image_batch: Annotated[int, Field(ge=2)] = 256,
        variation: Weight = 2.5e-5,
        norm: Weight = 0.0,
        statistics: Weight = 10.0,
        competition: Weight = 1.0,
        jitter: Annotated[int, Field(ge=0)] = 2,
        temperature: Temperature = 20.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(images, rounds, temperature, **kwargs)
        self.iterations, self.image_lr, self.image_batch = iterations, image_lr, image_batch
        self.variation, self.norm, self.statistics = variation, norm, statistics
        self.competition, self.jitter = competition, jitter

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        super().build(student, teacher, data)
        self.net = (Statistics.kept_by(teacher, self.title),)  # a tuple hides the teacher's weights from nn.Module

    def dream(self) -> None:
        fresh = self.fresh
        labels = torch.arange(len(fresh), device=fresh.device) % self.data.num_classes
        with Statistics(self.net[0]) as seen:
            for images, y in zip(fresh.split(self.image_batch), labels.split(self.image_batch), strict=True):
                x = torch.randn(images.shape, generator=self.rng).to(images).requires_grad_()
                adam = torch.optim.Adam([x], lr=self.image_lr)
                for _ in range(self.iterations):
                    (x.grad,) = torch.autograd.grad(self.image_loss(x, y, seen), [x])
                    adam.step()
                images.copy_(x.detach())

    def image_loss(self, x: Tensor, y: Tensor, seen: Statistics) -> Tensor:
        dy, dx = (int(torch.randint(-self.jitter, self.jitter + 1, (1,), generator=self.rng)) for _ in range(2))
        x = x.roll((dy, dx), (2, 3))
        t = self.teacher_out(x, self.net[0], grad=True).logits
        loss = cross_entropy(t, y) + self.statistics * torch.stack(seen.pop()).sum()
        loss = loss + self.variation * total_variation(x) + self.norm * image_norm(x)
        if self.round and self.competition:
            loss = loss + self.competition * competition_loss(self.student_out(x).logits, t)
        return loss
