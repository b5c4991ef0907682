"""What networks are called: one spelling for each, which enters ids, seeds and file names, and can be read back.

``resnet20`` is one of a zoo and ``torchvision/resnet18`` one of a library (`kdbench.models`); ``mynet.Net`` is whatever
that dotted path names, a class or a function, and ``mynet.Net(width=2)`` the same with settings. Behind any of them,
``@64`` or ``@64x48`` says at what size, height first, it looks at images of another one.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from typing import Any

from kdbench.errors import UserError

_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_SIZE = re.compile(r"(.+)@(\d{1,5})(?:x(\d{1,5}))?", re.DOTALL)
AS_IN = "write pair.student=mynet.Net, or '{_target_: mynet.Net, width: 2}' with settings"


def spelled(network: Any) -> Any:
    """The one name of a network that a config gives as text, or as a mapping with ``_target_``; all else as it is.

    Raises:
        UserError: it has no target, or settings that are no plain values.
    """
    if isinstance(network, Mapping):
        settings = dict(network)
        path = settings.pop("_target_", None)
        if not isinstance(path, str) or not _PATH.fullmatch(path):
            raise UserError(f"the network {dict(network)} has no _target_ that is a dotted path: {AS_IN}.")
        return _joined(path, settings)
    if isinstance(network, str) and "(" in network:
        name, size = sized(network)
        path, settings = read(name)
        return _joined(path, settings) + (f"@{network.rpartition('@')[2]}" if size else "")
    return network


def is_own(name: str) -> bool:
    """Whether a network is the user's, that is neither a zoo's nor a library's."""
    return bool(_PATH.fullmatch(sized(name)[0].partition("(")[0]))


def sized(name: str) -> tuple[str, tuple[int, int] | None]:
    """A name without its size, and that, (H, W), or None."""
    match = _SIZE.fullmatch(name)
    return (match[1], (int(match[2]), int(match[3] or match[2]))) if match else (name, None)


def read(name: str) -> tuple[str, dict[str, Any]]:
    """Dotted path and settings of the user's network `name` (without a size).

    Raises:
        UserError: the settings are no plain values by name.
    """
    path, bracket, rest = name.partition("(")
    if not bracket:
        return path, {}
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
            raise ValueError
        return path, {each.arg or "": ast.literal_eval(each.value) for each in call.keywords}  # "" of **
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise UserError(f"the network '{name}' cannot be read: {AS_IN}.") from None


def _joined(path: str, settings: Mapping[str, Any]) -> str:
    for key in settings:
        if not str(key).isidentifier() or str(key).startswith("_"):
            raise UserError(f"the network {path} cannot have a setting '{key}': {AS_IN}.")
    values = ", ".join(f"{key}={settings[key]!r}" for key in sorted(settings))
    return f"{path}({values})" if settings else path
