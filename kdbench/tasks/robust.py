"""Classification under attack."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdbench.draws import random_bits, uniform
from kdbench.errors import UserError
from kdbench.losses import cross_entropy
from kdbench.measures import Measure
from kdbench.tasks.base import Meter, Scores
from kdbench.tasks.classification import Accuracy, Classification

if TYPE_CHECKING:
    from kdbench.data.batch import Batch, DataSpec

SEED = 0
"""Of the attack's random start, which is the same for every network."""


def ascend(
    net: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, *, step: Tensor, steps: int, low: Tensor, high: Tensor
) -> Tensor:
    """Signed gradient ascent on the cross entropy within a box: x <- clip( x + step · sign of the gradient ).

    Args:
        net: logits (B, K) of images.
        x: where it starts, (B, C, H, W).
        y: class indices, (B,).
        step, low, high: in the images' units, broadcast to them.

    Returns:
        Images like `x`, without gradient.
    """
    for _ in range(steps):
        x = x.detach().requires_grad_()
        loss = cross_entropy(net(x), y, reduction="sum")
        (slope,) = torch.autograd.grad(loss, x)
        x = (x.detach() + step * slope.sign()).clamp(low, high)
    return x


class PGD(nn.Module):
    """Projected gradient descent in the maximum norm (Madry et al., ICLR 2018, arXiv:1706.06083).

    From a random point of the ball around each image, steps along the sign of the gradient of the cross entropy, each
    followed by a projection onto the ball and onto the range of pixels. The start is a function of the sample's index.

    Args:
        eps, step: radius and step in pixel values, of 255.
        steps: how many.
        mean, std: with which images were normalised, per channel, on the scale 0..1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, eps: float, step: float, steps: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.eps, self.step, self.steps = eps, step, steps
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, net: nn.Module, batch: Batch) -> Tensor:
        """The attacked images, normalised as the batch's, (B, C, H, W); also where gradients are switched off.

        The network keeps its mode, and its parameters get no gradient.
        """
        with torch.inference_mode(False), torch.enable_grad():
            x, y, index = (part.clone() for part in (batch.x, batch.y, batch.index))  # usable for gradients
            low, high = -self.mean / self.std, (1 - self.mean) / self.std
            radius, step = self.eps / 255 / self.std, self.step / 255 / self.std
            low, high = torch.maximum(x - radius, low), torch.minimum(x + radius, high)
            pixel = index.view(-1, 1, 1, 1) * x[0].numel() + torch.arange(x[0].numel(), device=x.device).view_as(x[0])
            start = x + radius * (2 * uniform(random_bits(SEED, 0, 0, pixel)) - 1)
            return ascend(net, start.clamp(low, high), y, step=step, steps=self.steps, low=low, high=high)


class Attacked(Meter):
    """``robust``: accuracy under attack, in percent; and all that `Accuracy` measures on clean images.

    An example's score is whether it is right under attack.
    """

    def __init__(self, attack: PGD, num_classes: int) -> None:
        super().__init__()
        self.attack, self.clean, self.right = attack, Accuracy(num_classes), Scores()

    def update(self, net: nn.Module, batch: Batch) -> None:
        self.clean.update(net, batch)
        self.right.update(net(self.attack(net, batch)).argmax(1) == batch.y)

    def compute(self) -> dict[str, Tensor]:
        return {"robust": 100 * self.right.rows().float().mean(), **self.clean.compute()}

    def examples(self) -> Tensor:
        return self.right.rows()


@dataclass(frozen=True)
class Robust(Classification):
    """`Classification` that is judged under attack, see `PGD`.

    Attributes:
        eps, step, steps: 8, 2 and 20 are Madry et al.'s strongest evaluation on CIFAR-10 with random start, and that of
            ARD (Goldblum et al., AAAI 2020, arXiv:1905.09747).
    """

    primary = Measure("robust")

    eps: float = 8.0
    steps: int = 20
    step: float = 2.0

    def meter(self, data: DataSpec) -> Meter:
        """
        Raises:
            UserError: the data do not say how their pixels were normalised.
        """
        if not data.mean or not data.std:
            raise UserError(f"{data.name} has no mean and std, so an attack has no size in pixels: add them.")
        return Attacked(PGD(self.eps, self.step, self.steps, data.mean, data.std), data.num_classes)
