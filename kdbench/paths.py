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
    """``$KDBENCH_CACHE``, else ``kdbench`` in the user's cache folder: ``$XDG_CACHE_HOME`` or ``~/.cache``.

    Raises:
        UserError: it names the home of a user that there is not.
    """
    if own := os.environ.get("KDBENCH_CACHE"):
        return expanded(own, "KDBENCH_CACHE")
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):  # as its specification says, else it is to be ignored
        return Path(xdg) / "kdbench"
    return expanded("~/.cache/kdbench", "KDBENCH_CACHE")


def data_root(root: str | Path | None = None) -> Path:
    """The folder of prepared data sets: `root` if given, else ``$KDBENCH_DATA``, else ``data`` in the cache folder.

    Raises:
        UserError: it names the home of a user that there is not.
    """
    if root:
        return expanded(root, "dataset.root")
    if own := os.environ.get("KDBENCH_DATA"):
        return expanded(own, "KDBENCH_DATA")
    return cache_dir() / "data"


def expanded(path: str | Path, setting: str) -> Path:
    """`path`, which `setting` gave, with a ``~`` or ``~NAME`` in front as that user's home.

    Raises:
        UserError: there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(f"there is no home folder for {path}: have {setting} name a folder in full.") from None


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
