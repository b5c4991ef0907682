"""kdbench: a benchmark and reproduction suite for knowledge distillation in vision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdbench.engine.students import load_student

    __version__: str


def __getattr__(name: str) -> Any:
    """What is looked up when it is asked for: it takes longer than all else that a parser needs."""
    if name == "load_student":
        from kdbench.engine.students import load_student

        return load_student
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("kdbench")
    except PackageNotFoundError:  # a source tree that was never installed
        return "0+unknown"


__all__ = ["__version__", "load_student"]
