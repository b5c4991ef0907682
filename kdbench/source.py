"""The code of a method or of a user's network as a hash, so that a record tells whether it was changed since."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import resolve_name
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from kdbench.networks import is_own, read, sized
from kdbench.results.record import digest
from kdbench.targets import imported

if TYPE_CHECKING:
    from kdbench.method import Method


def source_hash(cls: type[Method]) -> str | None:
    """sha256 of what the method's modules say, without comments, docstrings and formatting.

    The modules are that of the class, those of its bases below `Method`, and what these import from their own folders
    (a user's losses beside the method). Other packages are not in it, kdbench among them. The same on every version of
    Python, and that of the moment when it is first asked for.

    Returns:
        None where there is no source, as for a class typed into a shell.
    """
    from kdbench.method import Method  # late: it brings torch, and lists of teachers have hashes of networks alone

    made = (base.__module__ for base in cls.__mro__ if issubclass(base, Method) and base is not Method)
    return _hash(cast(Any, cls), tuple(made))


def is_code_of(cls: type[Method], was: str | None) -> bool:
    """Whether what has this hash of its code was made by the class, as far as is known: as it is now, or `earlier`."""
    now = source_hash(cls)
    return was is None or now is None or was == now or was in cls.earlier


def network_hash(name: str) -> str | None:
    """The same of a network of the user's own, see `kdbench.networks`: of the module that its path names, and of those
    of its class and bases below ``nn.Module``.

    Returns:
        None also for networks of zoos and libraries.

    Raises:
        UserError: it cannot be imported.
    """
    name, _ = sized(name)
    if not is_own(name):
        return None
    path, _ = read(name)
    target = imported(f"the network {name}", path, "its path")
    bases = target.__mro__ if isinstance(target, type) else (target,)
    made = [str(getattr(base, "__module__", "torch")) for base in bases if base is not object]
    own = [module for module in made if module.partition(".")[0] not in ("torch", "kdbench")]
    return _hash(target, tuple(dict.fromkeys([path.rpartition(".")[0], *own])))


@cache
def _hash(thing: Any, modules: tuple[str, ...]) -> str | None:
    """Of these modules; `thing`, which they made, is another one when they are imported anew."""
    try:
        todo = [sys.modules[name] for name in modules]
        said: dict[str, Any] = {}
        while todo:
            module = todo.pop(0)
            if module.__name__ not in said:
                tree = ast.parse(inspect.getsource(module))
                said[module.__name__] = _said(tree)
                todo += _beside(module, tree)
        return digest(list(said.values()))
    except (OSError, TypeError, KeyError, SyntaxError, ValueError):
        return None


def _beside(module: ModuleType, tree: ast.Module) -> Iterator[ModuleType]:
    """The modules of its own folder that a module imports."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = resolve_name("." * node.level + (node.module or ""), module.__package__ or None)
            names = [package, *(f"{package}.{alias.name}" for alias in node.names)]
        for name in names:
            other = sys.modules.get(name)
            if other and _folder(other) == _folder(module) and not name.startswith("kdbench."):
                yield other


def _folder(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file).parent.absolute() if file else None


def _said(node: Any) -> Any:
    """A syntax tree as plain lists; what is empty is left out, for newer versions of Python have more such fields."""
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if name not in ("ctx", "kind", "type_comment"))
        return [type(node).__name__, *([name, _said(value)] for name, value in fields if value not in (None, []))]
    if isinstance(node, list):
        return [_said(item) for item in node if not _is_docstring(item)]
    return repr(node)  # of a text too, which is no number of the same digits


def _is_docstring(node: Any) -> bool:
    """A statement that is nothing but a text, wherever it stands."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
