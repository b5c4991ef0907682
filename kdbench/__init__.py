"""kdbench: a benchmark and reproduction suite for knowledge distillation in vision."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdbench.engine.students import load_student

try:
    __version__ = version("kdbench")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> Any:
    if name == "load_student":  # late, as it brings torch
        from kdbench.engine.students import load_student

        return load_student
    raise AttributeError(f"module 'kdbench' has no attribute '{name}'")


__all__ = ["__version__", "load_student"]
