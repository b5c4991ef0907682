"""What tasks with a target for each pixel share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def resized(output: Tensor, target: Tensor) -> Tensor:
    """Outputs (B, K, h, w) at the size of targets (B, H, W), in float32: bilinear, corners not aligned, which is what
    torchvision and mmsegmentation do."""
    output, size = output.float(), target.shape[-2:]
    return output if output.shape[-2:] == size else F.interpolate(output, size, mode="bilinear", align_corners=False)


def moved(target: Tensor, view: Tensor, pad: int, fill: float) -> Tensor:
    """Targets (B, H, W) of images that are padded, cropped and flipped as `view`, int64 (B, 3): (dy, dx, flip), says.

    The pixel that a target belongs to stays the same, see `kdbench.data.views.crop`; padding gets the value `fill`.
    """
    b, h, w = target.shape
    dy, dx, flip = view.unbind(1)
    wide = w + 2 * pad
    padded = F.pad(target, (pad, pad, pad, pad), value=fill)
    column = torch.arange(w, device=target.device)
    x = torch.where(flip[:, None] != 0, w - 1 - column, column) + dx[:, None]
    y = torch.arange(h, device=target.device) + dy[:, None]
    source = (y[:, :, None] * wide + x[:, None, :]).view(b, h * w)
    return padded.view(b, -1).gather(1, source).view(b, h, w)
