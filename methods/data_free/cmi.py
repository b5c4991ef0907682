"""Contrastive model inversion (Fang et al., IJCAI 2021, arXiv:2105.08584)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.data.batch import DataSpec
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Player
from kdbench.settings import Count, Positive, Temperature, Weight
from kdbench.taps import Spec
from methods.data_free.deep_inversion import Statistics
from methods.data_free.generated_pool import GeneratedPool
from methods.data_free.views import zoomed_crop


class Head(nn.Module):
    """Features (..., D) to directions (..., `width`): linear, ReLU, linear, of length 1."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.layers(x), dim=-1)


@in_float32
def contrastive_loss(local: Tensor, whole: Tensor, fresh: int, temperature: float = 0.1) -> Tensor:
    """-log softmax_j( local_i · whole_j / τ )_i : which of the images is this a part of?

    The mean over the `fresh` first rows plus that over the others, which are of images made before, as in the authors'
    code; `whole` is a constant.

    Args:
        local, whole: directions of a part of each image and of the whole of it, (N, D).
    """
    logits = local @ whole.detach().T / temperature
    each = F.cross_entropy(logits, torch.arange(len(logits), device=logits.device), reduction="none")
    return sum((rows.mean() for rows in each.split([fresh, len(each) - fresh]) if len(rows)), start=each.new_zeros(()))


@in_float32
def decision_adversarial_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """-1/B · Σ KL( softmax(t) || softmax(s) ) over those of B images of whose class the two say the same.

    Of logits (B, K), with gradients to both: images on which the student is not sure yet, but not wrong.
    """
    apart = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True).sum(1)
    return -(apart * (student.argmax(1) == teacher.argmax(1))).mean()


@in_float32
def instance_means(x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
    """Of a batch norm's input (B, C, H, W), over places: (B, C)."""
    return x.mean((2, 3))


class CMI(GeneratedPool):
    """Images are inverted from the teacher, unlike one another and those before, and the student is distilled on them.

    x̂ = argmin CE(t(x), y) · oh + bn · Σ_l `statistics_loss` + adv · `decision_adversarial_loss` + cr ·
    `contrastive_loss`

    over a generator that begins anew for each batch, and its input. The features that are contrasted are the
    `instance_means` of all batch norms of the teacher, of a zoomed part of an image and of the whole of it, shifted by
    up to 4 pixels; those of images made before are kept. Of all iterations the images of the lowest loss are taken. The
    Adam of what projects features begins anew for each batch, too; the authors' goes on.

    L = T² · KL( softmax(t / T) || softmax(s / T) ) on all images so far, shifted like that.

    Args:
        images, rounds, temperature: see `Pool`.
        iterations, image_batch: of the inversion, for each batch of images.
        noise: size of the generator's input.
        generator_lr: of its Adam, its input's and that of the head.
        statistics, one_hot, adversarial, contrast: bn, oh, adv and cr.
        contrast_temperature: τ.
        negatives: how many images made before are contrasted with, at most.
        width: of the directions that features are projected to.
        flip: whether a mirrored image is of its class still.
    """

    leaf = "data-free/generator"
    paper = "fang2021contrastive"
    title = "CMI"
    extension = True
    needs = frozenset({"teacher", "no_data"})
    survey: ClassVar = {
        "original_data": "no",
        "prior": "statistics kept in batch norms, diversity by contrast",
        "generators": "1, for each batch anew",
        "input": "noise, learned",
        "discriminator": "none; student and teacher compete",
        "multi_task": "no",
    }
    features: Tensor

    def __init__(
        self,
        images: Count = 2560,
        rounds: Count = 10,
        iterations: Count = 200,
        image_batch: Annotated[int, Field(ge=2)] = 256,
        noise: Count = 256,
        generator_lr: Positive = 1e-3,
        statistics: Weight = 1.0,
        one_hot: Weight = 1.0,
        adversarial: Weight = 0.5,
        contrast: Weight = 0.8,
        contrast_temperature: Temperature = 0.2,
        negatives: Count = 4096,
        width: Count = 256,
        flip: bool = True,
        temperature: Temperature = 20.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(images, rounds, temperature, **kwargs)
        self.iterations, self.image_batch, self.noise = iterations, image_batch, noise
        self.generator_lr, self.statistics, self.one_hot = generator_lr, statistics, one_hot
        self.adversarial, self.contrast, self.contrast_temperature = adversarial, contrast, contrast_temperature
        self.negatives, self.width, self.flip = negatives, width, flip

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        super().build(student, teacher, data)
        channels = sum(norm.num_features for norm in Statistics(self.net[0]).norms)
        self.head = Head(channels, self.width)
        self.register_buffer("features", torch.zeros(len(self.images), 2, channels))

    def players(self) -> tuple[Player, ...]:
        return (Player("student", list(self.student.parameters())),)

    def dream(self) -> None:
        self.generator.train()
        made = self.round * self.per_round
        with Statistics(self.net[0]) as seen, Statistics(self.net[0], instance_means) as means:
            for images in self.fresh.split(self.image_batch):
                x, self.features[made : made + len(images)] = self.inverted(images, made, seen, means)
                images.copy_(x)
                made += len(images)

    def inverted(self, like: Tensor, made: int, seen: Statistics, means: Statistics) -> tuple[Tensor, Tensor]:
        """As many images, in 0..1, and their features: (B, 2, channels), of a part and of the whole."""
        self.generator.restart(self.rng)
        z = torch.randn(len(like), self.noise, generator=self.rng).to(like).requires_grad_()
        y = torch.randint(self.data.num_classes, (len(like),), generator=self.rng).to(like.device)
        head = list(self.head.parameters())
        trained = [*self.generator.parameters(), z]
        adams = (
            torch.optim.Adam(trained, lr=self.generator_lr, betas=(0.5, 0.999)),
            torch.optim.Adam(head, lr=self.generator_lr),
        )
        lowest, best, kept = torch.full_like(z[0, 0], torch.inf), like, self.features[: len(like)]
        for _ in range(self.iterations):
            x = self.generator(z)
            loss, features = self.image_loss(x, y, made, seen, means)
            for parameter, gradient in zip(
                [*trained, *head], torch.autograd.grad(loss, [*trained, *head]), strict=True
            ):
                parameter.grad = gradient
            better = loss.detach() < lowest
            lowest = torch.where(better, loss.detach(), lowest)
            best, kept = torch.where(better, x.detach(), best), torch.where(better, features.detach(), kept)
            for adam in adams:
                adam.step()
        return best, kept

    def image_loss(self, x: Tensor, y: Tensor, made: int, seen: Statistics, means: Statistics) -> tuple[Tensor, Tensor]:
        """Of images in 0..1 that `made` others came before; and their features."""
        whole = self.seen(x)
        t = self.teacher_out(whole, self.net[0], grad=True).logits
        loss = self.statistics * torch.stack(seen.pop()).sum() + self.one_hot * cross_entropy(t, y)
        if self.adversarial:
            loss = loss + self.adversarial * decision_adversarial_loss(self.student_out(whole).logits, t)
        of_whole = torch.cat(means.pop(), 1)
        self.teacher_out(self.pixels(zoomed_crop(x, 0.25, self.flip, self.rng)), self.net[0], grad=True)
        seen.pop()
        features = torch.stack([torch.cat(means.pop(), 1), of_whole], 1)
        cached = self.features[torch.randperm(made, generator=self.rng)[: self.negatives].to(x.device)]
        local, of_whole = self.head(torch.cat([features, cached])).unbind(1)
        return loss + self.contrast * contrastive_loss(local, of_whole, len(x), self.contrast_temperature), features
