"""Networks by name: the zoo of the distillation literature, torchvision's and timm's, all with `kdbench.taps`."""

from __future__ import annotations

from torch import nn

from kdbench.errors import UserError
from kdbench.models import adapters, lenet, mobilenet, resnet, shufflenet, vgg, wrn
from kdbench.models.base import Builder

ZOO: dict[str, Builder] = {
    **resnet.NETS,
    **wrn.NETS,
    **vgg.NETS,
    **mobilenet.NETS,
    **shufflenet.NETS,
    **lenet.NETS,
}
SMALLEST = 8  # pixels: below, pooling leaves nothing


def names() -> list[str]:
    """The names of the built-in zoo."""
    return list(ZOO)


def create(name: str, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """A fresh network with random weights, drawn from torch's global random state.

    Args:
        name: a name of the zoo, ``torchvision/NAME`` or ``timm/NAME``.
        shape: (C, H, W) of the images.
        num_classes: K, the number of logits.

    Returns:
        A network with ``forward(x) -> logits``, ``tap(x, names)`` (see `kdbench.taps.Net`) and ``head``, its last
        nn.Linear.

    Raises:
        UserError: no such network, or one that cannot take images of this shape.
    """
    source, _, rest = name.partition("/")
    if rest and source == "torchvision":
        return adapters.torchvision_net(rest, shape, num_classes)
    if rest and source == "timm":
        return adapters.timm_net(rest, shape, num_classes)
    if name not in ZOO:
        raise UserError(adapters.unknown(name, names()))
    if min(shape[1:]) < SMALLEST:
        raise UserError(
            f"{name} takes images of at least {SMALLEST}x{SMALLEST}, not {shape[1]}x{shape[2]}: enlarge them."
        )
    return ZOO[name](shape, num_classes)
