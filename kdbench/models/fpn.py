"""Dense networks: a small residual trunk and a feature pyramid, for segmentation and depth."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.models.base import Builder, Shape, TappedNet, conv_bn_relu, he_init, small_head_init, through
from kdbench.models.resnet import basic_stages


class FeaturePyramid(TappedNet):
    """Trunk, top-down pathway and pixel-wise head.

    The three stages of one of the zoo's ResNets behind a stem of stride 2 give maps at strides 2, 4 and 8. From the
    deepest on, a 1x1 convolution of each is added to the enlarged sum of those below (lateral and top-down connections:
    Lin et al., CVPR 2017, arXiv:1612.03144, section 3); a 3x3 convolution of the finest sum is read by the 1x1 head,
    whose output is enlarged bilinearly to the size of the image (as in FCN: Long et al., CVPR 2015, arXiv:1411.4038).

    Taps: ``stem``, ``pre_i`` and ``stage_i`` of the trunk; ``decoded`` (B, D, H/2, W/2), what the head reads, on which
    pair-wise structured distillation works; ``logits`` (B, K, H, W). There is no ``embed``.

    Args:
        stem, stages: of the trunk; blocks end before their ReLU.
        widths: of the stages.
        width: D, the width of the pyramid.
        outputs: K, the channels of the output.
        positive: the output is the exponential of the enlarged head's, as a network for depth predicts its logarithm
            (Eigen et al., NeurIPS 2014, arXiv:1406.2283).
    """

    def __init__(
        self,
        stem: nn.Module,
        stages: Iterable[Iterable[nn.Module]],
        widths: tuple[int, ...],
        width: int,
        outputs: int,
        positive: bool,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.stages = nn.ModuleList(nn.ModuleList(blocks) for blocks in stages)
        self.laterals = nn.ModuleList(nn.Conv2d(c, width, 1) for c in widths)
        self.smooth = nn.Sequential(*conv_bn_relu(width, width))
        self.head: nn.Conv2d = nn.Conv2d(width, outputs, 1)
        self.positive = positive

    def features(self, x: Tensor) -> dict[str, Tensor]:
        x = self.stem(x)
        taps = {"stem": x}
        through(self.stages, x, taps)
        *finer, deepest = self.laterals
        total: Tensor = deepest(taps[f"stage{len(self.laterals)}"])
        for depth in range(len(finer), 0, -1):
            own = finer[depth - 1](taps[f"stage{depth}"])
            total = own + F.interpolate(total, own.shape[-2:])
        taps["decoded"] = self.smooth(total)
        return taps

    def output(self, x: Tensor, taps: dict[str, Tensor]) -> Tensor:
        scores = F.interpolate(self.head(taps["decoded"]), x.shape[-2:], mode="bilinear")
        return scores.exp() if self.positive else scores


def fpn(positive: bool, depth: int, widths: tuple[int, ...], width: int, shape: Shape, outputs: int) -> FeaturePyramid:
    """A pyramid of `width` channels on a ResNet of `depth` layers with `widths` of its stem and stages."""
    stages = basic_stages(depth, widths)
    stem = nn.Sequential(*conv_bn_relu(shape[0], widths[0], stride=2))
    net = FeaturePyramid(stem, stages, widths[1:], width, outputs, positive)
    he_init(net)
    small_head_init(net.head)
    return net


SIZES: dict[str, tuple[int, tuple[int, ...], int]] = {
    "fpn-resnet8": (8, (16, 16, 32, 64), 32),
    "fpn-resnet20": (20, (16, 16, 32, 64), 32),
}
SEGMENTATION: dict[str, Builder] = {name: partial(fpn, False, *size) for name, size in SIZES.items()}
DEPTH: dict[str, Builder] = {name: partial(fpn, True, *size) for name, size in SIZES.items()}
