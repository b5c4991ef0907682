"""What a method's class says of itself, read from its source: nothing is imported, neither the class nor PyTorch.

A class is read as Python would make it, as far as that needs no running: constants (also in ``frozenset(...)``, in
``a | b`` and ``{**a, ...}``, and another class's as ``Class.name``), bases of the same file or imported by name, up to
`kdbench.method.Method`. Of one that is made otherwise nothing is said here, and whoever asks imports it.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from typing import Any

BASE = "kdbench.method.Method"
BENCH_KEYS = ("search",)
"""Keys of a method's YAML that are the bench's, not the constructor's."""


@dataclass(frozen=True)
class Declared:
    """A method's class as its source has it.

    Attributes:
        path: module and name.
        file: where it stands.
        doc, about: its docstring, and that of its module; empty where there is none.
        functions: the docstrings of the functions and classes beside it, by name.
        values: its constants by name, those that it inherits from `kdbench.method.Method` among them.
        rests_on: all files that were read for it, with their stamps.
    """

    path: str
    file: Path
    doc: str
    about: str
    functions: Mapping[str, str]
    values: Mapping[str, Any]
    rests_on: Mapping[Path, Stamp] = field(default_factory=dict)


Stamp = tuple[int, int]
"""When a file was written, in ns, and its size in bytes."""


class _Unknown(Exception):
    """Only running the code would tell."""


def declared(target: str) -> Declared | None:
    """What the class at a dotted path says of itself; None where that cannot be read, or it is no `Method`."""
    read: dict[Path, Stamp] = {}
    try:
        module, _, name = target.rpartition(".")
        found, values, is_method = _class(module, name, read)
    except (_Unknown, RecursionError):
        return None
    if not is_method:
        return None
    tree = _tree(file := _file(module), read)
    beside = (ast.FunctionDef, ast.ClassDef)
    functions = {node.name: ast.get_docstring(node) or "" for node in tree.body if isinstance(node, beside)}
    about = ast.get_docstring(tree) or ""
    return Declared(target, file, ast.get_docstring(found) or "", about, functions, values, read)


def identity_of(added: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """A method's settings as they enter an id: without the bench's keys, and without those in `added` (see `Method`)
    that have the value from before they came."""
    return {
        key: value
        for key, value in config.items()
        if key not in BENCH_KEYS and not (key in added and _same(value, added[key]))
    }


def _same(a: Any, b: Any) -> bool:
    """Equality for which ``true`` is not 1."""
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def _class(module: str, name: str, read: dict[Path, Stamp]) -> tuple[ast.ClassDef, dict[str, Any], bool]:
    """A class, its constants with those of its bases, and whether one of these is `Method`."""
    tree = _tree(_file(module), read)
    found = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    if len(found) != 1 or found[0].decorator_list:
        raise _Unknown

    def constant(of: ast.expr, attribute: str) -> Any:
        return _class(*_origin(tree, module, of), read)[1].get(attribute, _NONE)

    values: dict[str, Any] = {}
    is_method = f"{module}.{name}" == BASE
    for base in reversed([] if is_method else found[0].bases):
        where, what = _origin(tree, module, base)
        if where.partition(".")[0] in ("abc", "typing", "torch", "builtins"):
            continue
        _, inherited, of_method = _class(where, what, read)
        values |= inherited
        is_method = is_method or of_method
    for node in found[0].body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            values[node.targets[0].id] = _value(node.value, constant)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            values[node.target.id] = _value(node.value, constant)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            values[node.name] = _NONE  # perhaps in the place of an inherited constant
    return found[0], values, is_method


_NONE = object()
"""What stands for a value that only running the code would tell."""


def _value(node: ast.expr | None, constant: Callable[[ast.expr, str], Any]) -> Any:
    """A constant, or `_NONE`; `constant` tells that of another class."""
    try:
        return ast.literal_eval(node)  # type: ignore[arg-type]
    except (ValueError, TypeError, MemoryError, RecursionError):
        pass
    if isinstance(node, ast.Attribute):
        with suppress(_Unknown):
            return constant(node.value, node.attr)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords and len(node.args) <= 1:
        kind = {"frozenset": frozenset, "tuple": tuple, "dict": dict, "set": set}.get(node.func.id)
        inner = _value(node.args[0], constant) if node.args else ()
        if kind and inner is not _NONE:
            return kind(inner)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
        left, right = _value(node.left, constant), _value(node.right, constant)
        if left is not _NONE and right is not _NONE:
            return left | right
    if isinstance(node, ast.Dict):
        parts = [
            _value(value, constant) if key is None else {_value(key, constant): _value(value, constant)}
            for key, value in zip(node.keys, node.values, strict=True)
        ]
        if all(isinstance(part, dict) and _NONE not in (*part, *part.values()) for part in parts):
            return {key: value for part in parts for key, value in part.items()}
    return _NONE


def _origin(tree: ast.Module, module: str, base: ast.expr) -> tuple[str, str]:
    """The module and the name of a base class."""
    if not isinstance(base, ast.Name):
        raise _Unknown
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == base.id:
            return module, base.id
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == base.id:
                    return _absolute(node, module), alias.name
    raise _Unknown


def _absolute(node: ast.ImportFrom, module: str) -> str:
    if not node.level:
        return node.module or ""
    package = module.split(".")[: -node.level]
    return ".".join([*package, *filter(None, [node.module])])


def _file(module: str) -> Path:
    """The file of a module; packages above it are not imported, as `importlib.util.find_spec` would."""
    top, *below = module.split(".")
    try:
        spec: ModuleSpec | None = find_spec(top)
    except (ImportError, ValueError):
        raise _Unknown from None
    if spec is None or spec.origin is None:
        raise _Unknown
    if not below:
        return Path(spec.origin)
    for folder in spec.submodule_search_locations or ():
        place = Path(folder, *below)
        for path in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
            if path.is_file():
                return path
    raise _Unknown


@cache
def _parsed(path: Path, stamp: Stamp) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        raise _Unknown from None


def _tree(path: Path, read: dict[Path, Stamp]) -> ast.Module:
    try:
        read[path] = stamp_of(path)
    except OSError:
        raise _Unknown from None
    return _parsed(path, read[path])


def stamp_of(path: Path) -> Stamp:
    """What tells that a file has changed."""
    stat = path.stat()
    return stat.st_mtime_ns, stat.st_size
