"""The four-block network of few-shot learning (Vinyals et al., NeurIPS 2016, arXiv:1606.04080, section 4.1)."""

from __future__ import annotations

from torch import nn

from kdbench.errors import UserError
from kdbench.models.base import Builder, Shape, StagedNet, conv_bn_relu

WIDTH = 64


def conv4(shape: Shape, num_classes: int) -> StagedNet:
    """Four times 3x3 convolution with bias, batch norm, ReLU, 2x2 max pooling; then flattened, (B, 64) for 28x28.

    As in Snell et al., NeurIPS 2017 (github.com/jakesnell/prototypical-networks, protonets/models/few_shot.py), with
    PyTorch's default initialisation; behind it, a linear head for what is trained on all base classes at once. The
    first block is the stem, the other three are the stages, each with the pooling *in front of* it.

    Raises:
        UserError: the images are too small for four poolings.
    """
    if min(shape[1:]) < 16:
        raise UserError(
            f"conv4 takes images of at least 16x16, not {shape[1]}x{shape[2]}: enlarge them or take resnet8."
        )
    stem = nn.Sequential(*conv_bn_relu(shape[0], WIDTH, bias=True))
    stages = [[nn.Sequential(nn.MaxPool2d(2), *conv_bn_relu(WIDTH, WIDTH, bias=True)[:-1])] for _ in range(3)]
    neck = nn.Sequential(nn.MaxPool2d(2), nn.Flatten())
    return StagedNet(stem, stages, nn.Linear(WIDTH * (shape[1] // 16) * (shape[2] // 16), num_classes), neck)


NETS: dict[str, Builder] = {"conv4": conv4}
