"""Teacher-student compression with generative adversarial networks (Liu, Fusi, Mackey, 2018, arXiv:1812.02271)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import cross_entropy
from kdbench.method import Method, Player, Stage
from kdbench.settings import Count, Positive
from kdbench.taps import Spec
from methods.data_free.conditional import ConditionalGenerator, noise_and_labels
from methods.data_free.generators import settled
from methods.data_free.zskd import Pixels
from methods.learning.anc import taken_for
from methods.logits.logits_mse import logits_mse_loss


def begun(net: nn.Module) -> None:
    """Weights of convolutions from N(0, .02²), those of batch norms from N(1, .02²), as DCGAN has them."""
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d)):
            nn.init.normal_(module.weight, float(isinstance(module, nn.BatchNorm2d)), 0.02)


class Generator(ConditionalGenerator):
    """The architecture of clvrai/ACGAN-PyTorch for CIFAR-10, with pixels in 0..1."""

    def __init__(self, noise: int, classes: int, shape: tuple[int, ...]) -> None:
        super().__init__(nn.Linear(noise + classes, 384), (384, 192, 96, 48), shape)
        begun(self)

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        return (super().forward(z, label) + 1) / 2


class Discriminator(nn.Module):
    """Six convolutions of 16 to 512 maps; of images it says whether they are real, (B,), and their class, (B, K)."""

    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        channels, *size = shape
        layers: list[nn.Module] = []
        for k, (before, maps) in enumerate(pairwise((channels, 16, 32, 64, 128, 256, 512))):
            norm = [nn.BatchNorm2d(maps)] if k else []
            conv = nn.Conv2d(before, maps, 3, stride=2 - k % 2, padding=1, bias=False)
            layers += [conv, *norm, nn.LeakyReLU(0.2), nn.Dropout(0.5)]
        features = 512 * torch.Size(-(-side // 8) for side in size).numel()
        self.trunk = nn.Sequential(*layers, nn.Flatten())
        self.real, self.label = nn.Linear(features, 1), nn.Linear(features, classes)
        begun(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        alone = self.training and len(x) == 1  # a batch norm of 1x1 maps has nothing to do with a single one
        features = self.trunk(x.expand(2, -1, -1, -1) if alone else x)[: len(x)]
        return self.real(features).squeeze(1), self.label(features)


class GANTSC(Method):
    """The student learns the teacher's logits on training images and, more often, on those of a GAN of the same.

    First an auxiliary classifier GAN (Odena, Olah, Shlens, ICML 2017, arXiv:1610.09585) learns the images x of class y,
    x̂ = G(z, c) for noise z and a class c that is drawn:

    Discriminator:  L = -log D(real | x) - log D(fake | x̂) - log D(y | x) - log D(c | x̂)
    Generator:      L = -log D(real | x̂) - log D(c | x̂)

    Then for each batch of the student, of x̂ with probability p_fake or else of x:

    Student:        L = ½ ‖s - t‖²

    summed over classes, averaged over the batch, and no labels. The paper has GANs that others had trained; here the
    GAN has a share of the epochs, so that the budget equals the other methods'.

    Args:
        p_fake: how often a batch is generated.
        noise: size of z.
        gan_lr: learning rate of the Adam of generator and discriminator.
        share: of the epochs, which the GAN is trained for.
    """

    leaf = "learning/adversarial"
    paper = "liu2018teacher"
    title = "GAN-TSC"
    terms = ("discriminator", "generator", "logits")
    survey: ClassVar = {
        "gan": "AC-GAN",
        "purpose": "more images to distil on",
        "discriminator_input": "images",
        "generators": "1",
        "discriminators": "1",
        "online": "no",
    }
    earlier: ClassVar = frozenset({"e24fbbfd819b6093f4ba941eb9aedd83d8dff82f862cbb00fa9a82eaa8bcb1e4"})

    def __init__(
        self,
        p_fake: Annotated[float, Field(gt=0, le=1)] = 0.8,
        noise: Count = 100,
        gan_lr: Positive = 2e-4,
        share: Annotated[float, Field(gt=0, lt=1)] = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.p_fake, self.noise, self.gan_lr, self.share = p_fake, noise, gan_lr, share

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        if data.shape_for_teacher is not None:
            raise DoesNotFit(
                f"{self.title} shows the teacher images like the student's, and teachers see another modality here: "
                "choose a scenario that shows both the same."
            )
        self.generator = Generator(self.noise, data.num_classes, data.shape)
        self.discriminator = Discriminator(data.shape, data.num_classes)
        self.pixels = Pixels(data)

    def stages(self) -> Sequence[Stage]:
        return (Stage("generate", self.share), Stage("distil", 1 - self.share))

    def players(self) -> Sequence[Player]:
        if self.stage == "distil":
            return (Player("student", list(self.student.parameters())),)
        adam = {"_target_": "torch.optim.Adam", "lr": self.gan_lr, "betas": (0.5, 0.999)}
        return (
            Player("discriminator", list(self.discriminator.parameters()), adam),
            Player("generator", list(self.generator.parameters()), adam),
        )

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        if self.stage == "distil":
            generated = torch.rand((), generator=self.rng) < self.p_fake
            x = self.pixels(settled(self.generator, *self.draw(len(batch)))) if generated else batch.x
            yield "student", {"logits": logits_mse_loss(self.student_out(x).logits, self.teacher_out(x).logits)}
            return
        z, c = self.draw(max(len(batch), 2))  # its batch norms have nothing to do with a single one
        images = self.pixels(self.generator(z, c))
        (real, label), (fake, fake_label) = self.discriminator(batch.x), self.discriminator(images.detach())
        told_apart = taken_for(teacher=True, scores=real) + taken_for(teacher=False, scores=fake)
        classified = cross_entropy(label, batch.y) + cross_entropy(fake_label, c)
        yield "discriminator", {"discriminator": told_apart + classified}
        fake, fake_label = self.discriminator(images)
        yield "generator", {"generator": taken_for(teacher=True, scores=fake) + cross_entropy(fake_label, c)}

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        """Noise (n, Z) and one-hot labels (n, K)."""
        z, c = noise_and_labels(n, self.noise, self.data.num_classes, self.rng)
        return z.to(self.device), c.to(self.device)
