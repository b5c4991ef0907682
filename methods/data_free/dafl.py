"""Data-free learning of student networks (Chen et al., ICCV 2019, arXiv:1904.01186)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import in_float32, kl
from kdbench.method import Method, Player
from kdbench.taps import Spec, Taps

Logarithm = Literal["log10", "ln"]


@in_float32
def one_hot_loss(logits: Tensor) -> Tensor:
    """CE(t, argmax t), mean over the batch: generated images should be classified with confidence (equation 3)."""
    return F.cross_entropy(logits, logits.detach().argmax(1))


@in_float32
def activation_loss(feature: Tensor) -> Tensor:
    """-mean |f_t| over all elements of the teacher's features (B, D): real images excite them (equation 4)."""
    return -feature.abs().mean()


@in_float32
def information_entropy_loss(logits: Tensor, logarithm: Logarithm = "log10") -> Tensor:
    """Σ_c p̄_c log p̄_c, p̄ = mean over the batch of softmax(t): all classes should be generated alike (equation 5).

    The authors' code takes log10, to which the published weights belong; ``ln`` is 2.3026 times larger.
    """
    p = logits.softmax(1).mean(0)
    positive = p.clamp(min=torch.finfo(p.dtype).tiny)  # p log p -> 0 where p underflows, with a finite gradient
    return (p * (positive.log10() if logarithm == "log10" else positive.log())).sum()


class Generator(nn.Module):
    """Noise (B, Z) to images: linear to 128 maps at a quarter of the size, then two nearest-neighbour upsamplings.

    The architecture of the authors' code, including its unusual batch-norm eps of .8 and the affine-free batch norm
    that normalises the output. Upsampling goes to explicit sizes, so that sides not divisible by 4 work too.
    """

    def __init__(self, noise: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        channels, *self.size = shape
        self.small = [max(side // 4, 1) for side in self.size]
        self.middle = [max(side // 2, 1) for side in self.size]
        self.linear = nn.Linear(noise, 128 * self.small[0] * self.small[1])
        self.norm = nn.BatchNorm2d(128)
        self.block1 = nn.Sequential(nn.Conv2d(128, 128, 3, padding=1), nn.BatchNorm2d(128, eps=0.8), nn.LeakyReLU(0.2))
        self.block2 = nn.Sequential(
            nn.Conv2d(128, 64, 3, padding=1),
            nn.BatchNorm2d(64, eps=0.8),
            nn.LeakyReLU(0.2),
            nn.Conv2d(64, channels, 3, padding=1),
            nn.Tanh(),
            nn.BatchNorm2d(channels, affine=False),
        )

    def forward(self, z: Tensor) -> Tensor:
        x = self.norm(self.linear(z).view(len(z), 128, *self.small))
        x = self.block1(F.interpolate(x, size=self.middle))
        return self.block2(F.interpolate(x, size=self.size))


class DAFL(Method):
    """A generator learns to please the teacher; the student learns from the teacher on what is generated.

    Generator:  oh · `one_hot_loss` + ie · `information_entropy_loss` + a · `activation_loss`
    Student:    KL( softmax(t) || softmax(s) ), T = 1, on the same images, detached

    No training image is seen: batches carry only their size, so the budget in images equals the other methods'.
    """

    leaf = "data-free/generator"
    paper = "chen2019data"
    title = "DAFL"
    needs = frozenset({"teacher", "no_data"})
    taps = Taps(teacher=("embed",))
    terms = ("one_hot", "entropy", "activation", "kd")
    survey: ClassVar = {
        "original_data": "no",
        "prior": "confidence, activation and class balance of the teacher",
        "generators": "1",
        "input": "noise",
        "discriminator": "the teacher, fixed",
        "multi_task": "no",
    }

    def __init__(
        self,
        noise: Annotated[int, Field(ge=1, le=100_000)] = 100,
        generator_lr: Annotated[float, Field(gt=0)] = 0.2,
        logarithm: Logarithm = "log10",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.noise, self.generator_lr, self.logarithm = noise, generator_lr, logarithm

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        if min(data.shape[1:]) < 4:
            raise DoesNotFit(
                f"DAFL's generator makes images of at least 4x4, not {data.shape}: choose another data set."
            )
        self.generator = Generator(self.noise, data.shape)

    def players(self) -> Sequence[Player]:
        adam = {"_target_": "torch.optim.Adam", "lr": self.generator_lr}
        return (
            Player("generator", list(self.generator.parameters()), optimizer=adam),
            Player("student", list(self.student.parameters())),
        )

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        z = torch.randn(len(batch), self.noise, generator=self.rng).to(self.device)
        images = self.generator(z)
        t = self.teacher_out(images, grad=True)
        yield (
            "generator",
            {
                "one_hot": one_hot_loss(t.logits),
                "entropy": information_entropy_loss(t.logits, self.logarithm),
                "activation": activation_loss(t.embed),
            },
        )
        s = self.student_out(images.detach())
        yield "student", {"kd": kl(s.logits, t.logits.detach())}
