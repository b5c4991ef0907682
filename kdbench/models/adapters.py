"""Networks of torchvision and timm behind the taps of kdbench.

Both start from random weights. What depends on the network is found by one forward pass when it is built. A tap is
there only if the network has it: none has ``pre`` taps, torchvision's transformers have ``embed`` and ``logits`` alone,
its networks for segmentation have no ``embed``.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.errors import UserError
from kdbench.foreign import Foreign, Hooked, Wrapped, reads_embed, recorded, refused
from kdbench.models.base import Shape

LIBRARIES = ("torchvision/", "timm/")
POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)


class Intermediates(Wrapped):
    """Feature maps are timm's own ``forward_intermediates``: `points` maps tap names to its indices."""

    def __init__(self, net: nn.Module, head: nn.Linear, points: Mapping[str, int]) -> None:
        super().__init__(net, head)
        self.points = dict(points)

    def maps(self, x: Tensor, taps: dict[str, Tensor]) -> Tensor:
        net: Any = self.net
        x, maps = net.forward_intermediates(x, indices=list(self.points.values()))
        taps.update(zip(self.points, maps, strict=True))
        logits: Tensor = net.forward_head(x)
        return logits


class Dense(Foreign):
    """torchvision's networks for segmentation, which give a dict of maps: ``out``, at the size of the image, is taken.

    `positive`: the output is the exponential of ``out``, as for depth (see `kdbench.models.fpn`).
    """

    def __init__(self, net: nn.Module, head: nn.Module, positive: bool) -> None:
        super().__init__(net, head)
        self.points: dict[str, str] = {}
        self.positive = positive

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.net(x)["out"]
        return out.exp() if self.positive else out

    def run(self, x: Tensor, taps: dict[str, Tensor]) -> Tensor:
        with recorded(self.net, self.points, taps):
            return self(x)


def torchvision_net(name: str, shape: Shape, num_classes: int) -> Wrapped:
    """torchvision's classification network `name` for images of `shape`, with random weights.

    Its top-level modules (and the members of top-level ``nn.Sequential``s) are grouped by the resolution of their
    output; the last module of each group gives a tap, pooling modules aside. A first group at more than a quarter of
    the image's size is ``stem``, the others are ``stage1``..``stageN``. (Images so small that deep stages have the same
    resolution, below 32x32 as a rule, have fewer.)

    Raises:
        UserError: no such network; images that it cannot take; no linear classifier, or auxiliary ones beside it.
    """
    from torchvision import models  # slow to import

    label = checked_name(name, shape, models.list_models(module=models))
    net: nn.Module = models.get_model(name, weights=None, num_classes=num_classes)
    if getattr(net, "aux_logits", False):
        raise UserError(f"{label} has auxiliary classifiers, which kdbench does not train: take another network.")
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
    head = checked_head(label, linear[-1] if linear else None, num_classes)
    wrapped = Hooked(net, head, {})  # in-place activations are off from here on
    maps: dict[str, Tensor] = {}
    with recorded(net, {path: path for path in candidates(net)}, maps):
        trial(label, wrapped, shape)
    wrapped.points = by_resolution(net, maps, shape)
    return wrapped


def torchvision_dense(name: str, shape: Shape, outputs: int, positive: bool) -> Dense:
    """torchvision's network for segmentation `name` for images of `shape`, with random weights.

    Taps of its backbone, grouped by resolution as in `torchvision_net` (dilated stages have one resolution, so they are
    one stage), and ``logits`` (B, K, H, W). The auxiliary classifier is left out.

    Raises:
        UserError: no such network; images that it cannot take.
    """
    from torchvision import models  # slow to import

    label = checked_name(name, shape, models.list_models(module=models.segmentation))
    net: Any = models.get_model(name, weights=None, weights_backbone=None, num_classes=outputs, aux_loss=None)
    head = [module for module in net.classifier.modules() if isinstance(module, nn.Conv2d)][-1]
    dense = Dense(net, head, positive)
    points = {f"backbone.{path}": f"backbone.{path}" for path in candidates(net.backbone)}
    maps: dict[str, Tensor] = {}
    with recorded(net, points, maps):
        trial(label, dense, shape)
    dense.points = by_resolution(net, maps, shape)
    return dense


def checked_name(name: str, shape: Shape, known: Sequence[str]) -> str:
    """torchvision's `name` with its prefix.

    Raises:
        UserError: it is not among the `known` ones, or the images have not three channels.
    """
    label = f"torchvision/{name}"
    if name not in known:
        raise UserError(unknown(label, [f"torchvision/{other}" for other in known]))
    if shape[0] != 3:
        raise UserError(f"{label} takes images of 3 channels, not {shape[0]}: take a network of the zoo.")
    return label


