"""KegNet: knowledge extraction with no observable data (Yoo et al., NeurIPS 2019).

https://proceedings.neurips.cc/paper/2019/hash/596f713f9a7376fe90a62abaaedecc2d-Abstract.html.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import in_float32, kl
from kdbench.method import Method, Player, Stage
from kdbench.settings import Count, Positive
from kdbench.taps import Spec
from methods.data_free.conditional import ConditionalGenerator, noise_and_labels
from methods.data_free.generators import settled


@in_float32
def classification_loss(logits: Tensor, label: Tensor) -> Tensor:
    """KL( y || softmax(t) ) for label distributions y (B, K), summed over classes, averaged over the batch."""
    return F.kl_div(F.log_softmax(logits, dim=1), label, reduction="batchmean")


@in_float32
def decoder_loss(decoded: Tensor, noise: Tensor) -> Tensor:
    """Mean (D(x̂) - z)² over all elements (B, Z): the noise can be told from the image."""
    return (decoded - noise).square().mean()


@in_float32
def diversity_loss(noise: Tensor, images: Tensor) -> Tensor:
    """exp( -mean_ij d(z_i, z_j) · d(x̂_i, x̂_j) ), over all pairs of a batch, also i = j.

    The distance of noise (B, Z) is the mean of squared differences, that of images (B, ...) the mean of absolute ones.
    """
    apart = (noise.unsqueeze(1) - noise).square().mean(2)
    flat = images.flatten(1)
    return (-(apart * torch.cdist(flat, flat, p=1) / flat.shape[1]).mean()).exp()


class ImageGenerator(ConditionalGenerator):
    """The architecture of the authors' code: two linear layers in front.

    Each image is brought to mean 0 and variance 1 in each channel.
    """

    def __init__(self, noise: int, classes: int, shape: tuple[int, ...]) -> None:
        linear = nn.Sequential(
            nn.Linear(noise + classes, 256), nn.BatchNorm1d(256), nn.ReLU(),
            nn.Linear(256, 128), nn.BatchNorm1d(128), nn.ReLU(),
        )  # fmt: skip
        super().__init__(linear, (128, 64, 16, 4), shape)

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        x = super().forward(z, label)
        std, mean = torch.std_mean(x, (2, 3), keepdim=True)
        return (x - mean) / std.clamp(min=1e-6)


class Decoder(nn.Sequential):
    """Images to noise: `layers` hidden layers of 120 units behind a first one, each with an ELU and a batch norm."""

    def __init__(self, features: int, noise: int, layers: int) -> None:
        widths = [features, *[120] * (layers + 1)]
        hidden = [(nn.Linear(a, 120), nn.ELU(), nn.BatchNorm1d(120)) for a in widths[:-1]]
        super().__init__(nn.Flatten(), *(part for layer in hidden for part in layer), nn.Linear(120, noise))


class KegNet(Method):
    """Generators learn to make what the teacher takes for a label, then the student learns from the teacher on that.

    Generator:  `classification_loss` + α · `decoder_loss` + β · `diversity_loss`
    Student:    KL( softmax(t) || softmax(s) )

    Each of several generators has a decoder of its own; all see new noise z and new labels y, one-hot, for each batch.
    Then they are frozen, and each makes its part of every batch of the student's. No training image is seen: batches
    carry only their size.

    Args:
        noise: Z.
        generators: how many there are.
        decoder_layers: see `Decoder`.
        generator_lr: of the Adam of each generator and its decoder.
        share: of the epochs, which generators are trained for.
    """

    leaf = "data-free/generator"
    paper = "yoo2019knowledge"
    title = "KegNet"
    needs = frozenset({"teacher", "no_data"})
    terms = ("classification", "decoder", "diversity", "kd")
    survey: ClassVar = {
        "original_data": "no",
        "prior": "labels that the teacher gives, diversity",
        "generators": "several, 5",
        "input": "noise and labels",
        "discriminator": "the teacher, fixed, and a decoder",
        "multi_task": "no",
    }
    earlier: ClassVar = frozenset({"c05fe7d2e8abc9ac9f01ba15b99630e5db95a99fd21b887b0d41767aa2e47a00"})

    def __init__(
        self,
        noise: Count = 10,
        generators: Count = 5,
        decoder_layers: Count = 3,
        generator_lr: Positive = 0.01,
        share: Annotated[float, Field(gt=0, lt=1)] = 2 / 7,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.noise, self.generators, self.decoder_layers = noise, generators, decoder_layers
        self.generator_lr, self.share = generator_lr, share

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        if min(data.shape[1:]) < 2:
            raise DoesNotFit(f"KegNet makes images of at least 2x2, not {data.shape}: choose another data set.")
        features = torch.Size(data.shape).numel()
        count = range(self.generators)
        self.makers = nn.ModuleList(ImageGenerator(self.noise, data.num_classes, data.shape) for _ in count)
        self.decoders = nn.ModuleList(Decoder(features, self.noise, self.decoder_layers) for _ in count)

    def stages(self) -> Sequence[Stage]:
        return (Stage("generate", self.share), Stage("distil", 1 - self.share))

    def players(self) -> Sequence[Player]:
        if self.stage == "distil":
            return (Player("student", list(self.student.parameters())),)
        adam = {"_target_": "torch.optim.Adam", "lr": self.generator_lr}
        pairs = zip(self.makers, self.decoders, strict=True)
        return [Player(f"generator{k}", [*g.parameters(), *d.parameters()], adam) for k, (g, d) in enumerate(pairs)]

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        if self.stage == "distil":
            images = self.made(len(batch))
            yield "student", {"kd": kl(self.student_out(images).logits, self.teacher_out(images).logits)}
            return
        for k, (maker, decoder) in enumerate(zip(self.makers, self.decoders, strict=True)):
            z, y = self.draw(max(len(batch), 2))  # their batch norms have nothing to do with a single one
            images = maker(z, y)
            yield (
                f"generator{k}",
                {
                    "classification": classification_loss(self.teacher_out(images, grad=True).logits, y),
                    "decoder": decoder_loss(decoder(images), z),
                    "diversity": diversity_loss(z, images),
                },
            )

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        """Noise (n, Z) and one-hot labels (n, K)."""
        z, y = noise_and_labels(n, self.noise, self.data.num_classes, self.rng)
        return z.to(self.device), y.to(self.device)

    def made(self, n: int) -> Tensor:
        """Images of all generators, as many of each."""
        z, y = self.draw(n)
        parts = zip(self.makers, z.tensor_split(self.generators), y.tensor_split(self.generators), strict=True)
        return torch.cat([settled(maker, noise, label) for maker, noise, label in parts if len(noise)])
