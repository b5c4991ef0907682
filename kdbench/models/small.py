"""Small networks of published results on MNIST, as the repositories that print them build them."""

from __future__ import annotations

import math
from functools import partial
from typing import cast

from torch import Tensor, nn

from kdbench.models.base import Builder, Shape, StagedNet


def strided_cnn(widths: tuple[int, int], shape: Shape, num_classes: int) -> StagedNet:
    """The networks of Keras's example of knowledge distillation (keras-team/keras-io at 0412848,
    examples/vision/md/knowledge_distillation.md): 3x3 convolution of stride 2, leaky ReLU (.2), 2x2 max pooling of
    stride 1, 3x3 convolution of stride 2 with no activation, flatten, linear.

    Padding is TensorFlow's "same": what is odd of it goes below and to the right. All begin as Keras's layers do, with
    Glorot's uniform distribution and no bias. ``stem`` is what is pooled, ``embed`` the flattened ``stage1``.
    """
    a, b = widths
    height, width = (_half(size) for size in shape[1:])
    stem = nn.Sequential(
        _same(*shape[1:]), nn.Conv2d(shape[0], a, 3, stride=2), nn.LeakyReLU(0.2),
        nn.ConstantPad2d((0, 1, 0, 1), -math.inf), nn.MaxPool2d(2, stride=1),
    )  # fmt: skip
    stage = nn.Sequential(_same(height, width), nn.Conv2d(a, b, 3, stride=2))
    head = nn.Linear(b * _half(height) * _half(width), num_classes)
    net = StagedNet(stem, [[stage]], head, nn.Flatten(), rectified=False)
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(cast(Tensor, module.bias))
    return net


def _half(size: int) -> int:
    """What a stride of 2 leaves of `size` pixels."""
    return math.ceil(size / 2)


def _same(height: int, width: int) -> nn.ZeroPad2d:
    """What a 3x3 convolution of stride 2 is padded with."""
    top, left = (height % 2, width % 2)  # an even size lacks one pixel, an odd one two
    return nn.ZeroPad2d((left, 1, top, 1))


NETS: dict[str, Builder] = {
    "cnn-16-32": partial(strided_cnn, (16, 32)),
    "cnn-256-512": partial(strided_cnn, (256, 512)),
}