def candidates(net: nn.Module) -> list[str]:
    """Paths of the top-level modules, with plain ``nn.Sequential``s replaced by their members."""
    paths = []
    for path, child in net.named_children():
        paths += [f"{path}.{inner}" for inner, _ in child.named_children()] if type(child) is nn.Sequential else [path]
    return paths


def by_resolution(net: nn.Module, maps: Mapping[str, Tensor], shape: Shape) -> dict[str, str]:
    """Tap names to module paths, from the feature maps of the candidates in order of execution."""
    last: dict[int, str] = {}  # height -> path of the last module at that height
    for path, x in maps.items():
        module = net.get_submodule(path)
        if isinstance(module, nn.AdaptiveAvgPool2d):
            break  # behind the global pooling there are no feature maps any more
        # (B, C, H, W) keeps the aspect ratio in the last two axes, up to rounding; (B, H, W, C) and tokens do not.
        is_map = x.ndim == 4 and abs(x.shape[2] * shape[2] - x.shape[3] * shape[1]) <= max(shape[1:])
        if is_map and not isinstance(module, POOLS):
            last[x.shape[2]] = path
    if len(last) < 2:  # a transformer's patch embedding
        return {}
    return dict(zip(tap_names([shape[1] / height for height in last]), last.values(), strict=True))


def timm_net(name: str, shape: Shape, num_classes: int) -> Wrapped:
    """timm's network `name` for images of `shape`, with random weights.

    The taps are timm's own intermediate features: the first one is ``stem`` if its stride is below 4, the others are
    ``stage1``..``stageN``. Networks of constant resolution (ViT, mixers) give four evenly spaced blocks, the last one
    among them, as ``stage1``..``stage4``, with the tokens as a (B, C, H, W) map.

    Raises:
        UserError: no such network; images that it cannot take; a network without a linear classifier.
    """
    import timm  # slow to import

    known = timm.list_models()  # without the tags of pretrained weights, which name no other architecture
    if name not in known:
        raise UserError(unknown(f"timm/{name}", [f"timm/{other}" for other in known]))
    label = f"timm/{name}"
    config = timm.get_pretrained_cfg(name)
    size: dict[str, Any] = {"img_size": shape[1:]} if config and config.fixed_input_size else {}
    with refused(label, shape):
        net: Any = timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=shape[0], **size)
    head = checked_head(label, net.get_classifier(), num_classes)
    wrapped: Wrapped = Hooked(net, head, {})
    if hasattr(net, "forward_intermediates") and getattr(net, "feature_info", None):
        wrapped = Intermediates(net, head, spaced([info["reduction"] for info in net.feature_info]))
    trial(label, wrapped, shape)
    return wrapped


def spaced(strides: list[float]) -> dict[str, int]:
    """Tap names to positions among timm's features of these `strides`."""
    n = len(strides)
    if n > 4 and len(set(strides)) == 1:
        return {f"stage{i}": i * n // 4 - 1 for i in range(1, 5)}
    return {name: i for i, name in enumerate(tap_names(strides))}


def tap_names(strides: list[float]) -> list[str]:
    """``stage1``..``stageN`` for feature maps of these strides; the first is ``stem`` if its stride is below 4."""
    stem = ["stem"] if strides[0] < 4 else []
    return stem + [f"stage{i}" for i in range(1, len(strides) - len(stem) + 1)]


def checked_head(label: str, head: Any, num_classes: int) -> nn.Linear:
    if not isinstance(head, nn.Linear) or head.out_features != num_classes:
        raise UserError(f"{label} does not end in one linear classifier, which kdbench needs: take another network.")
    return head


@torch.no_grad()
def trial(label: str, net: Foreign, shape: Shape) -> None:
    """One forward pass in eval mode on a random image, which leaves no trace, not even in the global random state.

    Raises:
        UserError: the network cannot take such images, or it is a classifier that does not read ``embed`` to give the
            logits.
    """
    x = torch.rand(1, *shape, generator=torch.Generator().manual_seed(0))
    net.eval()
    with refused(label, shape):
        taps = net.tap(x)
        honest = not isinstance(net, Wrapped) or reads_embed(net, taps, net(x))
    net.train()
    if not honest:
        raise UserError(f"{label} does not end in one linear classifier, which kdbench needs: take another network.")


def unknown(name: str, known: Collection[str], also: Sequence[str] = ()) -> str:
    """One sentence about a network `name` that does not exist, with the closest of the `known` ones.

    Args:
        also: what else would do, as ``torchvision/NAME``.
    """
    close = difflib.get_close_matches(name, known, n=3)
    few = f"choose from {', '.join(known)}." if len(known) < 60 else "look it up in that library's list of models."
    mend = f"did you mean {' or '.join(close)}?" if close else few
    return f"unknown network '{name}': {mend}" + (f" (Or take {' or '.join(also)}.)" if also else "")
