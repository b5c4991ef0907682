"""Networks by name: the zoos of the distillation literature, torchvision's, timm's and the user's own, all with taps.

Each kind of output has a zoo of its own: ``classification`` (B, K), ``segmentation`` (B, K, H, W), ``depth``
(B, 1, H, W), positive, and ``policy`` (B, actions) of observations (B, n).
"""

from __future__ import annotations

from torch import nn

from kdbench.errors import UserError
from kdbench.models import (
    adapters,
    cnn,
    conv4,
    fc,
    fpn,
    lenet,
    mlp,
    mobilenet,
    own,
    resnet,
    shufflenet,
    small,
    vgg,
    wrn,
)
from kdbench.models.base import Builder, Shape
from kdbench.models.resized import Resized
from kdbench.networks import is_own, sized

ZOOS: dict[str, dict[str, Builder]] = {
    "classification": {
        **resnet.NETS,
        **wrn.NETS,
        **vgg.NETS,
        **mobilenet.NETS,
        **shufflenet.NETS,
        **lenet.NETS,
        **conv4.NETS,
        **small.NETS,
        **cnn.NETS,
        **fc.NETS,
    },
    "segmentation": fpn.SEGMENTATION,
    "depth": fpn.DEPTH,
    "policy": mlp.NETS,
}
DENSE = frozenset({"segmentation", "depth"})
SMALLEST = 8  # pixels: below, pooling leaves nothing, where there is some


def names(task: str = "classification") -> list[str]:
    """The names of the zoo for a kind of output, by default of the image classifiers."""
    return list(ZOOS[task])


def known(name: str) -> bool:
    """Whether some zoo has a network of this name."""
    return any(name in zoo for zoo in ZOOS.values())


def create(name: str, shape: Shape, outputs: int, task: str = "classification") -> nn.Module:
    """A fresh network with random weights, drawn from torch's global random state.

    Args:
        name: a name of the task's zoo; for tasks on images also ``torchvision/NAME`` and, for classification,
            ``timm/NAME``; the dotted path of one's own (see `kdbench.networks`). An image classifier's may end in
            ``@SIZE``.
        shape: (C, H, W) of the images, or (n,) of the observations.
        outputs: K, the number of logits: classes, actions, or channels of a map (1 for depth).
        task: the kind of output, a key of `ZOOS` (a task's ``zoo``).

    Returns:
        A network with ``forward(x) -> logits``, ``tap(x, names)`` (see `kdbench.taps.Net`), ``tail(after)`` (see
        `kdbench.models.base.TappedNet`) and ``head``, its last nn.Linear or 1x1 convolution.

    Raises:
        UserError: no such network, or one that cannot take inputs of this shape or does not serve this task.
    """
    if task not in ZOOS:
        raise UserError(f"there are no networks for '{task}': choose from {', '.join(ZOOS)}.")
    if task == "policy" and len(shape) != 1:
        raise UserError(f"policy networks take vectors of observations, not {_size(shape)}: choose an environment.")
    if task != "policy" and len(shape) != 3:
        raise UserError(f"networks for {task} take images (C, H, W), not {_size(shape)}: choose a data set of images.")
    name, size = sized(name)
    if size:
        if task != "classification":
            raise UserError(f"only image classifiers see images at another size: write {name} without @.")
        return Resized(create(name, (shape[0], *size), outputs), size)
    if is_own(name):
        return own.create(name, shape, outputs, task)
    source, _, rest = name.partition("/")
    if rest and source == "torchvision" and task == "classification":
        return adapters.torchvision_net(rest, shape, outputs)
    if rest and source == "torchvision" and task in DENSE:
        return adapters.torchvision_dense(rest, shape, outputs, positive=task == "depth")
    if rest and source == "timm" and task == "classification":
        return adapters.timm_net(rest, shape, outputs)
    if name not in ZOOS[task]:
        raise UserError(_refusal(name, task))
    if len(shape) == 3 and min(shape[1:]) < SMALLEST and name not in fc.NETS:
        raise UserError(
            f"{name} takes images of at least {SMALLEST}x{SMALLEST}, not {shape[1]}x{shape[2]}: enlarge them."
        )
    return ZOOS[task][name](shape, outputs)


def _size(shape: Shape) -> str:
    return f"vectors of {shape[0]}" if len(shape) == 1 else "x".join(map(str, shape))


def _refusal(name: str, task: str) -> str:
    """One sentence about a network that is not in the task's zoo, with what is."""
    also = {"classification": ["torchvision/NAME", "timm/NAME"], "policy": []}.get(task, ["torchvision/NAME"])
    also = [*also, "one of your own, as mynet.Net"]
    if not known(name) and not name.startswith(adapters.LIBRARIES):
        return adapters.unknown(name, names(task), also)
    candidates = ["resnet20", "any other image classifier of the zoo"] if task == "classification" else names(task)
    return f"{name} is no network for {task}: choose from {', '.join(candidates + also)}."
