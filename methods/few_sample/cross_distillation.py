"""Few shot network compression via cross distillation (Bai et al., AAAI 2020, arXiv:1911.09450)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import DataSpec
from kdbench.losses import in_float32
from kdbench.method import Method, Stage
from kdbench.settings import Count, Positive, Share
from kdbench.taps import Spec
from methods.few_sample.fskd import Chain, narrowed, passing, transplant

Variant = Literal["convex", "plain"]


@in_float32
def cross_distillation_loss(
    student: Tensor,
    teacher: Tensor,
    x_s: Tensor,
    x_t: Tensor,
    mu: float = 0.6,
    variant: Variant = "convex",
    stride: int | tuple[int, ...] = 1,
    padding: int | str | tuple[int, ...] = 1,
) -> Tensor:
    """μ · mean( W_s * x_t - W_t * x_t )² + (1 - μ) · mean( W_t * x_s - W_s * x_s )² over all elements of the output.

    The correction loss keeps errors of the layers before from being learned, the imitation loss has the layer cope with
    them; μ is between the two. ``plain`` is layer-wise regression as without
    cross distillation, mean( W_s * x_s - W_t * x_t )². A bias that both share cancels out.

    Args:
        student, teacher: weights of the same layer, W_s and W_t, (C, C_in, k, k).
        x_s, x_t: what it is given in the student and in the teacher, (B, C_in, H, W).
    """
    if variant == "plain":
        there = F.conv2d(x_s, student, stride=stride, padding=padding)
        return (there - F.conv2d(x_t, teacher, stride=stride, padding=padding)).square().mean()
    apart = student - teacher  # convolutions are linear
    correction, imitation = (F.conv2d(x, apart, stride=stride, padding=padding).square().mean() for x in (x_t, x_s))
    return mu * correction + (1 - mu) * imitation


def proximal(weight: Tensor, left: int) -> Tensor:
    """Which input channels of weights (C, C_in, k, k) have the `left` largest norms: 1 or 0, (1, C_in, 1, 1)."""
    norms = weight.square().sum((0, 2, 3))
    return torch.zeros_like(norms).scatter(0, norms.topk(left).indices, 1.0).view(1, -1, 1, 1)


class CrossDistillation(Method):
    """The teacher is pruned layer by layer, each layer trained by `cross_distillation_loss` on a few images.

    From the second layer on, and with the classifier as the last one, W_s starts as W_t and follows Adam, while the
    number of its input channels falls linearly over the first third of the iterations to what the student has: with
    each that goes, the `proximal` ones stay, and the others are 0 from then on. In the other two thirds the learning
    rate is a tenth. Inputs are those of the teacher, and of the student as it is pruned so far.

    Then the student is what is left. There are no epochs and no labels. The authors' code fine-tunes afterwards on the
    same images, with CE and a rate of 1e-5.

    Args:
        images: training images that are looked at, at most.
        iterations, weight_lr: of Adam, for each layer.
        mu, variant: see `cross_distillation_loss`.
    """

    leaf = "few-sample/layer-wise"
    paper = "bai2019few"
    title = "Cross distillation"
    needs = frozenset({"teacher"})
    terms = ()
    survey: ClassVar = {
        "data": "1 to 50 images per class, unlabelled",
        "objective": "output of every layer, on inputs of teacher and student",
    }

    def __init__(
        self,
        images: Count = 50,
        iterations: Count = 3000,
        weight_lr: Positive = 5e-4,
        mu: Share = 0.6,
        variant: Variant = "convex",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.images, self.iterations, self.weight_lr = images, iterations, weight_lr
        self.mu, self.variant = mu, variant

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        assert teacher.net is not None
        self.own, self.whole = narrowed(self.title, student, teacher)
        self.net = (teacher.net,)  # a tuple hides the teacher's weights from nn.Module

    def stages(self) -> Sequence[Stage]:
        return (Stage("prune", 0, self.prune),)

    def prune(self) -> None:
        index = self.positions()
        index = index[torch.randperm(len(index), generator=self.rng)[: self.images].to(index.device)]
        x = self.take(index, plain=True).x
        pruned = copy.deepcopy(self.net[0])
        chain = Chain.of(Spec("the student", net=pruned))
        kept = []
        for small, layer, source in zip(*map(behind_first, (self.own, chain, self.whole)), strict=True):
            with torch.no_grad():
                x_s, _ = passing(layer, lambda: pruned(x))
                x_t, _ = passing(source, lambda: self.teacher_out(x, self.net[0]))
            self.forwards["student"] += len(x)
            mask = self.fit(layer, as_maps(x_s), as_maps(x_t), left=small.weight.shape[1])
            kept.append(mask.flatten().nonzero()[:, 0])
        transplant(self.own, chain, kept)

    def fit(self, layer: nn.Conv2d | nn.Linear, x_s: Tensor, x_t: Tensor, left: int) -> Tensor:
        """Train a layer's weights, of which `left` input channels stay; see `proximal`."""
        teacher = as_maps(layer.weight.detach())
        weight = teacher.clone().requires_grad_()
        where = (layer.stride, layer.padding) if isinstance(layer, nn.Conv2d) else (1, 0)
        adam = torch.optim.Adam([weight], lr=self.weight_lr)
        surplus, third = weight.shape[1] - left, self.iterations / 3
        now, mask = weight.shape[1], torch.ones_like(weight[:1, :, :1, :1])
        for i in range(self.iterations):
            loss = cross_distillation_loss(weight, teacher, x_s, x_t, self.mu, self.variant, *where)
            (gradient,) = torch.autograd.grad(loss, [weight])
            weight.grad = gradient * mask
            adam.step()
            due = left + max(0, int(surplus * (third - i) / third)) * (i < self.iterations - 1)
            if due < now:
                now, mask = due, proximal(weight.detach(), due)
                for name in ("exp_avg", "exp_avg_sq"):
                    adam.state[weight][name].mul_(mask)
            with torch.no_grad():
                weight.mul_(mask)
            adam.param_groups[0]["lr"] = self.weight_lr * (1 if i <= third else 0.1)
        with torch.no_grad():
            layer.weight.copy_(weight.view_as(layer.weight))
        return mask


def behind_first(chain: Chain) -> list[nn.Conv2d | nn.Linear]:
    return [*(conv for conv, _ in chain.layers[1:]), chain.head]


def as_maps(x: Tensor) -> Tensor:
    """Features (B, D) as maps of one place, (B, D, 1, 1)."""
    return x if x.dim() == 4 else x[..., None, None]
