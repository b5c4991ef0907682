"""The code of a method as a hash, so that a record tells whether the method was changed since."""

from __future__ import annotations

import ast
import inspect
import sys
from functools import lru_cache
from typing import Any

from kdbench.method import Method
from kdbench.results.record import digest


def source_hash(cls: type[Method]) -> str | None:
    """sha256 of what the method's modules say, without comments, docstrings and formatting.

    The modules are that of the class and those of its bases below `Method`. Whatever else they import (losses that
    several methods share, other files of the user's) is not in it. The same on every version of Python.

    Returns:
        None where there is no source, as for a class typed into a shell.
    """
    bases = [base for base in cls.__mro__ if issubclass(base, Method) and base is not Method]
    return _hash(tuple(dict.fromkeys(base.__module__ for base in bases)))


@lru_cache
def _hash(modules: tuple[str, ...]) -> str | None:
    try:
        return digest([_said(ast.parse(inspect.getsource(sys.modules[module]))) for module in modules])
    except (OSError, TypeError, KeyError, SyntaxError):
        return None


def _said(node: Any) -> Any:
    """A syntax tree as plain lists; what is empty is left out, for newer versions of Python have more such fields."""
    if isinstance(node, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(node) if name not in ("ctx", "kind", "type_comment"))
        kept = [(name, _without_docstring(value) if name == "body" else value) for name, value in fields]
        return [
            type(node).__name__,
            *([name, _said(value)] for name, value in kept if value is not None and value != []),
        ]
    if isinstance(node, list):
        return [_said(item) for item in node]
    return node if isinstance(node, str) else repr(node)


def _without_docstring(body: Any) -> Any:
    first = body[0] if isinstance(body, list) and body else None
    documented = (
        isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    )
    return body[1:] if documented else body
