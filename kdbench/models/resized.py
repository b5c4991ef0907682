"""A network that looks at images of any size at its own."""

from __future__ import annotations

from collections.abc import Collection

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.errors import DoesNotFit
from kdbench.taps import UNCUT


class Resized(nn.Module):
    """`net` behind a bilinear resize to `size`, (H, W), antialiased where it shrinks; in float32 whatever comes in.

    Its taps are those of `net`; its state dict is that of `net` with the prefix ``net.``
    """

    def __init__(self, net: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.net, self.size = net, size

    @property
    def head(self) -> nn.Module:
        head: nn.Module = self.net.head  # type: ignore[assignment]
        return head

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net(self._seen(x))
        return logits

    def tap(self, x: Tensor, names: Collection[str] | None = None) -> dict[str, Tensor]:
        taps: dict[str, Tensor] = self.net.tap(self._seen(x), names)  # type: ignore[operator]
        return taps

    def tail(self, after: str) -> nn.Module:
        """It cannot be cut, as what stands behind a stage has no images to resize: DoesNotFit."""
        raise DoesNotFit(UNCUT)

    def _seen(self, x: Tensor) -> Tensor:
        return F.interpolate(x.float(), self.size, mode="bilinear", antialias=True).to(x.dtype)
