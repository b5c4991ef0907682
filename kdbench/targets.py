"""Objects that a config names by ``_target_``, made with one sentence for whatever is wrong with them."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from kdbench.errors import UserError, nearest
from kdbench.settings import adapters, validated


def imported(where: str, target: str, mend: str = "_target_") -> Any:
    """What `target` (``package.module.Name``) names.

    Args:
        where: stands in front of the sentence about what is wrong.
        mend: what there is to correct.

    Raises:
        UserError: it cannot be imported, or says so itself when it is.
    """
    module, _, attribute = target.rpartition(".")
    try:
        # not hydra.utils.get_object, which also logs several lines
        return getattr(importlib.import_module(module), attribute)
    except UserError:
        raise
    except Exception as error:  # whatever the module does when it is imported
        raise UserError(
            f"{where}: cannot import {target} ({type(error).__name__}: {first_line(error)}): correct {mend}, or put "
            "the file's folder on PYTHONPATH."
        ) from None


def settings_of(where: str, config: Mapping[str, Any]) -> tuple[type, dict[str, Any]]:
    """The class behind a config, and all settings of its constructor, as its annotations want them.

    Settings that are not given have their defaults.

    Raises:
        UserError: there is no such class, or a setting is unknown, missing, of the wrong type or out of bounds.
    """
    if not isinstance(config, Mapping) or not isinstance(config.get("_target_"), str):
        raise UserError(f"{where}={config!r} does not say which class it is: give it a _target_.")
    target = config["_target_"]
    cls = imported(where, target)
    if not isinstance(cls, type):
        raise UserError(f"{where}._target_={target} is no class: name one.")
    known = inspect.signature(cls).parameters
    given = {key: value for key, value in config.items() if key != "_target_"}
    for key in given:
        if key not in known:
            raise UserError(f"unknown key '{where}.{key}' of {cls.__name__}: {nearest(str(key), list(known))}")
    values = validated(adapters(cls.__init__), given, f"{where}.")  # type: ignore[misc]
    for key, parameter in known.items():
        if key not in values and parameter.default is parameter.empty:
            raise UserError(f"the config lacks '{where}.{key}' of {cls.__name__}: give it.")
    return cls, {key: values.get(key, parameter.default) for key, parameter in known.items()}


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".:!")
