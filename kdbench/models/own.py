"""A network of the user's own, by the dotted path of a class or of a function that makes one."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from kdbench.errors import UserError, nearest
from kdbench.foreign import OTHER, plain
from kdbench.models.base import Shape
from kdbench.networks import read
from kdbench.taps import probe
from kdbench.targets import first_line, imported

OUTPUTS = ("num_classes",)
INPUTS = ("in_channels", "in_chans", "in_features")
"""How constructors call the number of classes and of channels (of observations: numbers), which they are told."""


CHANNELS = "have its constructor take in_channels, or give its own setting for them"


def create(name: str, shape: Shape, outputs: int, task: str) -> nn.Module:
    """A fresh network of the user's, see `kdbench.networks` for its `name`.

    Its constructor is told the number of classes as ``num_classes`` and of channels as ``in_channels`` or ``in_chans``
    (``in_features`` where inputs are vectors), so far as it takes them and the name does not say them. A plain module
    has the taps ``logits`` and, where it ends in one linear layer, ``embed``; one with a method ``tap`` those that it
    says (see `kdbench.taps.Net`).

    Raises:
        UserError: it cannot be imported or made, cannot take such inputs, or has another number of outputs.
    """
    path, settings = read(name)
    target = imported(f"the network {name}", path, "its path")
    if isinstance(target, nn.Module) or not callable(target):
        raise UserError(f"{path} is no class or function that makes a network, but {_kind(target)}: name one.")
    settings = {**settings, **_told(path, target, settings, shape, outputs)}
    try:
        net = target(**settings)
    except UserError:
        raise
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in settings.items())
        raise UserError(
            f"the network {path} cannot be made with {given or 'no settings'} ({type(error).__name__}: "
            f"{first_line(error)}): mend its settings or its constructor."
        ) from error
    if not isinstance(net, nn.Module):
        raise UserError(f"{path} makes {_kind(net)}, no torch.nn.Module: name a class or function that does.")
    net = plain(name, net, shape, OTHER if any(key in settings for key in INPUTS) else CHANNELS)
    found = probe(name, net, shape).shapes["logits"]
    if len(found) != (3 if task in ("segmentation", "depth") else 1) or found[0] != outputs:
        told = next((key for key in OUTPUTS if key in settings), None)
        mend = f"have its {told} be the number of its outputs" if told else "have its constructor take num_classes"
        size = "x".join(map(str, found))
        raise UserError(f"the network {name} gives {size} logits, and the data have {outputs} classes: {mend}.")
    return net


def _told(path: str, target: Any, given: dict[str, Any], shape: Shape, outputs: int) -> dict[str, Any]:
    """What the constructor is told of the data; raises `UserError` for a setting that it does not take."""
    try:
        known = inspect.signature(target).parameters
    except (TypeError, ValueError):  # one in C
        return {}
    anything = any(each.kind is each.VAR_KEYWORD for each in known.values())
    for key in given:
        if key not in known and not anything:
            raise UserError(f"the network {path} has no setting '{key}': {nearest(key, list(known))}")
    told = {key: outputs for key in OUTPUTS if key not in given and (key in known or anything)}
    return told | {key: shape[0] for key in INPUTS if key in known and key not in given}


def _kind(thing: Any) -> str:
    return f"a {type(thing).__name__}"
