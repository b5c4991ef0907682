"""Depth from one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from kdbench.losses import in_float32
from kdbench.measures import Measure
from kdbench.tasks import maps
from kdbench.tasks.base import Meter, Scores, Task

if TYPE_CHECKING:
    from kdbench.data.batch import Batch, DataSpec

NEAREST = 1e-3
"""Metres: what is nearer, or behind the camera, is taken to be here before it is measured (as in monodepth2)."""


@in_float32
def berhu(output: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """The reverse Huber loss of Laina et al. (3DV 2016, arXiv:1606.00373), equation 2, averaged over valid pixels.

    ``e`` where ``e <= c``, else ``(e² + c²) / 2c``, of the error ``e = |output - target|``. ``c`` is a fifth of the
    largest error in the batch, and no gradient flows through it. Tosi et al. (CVPR 2019) distil depth with it, too.

    Args:
        output, target, valid: of one shape; `valid` is bool.

    Returns:
        a scalar; 0 where no pixel is valid.
    """
    error = (output - target).abs().where(valid, 0.0)
    c = (error.detach().max() / 5).clamp(min=torch.finfo(error.dtype).tiny)
    far = (error.square() + c * c) / (2 * c)
    return error.where(error <= c, far).sum() / valid.sum().clamp(min=1)


class DepthErrors(Meter):
    """``AbsRel``, a fraction; ``RMSE``, in metres; ``delta1``, in percent.

    Of the depths d of an image's valid pixels and their predictions p: the means of |p - d| / d, of (p - d)² (its root)
    and of max(p / d, d / p) < 1.25 (Eigen et al., NeurIPS 2014, arXiv:1406.2283). Each is computed for each image, then
    averaged over images, as the public evaluations for KITTI and NYU do; predictions are not rescaled. An image's score
    is its AbsRel; an image without a valid pixel has none and counts nowhere.
    """

    def __init__(self) -> None:
        super().__init__()
        self.errors, self.known = Scores(), Scores()

    def update(self, net: nn.Module, batch: Batch) -> None:
        d, p = _maps(net(batch.x), batch.y)
        valid = d > 0
        p, d = p.clamp(min=NEAREST), d.where(valid, 1.0)
        each = torch.stack([(p - d).abs() / d, (p - d).square(), (torch.maximum(p / d, d / p) < 1.25).float()], 1)
        n = valid.sum((1, 2))[:, None]
        abs_rel, square, close = ((each * valid[:, None]).sum((2, 3)) / n.clamp(min=1)).unbind(1)
        self.errors.update(torch.stack([abs_rel, square.sqrt(), 100 * close], 1))
        self.known.update(n.squeeze(1) > 0)

    def compute(self) -> dict[str, Tensor]:
        means = self.errors.rows()[self.known.rows()].mean(0)
        return dict(zip(("AbsRel", "RMSE", "delta1"), means.unbind(), strict=True))

    def examples(self) -> Tensor:
        return self.errors.rows()[self.known.rows(), 0]


@dataclass(frozen=True)
class Depth(Task):
    """The distance of each pixel in metres; outputs are (B, 1, h, w), targets (B, H, W), 0 where it is not known.

    Outputs of a smaller map are resized bilinearly to the target's size, in the loss and in the meter.
    """

    name = zoo = "depth"
    primary = Measure("AbsRel", higher=False, unit="")

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """`berhu` of the pixels that have a target."""
        d, p = _maps(output, target)
        return berhu(p, d, d > 0)

    def moved(self, target: Tensor, view: Tensor, pad: int) -> Tensor:
        return maps.moved(target, view, pad, 0)

    def meter(self, data: DataSpec) -> Meter:
        return DepthErrors()


def _maps(output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(target, output) as float32 maps (B, H, W); the target may be the output (B, 1, H, W) of a teacher."""
    target = (target.squeeze(1) if target.dim() == 4 else target).float()
    return target, maps.resized(output, target).squeeze(1)
