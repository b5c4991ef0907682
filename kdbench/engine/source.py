"""What code a class is, whatever its comments, docstrings and formatting."""

from __future__ import annotations

import ast
import inspect
import sys
from typing import Any

from kdbench.results.record import digest


def source_hash(cls: type) -> str | None:
    """Hash of the module that defines `cls`, as the parser sees it; None where its source cannot be had.

    Of the whole module, as a method's equation stands beside its class. Equal for all versions of Python: what a later
    grammar adds is empty here.
    """
    try:
        tree = ast.parse(inspect.getsource(sys.modules[cls.__module__]))
    except (OSError, TypeError, KeyError, SyntaxError):
        return None
    return digest(_plain(tree))


def _plain(node: Any) -> Any:
    if isinstance(node, list):
        return [_plain(each) for each in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {name: value for name, value in ast.iter_fields(node) if name not in ("ctx", "kind", "type_comment")}
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        fields["body"] = node.body[ast.get_docstring(node, clean=False) is not None :]
    return [type(node).__name__, {name: _plain(value) for name, value in fields.items() if value not in (None, [])}]
