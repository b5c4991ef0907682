"""Where kdbench keeps its files, and where its configuration lies."""

from __future__ import annotations

import os
from pathlib import Path

from kdbench.errors import UserError

CHOOSE_CACHE = "KDBENCH_CACHE=DIR says where"
CHOOSE_WORK = "paths.work=DIR says where"
CHOOSE_RESULTS = "paths.results=DIR says where"
"""How to choose another folder for what is cached, unfinished or stored, as clauses."""


def cache_dir() -> Path:
    """``$KDBENCH_CACHE``, or ``~/.cache/kdbench``."""
    return Path(os.environ.get("KDBENCH_CACHE") or "~/.cache/kdbench").expanduser()


def data_root(root: str | Path | None = None) -> Path:
    """The folder of prepared data sets: `root` if given, else ``$KDBENCH_DATA``, else ``data`` in the cache folder."""
    chosen = root or os.environ.get("KDBENCH_DATA")
    return Path(chosen).expanduser() if chosen else cache_dir() / "data"


def conf_dir() -> Path:
    """The folder of Hydra groups: inside the installed package, or beside it in a checkout.

    Raises:
        UserError: neither exists.
    """
    package = Path(__file__).parent
    for folder in (package / "conf", package.parent / "conf"):
        if folder.is_dir():
            return folder
    raise UserError(f"no configuration folder in {package} nor beside it: reinstall kdbench.")
