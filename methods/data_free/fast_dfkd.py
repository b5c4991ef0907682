"""Up to 100x faster data-free knowledge distillation (Fang et al., AAAI 2022, arXiv:2112.06253)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from kdbench.data.batch import DataSpec
from kdbench.losses import cross_entropy, in_float32
from kdbench.settings import Count, Positive, Share, Temperature, Weight
from kdbench.taps import Spec
from methods.data_free.cmi import decision_adversarial_loss
from methods.data_free.deep_inversion import Statistics
from methods.data_free.generated_pool import GeneratedPool


@in_float32
def moments(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Of a batch norm's input (B, C, H, W), and as it remembers them: means and biased variances, (2, 2, C)."""
    batch_var, batch_mean = torch.var_mean(x, (0, 2, 3), correction=0)
    return torch.stack([torch.stack([batch_mean, batch_var]), torch.stack([mean, var])])


@in_float32
def momentum_loss(seen: Sequence[Tensor], before: Tensor | None, momentum: float) -> Tensor:
    """Σ_l ‖μ_l - (1 - m) · μ(x) - m · μ̄‖₂ + ‖σ²_l - (1 - m) · σ²(x) - m · σ̄²‖₂

    of what batch norms remember (μ_l, σ²_l), the statistics of a batch, and their averages over the batches before: no
    batch has to be like all the data, if all of them together are. With no batch before it is `statistics_loss`.

    Args:
        seen: `moments` of each batch norm, (2, 2, C_l).
        before: averages of means and variances of all layers one behind the other, (2, Σ C_l).
        momentum: m.
    """
    sizes = [layer.shape[2] for layer in seen]
    averages = [None] * len(seen) if before is None else before.split(sizes, 1)
    apart = [
        remembered - (batch if average is None else batch.lerp(average.to(batch), momentum))
        for (batch, remembered), average in zip(seen, averages, strict=True)
    ]
    return torch.stack([difference.norm(dim=1).sum() for difference in apart]).sum()


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """All of them in one row, whatever their layout."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


class FastDFKD(GeneratedPool):
    """A generator learns what images have in common, so that each batch of them takes a few steps from there.

    x̂ = argmin CE(t(x), y) · oh + bn · `momentum_loss` + adv · `decision_adversarial_loss`

    over a copy of the generator and its input, by Adam from the generator as it is. The lowest loss of the batch says
    which step's images are taken. The generator then takes one step of Adam along the sum of the copy's gradients
    (first-order MAML) or towards where the copy went (Reptile), at the copy's rate times its steps. The first
    `warm_up` batches are made before there is a student to compete with, and not kept.

    L = T² · KL( softmax(t / T) || softmax(s / T) ) on all images so far, shifted by up to 4 pixels and mirrored.

    The authors keep the images of the warm-up, and begin anew with the generator's first layer after 120 batches, by
    code that fails where it is asked for; here there are neither.

    Args:
        images, rounds, temperature: see `Pool`.
        iterations, image_batch: steps of the copy, for each batch of images.
        noise: size of the generator's input.
        generator_lr, noise_lr: of the Adam of the copy, and of its input.
        statistics, one_hot, adversarial: bn, oh and adv.
        momentum: m of the averages of statistics over batches.
        warm_up: how many batches prepare the generator.
        meta: how it learns from a copy.
        flip: whether a mirrored image is of its class still.
    """

    leaf = "data-free/generator"
    paper = "fang2022up"
    title = "FastDFKD"
    extension = True
    needs = frozenset({"teacher", "no_data"})
    survey: ClassVar = {
        "original_data": "no",
        "prior": "statistics kept in batch norms, met by all batches together",
        "generators": "1, and a copy for each batch",
        "input": "noise, learned",
        "discriminator": "none; student and teacher compete",
        "multi_task": "no",
    }
    averages: Tensor
    first: Tensor
    second: Tensor
    batches: Tensor

    def __init__(
        self,
        images: Count = 2560,
        rounds: Count = 10,
        iterations: Count = 5,
        image_batch: Annotated[int, Field(ge=2)] = 256,
        noise: Count = 256,
        generator_lr: Positive = 3e-3,
        noise_lr: Positive = 1e-2,
        statistics: Weight = 10.0,
        one_hot: Weight = 0.4,
        adversarial: Weight = 1.1,
        momentum: Share = 0.9,
        warm_up: Annotated[int, Field(ge=0)] = 20,
        meta: Literal["maml", "reptile"] = "maml",
        flip: bool = True,
        temperature: Temperature = 20.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(images, rounds, temperature, **kwargs)
        self.iterations, self.image_batch, self.noise = iterations, image_batch, noise
        self.generator_lr, self.noise_lr, self.statistics = generator_lr, noise_lr, statistics
        self.one_hot, self.adversarial, self.momentum = one_hot, adversarial, momentum
        self.warm_up, self.meta, self.flip = warm_up, meta, flip

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        super().build(student, teacher, data)
        channels = sum(norm.num_features for norm in Statistics(self.net[0]).norms)
        weights = flat(self.generator.parameters())
        self.register_buffer("averages", torch.zeros(2, channels))
        self.register_buffer("first", torch.zeros_like(weights))
        self.register_buffer("second", torch.zeros_like(weights))
        self.register_buffer("batches", torch.tensor(0))

    def dream(self) -> None:
        self.generator.train()
        with Statistics(self.net[0], moments) as seen:
            if self.round == 0:
                for _ in range(self.warm_up):
                    self.inverted(min(self.image_batch, self.per_round), seen)
            for images in self.fresh.split(self.image_batch):
                images.copy_(self.inverted(len(images), seen))

    def inverted(self, n: int, seen: Statistics) -> Tensor:
        """`n` images, in 0..1; the generator has learned from them."""
        z = torch.randn(n, self.noise, generator=self.rng).to(self.images).requires_grad_()
        y = torch.randint(self.data.num_classes, (n,), generator=self.rng).to(z.device)
        fast = copy.deepcopy(self.generator)
        weights = list(fast.parameters())
        groups: list[dict[str, Any]] = [{"params": weights}, {"params": [z], "lr": self.noise_lr}]
        adam = torch.optim.Adam(groups, lr=self.generator_lr, betas=(0.5, 0.999))
        lowest, best = z.new_tensor(torch.inf), self.images[:n]
        learned = torch.zeros_like(self.first)
        for _ in range(self.iterations):
            x = fast(z)
            loss, met = self.image_loss(x, y, seen)
            gradients = torch.autograd.grad(loss, [*weights, z])
            for parameter, gradient in zip([*weights, z], gradients, strict=True):
                parameter.grad = gradient
            learned += flat(gradients[:-1])
            better = loss.detach() < lowest
            lowest, best = torch.where(better, loss.detach(), lowest), torch.where(better, x.detach(), best)
            adam.step()
        self.averages.copy_(met if not self.batches else met.lerp(self.averages, self.momentum))
        if self.meta == "reptile":  # Adam's steps are the same whatever it is multiplied by
            learned = flat(self.generator.parameters()) - flat(weights)
        self.learn(learned)
        return best

    def image_loss(self, x: Tensor, y: Tensor, seen: Statistics) -> tuple[Tensor, Tensor]:
        """Of images in 0..1; and their means and variances in all batch norms, (2, Σ C_l)."""
        shown = self.seen(x)
        t = self.teacher_out(shown, self.net[0], grad=True).logits
        layers = seen.pop()
        apart = momentum_loss(layers, self.averages if self.batches else None, self.momentum)
        loss = self.statistics * apart + self.one_hot * cross_entropy(t, y)
        if self.adversarial and self.batches + 1 >= self.warm_up:  # as the authors count
            loss = loss + self.adversarial * decision_adversarial_loss(self.student_out(shown).logits, t)
        return loss, torch.cat([layer[0].detach() for layer in layers], 1)

    @torch.no_grad()
    def learn(self, gradient: Tensor) -> None:
        """A step of Adam of the generator, whose moments outlive a kill."""
        self.batches += 1
        self.first.lerp_(gradient, 1 - 0.5)
        self.second.lerp_(gradient.square(), 1 - 0.999)
        mean = self.first / (1 - 0.5**self.batches)
        scale = (self.second / (1 - 0.999**self.batches)).sqrt() + 1e-8
        step = self.generator_lr * self.iterations * mean / scale
        weights = list(self.generator.parameters())
        for weight, part in zip(weights, step.split([weight.numel() for weight in weights]), strict=True):
            weight.sub_(part.view(weight.shape))
