"""Generators of adversarial and contrastive inversion: relatives of DAFL's, as their authors' code has them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from methods.data_free.dafl import Generator


class PlainGenerator(Generator):
    """DAFL's, with the usual batch-norm eps of 1e-5: GeneratorA of VainF/Data-Free-Adversarial-Distillation."""

    def __init__(self, noise: int, shape: tuple[int, ...]) -> None:
        super().__init__(noise, shape)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-5


class UnboundedGenerator(PlainGenerator):
    """Without a tanh, and with a learned range of the output: that of polo5/ZeroShotKnowledgeTransfer."""

    def __init__(self, noise: int, shape: tuple[int, ...]) -> None:
        super().__init__(noise, shape)
        self.block2 = nn.Sequential(*list(self.block2)[:4], nn.BatchNorm2d(shape[0]))


class PixelGenerator(PlainGenerator):
    """Pixels in 0..1, by a sigmoid: Generator of zju-vipa/DataFree."""

    def __init__(self, noise: int, shape: tuple[int, ...]) -> None:
        super().__init__(noise, shape)
        self.block2 = nn.Sequential(*list(self.block2)[:4], nn.Sigmoid())

    @torch.no_grad()
    def restart(self, rng: torch.Generator) -> None:
        """Begin anew: weights from N(0, .02²), those of batch norms from N(1, .02²), biases 0."""
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d, nn.BatchNorm2d)):
                module.weight.copy_(0.02 * torch.randn(module.weight.shape, generator=rng))
                if isinstance(module, nn.BatchNorm2d):
                    module.weight.add_(1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def settled(generator: nn.Module, *inputs: Tensor) -> Tensor:
    """What a generator in training makes by its running statistics, without gradient to its weights."""
    generator.eval()
    images: Tensor = generator(*inputs).detach()
    generator.train()
    return images
