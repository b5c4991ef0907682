"""LeNet-5 (LeCun et al. 1998) as in the MNIST experiment of DAFL (Chen et al., ICCV 2019, arXiv:1904.01186)."""

from __future__ import annotations

from functools import partial

from torch import nn

from kdbench.errors import UserError
from kdbench.models.base import Builder, Shape, StagedNet, Start, start


def lenet(widths: tuple[int, int, int, int], shape: Shape, num_classes: int, init: Start = "torch") -> StagedNet:
    """Three 5x5 convolutions with max pooling between them and two linear layers (DAFL's lenet.py); no batch norm.

    Images of 28x28 are padded with zeros to the 32x32 that the network needs (DAFL enlarges them). The feature that
    DAFL's activation loss reads is ``stage2``, (B, C, 1, 1); ``embed`` is the layer after it.

    Raises:
        UserError: the images are neither 28x28 nor 32x32.
    """
    if shape[1:] not in ((28, 28), (32, 32)):
        raise UserError(
            f"LeNet-5 takes images of 28x28 or 32x32, not {shape[1]}x{shape[2]}: take resnet8x0.25 instead."
        )
    a, b, c, d = widths
    stem = nn.Sequential(nn.ZeroPad2d((32 - shape[1]) // 2), nn.Conv2d(shape[0], a, 5), nn.ReLU())
    stages = [[nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(c_in, c_out, 5))] for c_in, c_out in ((a, b), (b, c))]
    neck = nn.Sequential(nn.Flatten(), nn.Linear(c, d), nn.ReLU())
    net = StagedNet(stem, stages, nn.Linear(d, num_classes), neck)
    start(net, init)
    return net


NETS: dict[str, Builder] = {
    "lenet5": partial(lenet, (6, 16, 120, 84)),
    "lenet5-half": partial(lenet, (3, 8, 60, 42)),
    "lenet5-half-maps": partial(lenet, (3, 8, 120, 84)),  # half of the maps alone: vcl-iisc/ZSKD's student
    # models/lenet.py and lenet_half.py of iRapha/replayed_distillation
    "lenet5-tenth": partial(lenet, (6, 16, 120, 84), init="tenth"),
    "lenet5-half-maps-tenth": partial(lenet, (3, 8, 120, 84), init="tenth"),
}
