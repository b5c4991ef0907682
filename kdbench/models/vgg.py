"""VGG with batch norm for small images (Simonyan & Zisserman, ICLR 2015, arXiv:1409.1556).

Five groups of 3x3 convolutions and one linear layer, as in RepDistiller (github.com/HobbitLong/RepDistiller,
models/vgg.py): the first group is the stem, the other four are the stages.
"""

from __future__ import annotations

from functools import partial

from torch import nn

from kdbench.models.base import Builder, Shape, StagedNet, conv_bn_relu, he_init, small_head_init

WIDTHS = (64, 128, 256, 512, 512)
CONVS = {8: (1, 1, 1, 1, 1), 11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def vgg(depth: int, multiplier: float, shape: Shape, num_classes: int) -> StagedNet:
    """VGG; `depth` counts the three linear layers of the original, of which one is left here.

    Every width is multiplied by `multiplier` and truncated: a pruned VGG starts out with these shapes.
    Max pooling halves the image before stages 1, 2 and 3, and before stage 4 too if it is at least 64 pixels high.
    """
    groups: list[list[nn.Module]] = []
    c_in = shape[0]
    for whole, n in zip(WIDTHS, CONVS[depth], strict=True):
        width = int(whole * multiplier)
        layers: list[nn.Module] = []
        for _ in range(n):
            layers += conv_bn_relu(c_in, width, bias=True)
            c_in = width
        groups.append(layers)
    pools: list[nn.Module] = [nn.MaxPool2d(2) for _ in range(4)]
    if shape[1] < 64:
        pools[3] = nn.Identity()
    stem, *rest = groups
    # A stage is one block that ends before its last ReLU.
    stages = [[nn.Sequential(pool, *layers[:-1])] for pool, layers in zip(pools, rest, strict=True)]
    net = StagedNet(nn.Sequential(*stem), stages, nn.Linear(c_in, num_classes))
    he_init(net)
    small_head_init(net.head)
    return net


NETS: dict[str, Builder] = {
    **{f"vgg{depth}": partial(vgg, depth, 1.0) for depth in CONVS},
    **{f"vgg{depth}x{part}": partial(vgg, depth, part) for depth, part in ((8, 0.25), (8, 0.5), (16, 0.5))},
}
