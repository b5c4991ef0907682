"""Which methods a command chose: an experiment may have settings for others, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, open_dict, read_write

from kdbench.errors import UserError
from kdbench.tuned import method_file


def leave_the_chosen(config: DictConfig, hydra: Any) -> None:
    """Take the settings of methods that were not chosen out of a composed config, as ``method=[kd]`` asks.

    Settings of a method in a file come without the method's ``_target_`` where ``method=`` does not name it.

    Args:
        hydra: what Hydra says of itself.

    Raises:
        UserError: the command line itself has settings for such a method.
    """
    folders = [Path(each.path) for each in hydra.runtime.config_sources]
    methods = config.get("method")
    if not isinstance(methods, DictConfig):
        return
    for name in [str(name) for name, settings in methods.items() if isinstance(settings, DictConfig)]:
        if "_target_" in methods[name] or not _can_be_chosen(name, folders):
            continue
        if typed := [each for each in hydra.overrides.task if each.lstrip("+").startswith(f"method.{name}.")]:
            raise UserError(f"{typed[0]}: method '{name}' is not among those of method=[...], add it.")
        with read_write(methods), open_dict(methods):
            del methods[name]


def _can_be_chosen(name: str, folders: list[Path]) -> bool:
    """Whether `name` is a method's YAML that names a class."""
    file = method_file(name, folders)
    return file is not None and "_target_:" in file.read_text(encoding="utf-8")
