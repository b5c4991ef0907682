"""What stands between a student's features and a teacher's: convolutions and norms, and the classifier behind."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.errors import DoesNotFit
from kdbench.taps import Spec


class _Norm(nn.modules.batchnorm._BatchNorm):
    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.numel() == x.shape[1]:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


class Norm1d(_Norm, nn.BatchNorm1d):
    """Batch norm of (B, C); of one single value per channel by the running statistics, as in eval mode."""


class Norm2d(_Norm, nn.BatchNorm2d):
    """The same of maps (B, C, H, W)."""


def conv_norm(c_in: int, c_out: int, kernel: int = 1) -> list[nn.Module]:
    """A convolution without bias that keeps the size, and a batch norm."""
    return [nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, bias=False), Norm2d(c_out)]


def conv_norm_relu(c_in: int, c_out: int, kernel: int = 1) -> list[nn.Module]:
    return [*conv_norm(c_in, c_out, kernel), nn.ReLU()]


def averaged(features: Tensor) -> Tensor:
    """Maps (B, C, H, W) averaged over their positions, (B, C); pooled features (B, C) as they are."""
    return features.flatten(2).mean(2) if features.dim() > 2 else features


@torch.no_grad()
def classifier(net: Spec, shape: tuple[int, ...], tap: str) -> nn.Linear:
    """The linear layer that makes a network's logits of its tap, `averaged`: a module of the network itself.

    Whether there is one is seen on two random inputs of `shape`, so that networks of any source may be asked.

    Raises:
        DoesNotFit: there is none.
    """
    assert net.net is not None
    training = net.net.training
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(next(net.net.parameters()))
    taps: dict[str, Tensor] = net.net.eval().tap(x, (tap,))  # type: ignore[operator]
    net.net.train(training)
    features, logits = averaged(taps[tap]), taps["logits"]
    for layer in net.net.modules():
        if isinstance(layer, nn.Linear) and layer.in_features == features.shape[1]:
            made = layer(features)
            if made.shape == logits.shape and (made - logits).abs().max() <= 1e-4 * logits.abs().max():
                return layer
    raise DoesNotFit(
        f"{net.name} does not make its logits of '{tap}' by averaging and one linear layer: choose another pair."
    )
