"""kdbench: a benchmark and reproduction suite for knowledge distillation in vision."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("kdbench")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
