"""Zero-shot knowledge distillation (Nayak et al., ICML 2019, arXiv:1905.08114)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import cross_entropy, in_float32, kl
from kdbench.method import Method, Stage
from kdbench.settings import Count, Positive, Temperature
from kdbench.taps import Out, Spec


@in_float32
def class_similarity(weight: Tensor) -> Tensor:
    """Cosines between the rows w_i of the last layer's weights (K, D), without its biases: (K, K) (equation 2)."""
    rows = F.normalize(weight, dim=1)
    return rows @ rows.T


def min_max(x: Tensor) -> Tensor:
    """Every row of `x` (N, K) scaled to the range from 0 to 1."""
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    return (x - low) / (high - low)


@in_float32
def concentration(similarity: Tensor, beta: float) -> Tensor:
    """β · min-max(similarity) + 1e-4, (K, K): row c holds the parameters of the Dirichlet distribution for class c.

    The summand of the authors' code keeps them positive. That code multiplies by β *before* the rows are scaled, where
    it has no effect; here it comes after, as in the paper. Their scaling of the whole matrix before that of its rows
    has no effect either.
    """
    return beta * min_max(similarity) + 1e-4


def without_similarity(concentration: Tensor) -> Tensor:
    """Uniform rows of the same sums: the control that knows how peaked soft labels are, and not what is alike."""
    return concentration.mean(1, keepdim=True).expand_as(concentration)


@in_float32
def impression_loss(logits: Tensor, softmax: Tensor, temperature: float = 20.0) -> Tensor:
    """CE( softmax, softmax(t / T) ) of the teacher's logits t (B, K) on the impressions (equation 3).

    Summed over classes, averaged over the batch; `softmax` are the sampled probabilities (B, K).
    """
    return cross_entropy(logits / temperature, softmax)


class ZSKD(Method):
    """Inputs are synthesised from the teacher alone, then the student is distilled on them.

    1. Class similarities are read from the teacher's last layer; for every class and every β soft labels are drawn from
       a Dirichlet distribution with that `concentration`.
    2. Images start as noise and learn to make the teacher say so: min `impression_loss`, by Adam.
    3. L = T² · KL( softmax(t / T) || softmax(s / T) ) on these images, drawn at random.

    As in the authors' code, images are rescaled to the range 0..1 of pixels after each step, all of a batch together.
    No training image is seen: batches carry only their size, so the budget in images equals the other methods'.

    Args:
        impressions: images that are synthesised, in equal numbers for each class and β.
        iterations: steps of Adam for each batch of them.
        image_lr: its learning rate.
        image_batch: images that are synthesised at once.
        betas: scales of the concentration.
        temperature: T of both.
        prior: ``uniform`` for the control that draws soft labels `without_similarity`.
    """

    leaf = "data-free/class-similarity"
    paper = "nayak2019zero"
    title = "ZSKD"
    needs = frozenset({"teacher", "no_data"})
    terms = ("kd",)
    survey: ClassVar = {
        "original_data": "no",
        "prior": "class similarities of the teacher's last layer",
        "generators": "none",
        "input": "noise",
        "discriminator": "none",
        "multi_task": "no",
    }
    added: ClassVar = {"prior": "similarity"}
    images: Tensor

    def __init__(
        self,
        impressions: Count = 40_000,
        iterations: Count = 1500,
        image_lr: Positive = 0.001,
        image_batch: Annotated[int, Field(ge=2)] = 100,
        betas: Sequence[Positive] = (1.0, 0.1),
        temperature: Temperature = 20.0,
        prior: Literal["similarity", "uniform"] = "similarity",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.prior = prior
        self.impressions, self.iterations, self.image_lr = impressions, iterations, image_lr
        self.image_batch, self.betas, self.temperature = image_batch, tuple(betas), temperature

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        self.head = (last_layer(teacher),)  # a tuple hides the teacher's weights from nn.Module
        self.pixels = Pixels(data)
        self.register_buffer("images", torch.zeros(self.impressions, *data.shape))

    def stages(self) -> Sequence[Stage]:
        return (Stage("synthesise", 0, self.synthesise), Stage("distil"))

    def synthesise(self) -> None:
        draw = np.random.default_rng(int(torch.randint(2**62, (1,), generator=self.rng)))
        alphas = [concentration(class_similarity(self.head[0].weight.detach()), beta).cpu() for beta in self.betas]
        if self.prior == "uniform":
            alphas = [without_similarity(alpha) for alpha in alphas]
        rows = torch.cat(alphas).double().numpy()
        drawn = np.stack([draw.dirichlet(rows[i % len(rows)]) for i in range(self.impressions)])
        labels = torch.from_numpy(drawn).to(self.images)
        for images, softmax in zip(self.images.split(self.image_batch), labels.split(self.image_batch), strict=True):
            x = torch.rand(images.shape, generator=self.rng).to(images).requires_grad_()
            adam = torch.optim.Adam([x], lr=self.image_lr)
            for _ in range(self.iterations):
                t = self.teacher_out(self.pixels(x), grad=True)
                (x.grad,) = torch.autograd.grad(impression_loss(t.logits, softmax, self.temperature), [x])
                adam.step()
                with torch.no_grad():
                    x.copy_((x - x.min()) / (x.max() - x.min()))
            images.copy_(self.pixels(x.detach()))

    def batch(self, batch: Batch) -> Batch:
        chosen = torch.randint(self.impressions, (len(batch),), generator=self.rng).to(self.images.device)
        return replace(batch, x=self.images[chosen])

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {"kd": kl(s.logits, t.logits, self.temperature)}


def last_layer(teacher: Spec) -> nn.Linear:
    """The linear layer that gives the teacher's logits.

    Raises:
        DoesNotFit: there is none.
    """
    assert teacher.net is not None
    linear = [module for module in teacher.net.modules() if isinstance(module, nn.Linear)]
    if not linear or linear[-1].out_features != teacher.channels("logits"):
        raise DoesNotFit(f"ZSKD reads class similarities from a last linear layer, and {teacher.name} has none.")
    return linear[-1]


class Pixels(nn.Module):
    """From pixels in 0..1 to what networks see of them: normalised as the data are, where that is known."""

    mean: Tensor
    std: Tensor

    def __init__(self, data: DataSpec) -> None:
        super().__init__()
        channels = data.shape[0]
        mean, std = data.mean or (0.0,) * channels, data.std or (1.0,) * channels
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std
