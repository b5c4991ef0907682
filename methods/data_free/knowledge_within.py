"""The knowledge within: data-free model compression (Haroush et al., CVPR 2020, arXiv:1912.01274)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdbench.data.batch import DataSpec
from kdbench.losses import in_float32
from kdbench.settings import Count, Positive, Temperature
from kdbench.taps import Spec
from methods.data_free.deep_inversion import Statistics
from methods.data_free.pool import Pool


@in_float32
def gaussian_divergence(x: Tensor, mean: Tensor, var: Tensor, eps: float = 1e-5) -> Tensor:
    """KL( N(μ̂, σ̂²) || N(μ, σ²) ), averaged over the channels of a batch norm's input x (B, C, H, W).

    That is log σ/σ̂ - ½ (1 - (σ̂² + (μ̂ - μ)²) / σ²), with the batch norm's running statistics μ̂, σ̂² (C,), and those of
    this batch μ, σ², biased. Like batch norm itself it adds `eps` to variances, for a channel may be constant.
    """
    batch_var, batch_mean = torch.var_mean(x, (0, 2, 3), correction=0)
    batch_var, var = batch_var + eps, var + eps
    return ((batch_var / var).log() - 1 + (var + (mean - batch_mean).square()) / batch_var).mean() / 2


class KnowledgeWithin(Pool):
    """Images are made to have the statistics that the teacher's batch norms keep, and the student is distilled on them.

    x̂ = argmin Σ_l `gaussian_divergence`, from Gaussian noise, by Adam: the paper's BNS scheme, without labels.

    L = T² · KL( softmax(t / T) || softmax(s / T) ) on these images.

    Args:
        images, rounds, temperature: see `Pool`.
        iterations, image_lr, image_batch: of Adam, for each batch of images.
    """

    leaf = "data-free/metadata"
    paper = "haroush2019knowledge"
    title = "Knowledge within"
    needs = frozenset({"teacher", "no_data"})
    survey: ClassVar = {
        "original_data": "no",
        "prior": "statistics kept in batch norms",
        "generators": "none",
        "input": "noise",
        "discriminator": "none",
        "multi_task": "no",
    }

    def __init__(
        self,
        images: Count = 2560,
        iterations: Count = 1000,
        image_lr: Positive = 0.05,
        image_batch: Annotated[int, Field(ge=2)] = 256,
        temperature: Temperature = 4.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(images, 1, temperature, **kwargs)
        self.iterations, self.image_lr, self.image_batch = iterations, image_lr, image_batch

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        super().build(student, teacher, data)
        self.net = (Statistics.kept_by(teacher, self.title),)  # a tuple hides the teacher's weights from nn.Module

    def dream(self) -> None:
        with Statistics(self.net[0], gaussian_divergence) as seen:
            for images in self.fresh.split(self.image_batch):
                x = torch.randn(images.shape, generator=self.rng).to(images).requires_grad_()
                adam = torch.optim.Adam([x], lr=self.image_lr)
                for _ in range(self.iterations):
                    self.teacher_out(x, self.net[0], grad=True)
                    (x.grad,) = torch.autograd.grad(torch.stack(seen.pop()).sum(), [x])
                    adam.step()
                images.copy_(x.detach())
