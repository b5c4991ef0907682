"""MobileNetV1 (Howard et al., arXiv:1704.04861), and MobileNetV2 for small images (Sandler et al., CVPR 2018,
arXiv:1801.04381)."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from kdbench.models.base import Builder, Shape, StagedNet, conv_bn, conv_bn_relu, global_pool, he_init, small_head_init

# Per stage of MobileNetV1: (width, stride) of each block, in the grouping of megvii-research/mdistiller's features.
SEPARABLE = (
    ((64, 1), (128, 2), (128, 1)),
    ((256, 2), (256, 1)),
    ((512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1)),
    ((1024, 2), (1024, 1)),
)

# Per stage: (expansion, width, blocks, stride of the first block), in the grouping of RepDistiller's features f1..f4.
STAGES = (
    ((1, 16, 1, 1), (6, 24, 2, 1)),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)


def mobilenetv1(shape: Shape, num_classes: int) -> StagedNet:
    """MobileNetV1 as on ImageNet in megvii-research/mdistiller (mdistiller/models/imagenet/mobilenetv1.py at fae6658)
    and clovaai/overhaul-distillation (ImageNet/models/MobileNet.py), which are the same.

    A strided 3x3 convolution, 13 depthwise separable ones, each of them with batch norm and ReLU, and mean pooling. It
    halves images five times. Weights start as PyTorch has them, as there.
    """
    stages: list[list[nn.Module]] = []
    c_in = 32
    for blocks in SEPARABLE:
        stages.append([])
        for c_out, stride in blocks:
            depthwise = conv_bn_relu(c_in, c_in, 3, stride, groups=c_in)
            stages[-1].append(nn.Sequential(*depthwise, *conv_bn(c_in, c_out, 1)))
            c_in = c_out
    return StagedNet(nn.Sequential(*conv_bn_relu(shape[0], 32, stride=2)), stages, nn.Linear(c_in, num_classes))


class InvertedResidual(nn.Module):
    """Expand, depthwise 3x3, project without activation; the input is added where the shape allows."""

    def __init__(self, c_in: int, c_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = expansion * c_in
        self.branch = nn.Sequential(
            *conv_bn_relu(c_in, wide, 1), *conv_bn_relu(wide, wide, 3, stride, groups=wide), *conv_bn(wide, c_out, 1)
        )
        self.residual = stride == 1 and c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.branch(x)
        return x + out if self.residual else out


def mobilenetv2(width: float, shape: Shape, num_classes: int) -> StagedNet:
    """MobileNetV2 as in RepDistiller (github.com/HobbitLong/RepDistiller, models/mobilenetv2.py).

    Widths are truncated (``int(c * width)``), ReLU stands for ReLU6, the last convolution keeps 1280 channels, and the
    stem has **stride 2**: HSAKD's network of the same name has stride 1 and is nine points better for it on CIFAR-100.

    Taps: ``stage_i`` is the output of its last block. Those bottlenecks are linear: no ReLU follows, so there is no
    ``pre`` tap.
    """
    c_in = int(32 * width)
    stem = nn.Sequential(*conv_bn_relu(shape[0], c_in, stride=2))
    stages = []
    for groups in STAGES:
        blocks = []
        for expansion, c, n, first in groups:
            for stride in [first] + [1] * (n - 1):
                blocks.append(InvertedResidual(c_in, int(c * width), stride, expansion))
                c_in = int(c * width)
        stages.append(blocks)
    neck = nn.Sequential(*conv_bn_relu(c_in, 1280, 1), global_pool())
    net = StagedNet(stem, stages, nn.Linear(1280, num_classes), neck, rectified=False)
    he_init(net)
    small_head_init(net.head)
    return net


NETS: dict[str, Builder] = {"mobilenetv1": mobilenetv1, "mobilenetv2-0.5": partial(mobilenetv2, 0.5)}
