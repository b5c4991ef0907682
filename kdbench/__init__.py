"""kdbench: a benchmark and reproduction suite for knowledge distillation in vision."""


def __getattr__(name: str) -> str:
    """`__version__`, looked up when it is asked for: that takes longer than all else that a parser needs."""
    if name != "__version__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("kdbench")
    except PackageNotFoundError:  # a source tree that was never installed
        return "0+unknown"
