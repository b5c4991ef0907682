"""Where data come from: a prepared folder, or whatever class ``dataset._target_`` names."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Protocol

from omegaconf import OmegaConf

from kdbench.data.datasets import Dataset, DatasetConfig
from kdbench.errors import UserError
from kdbench.targets import imported, settings_of


class Source(Protocol):
    """Whatever is made of the keys of a ``conf/dataset/*.yaml`` and can do these two."""

    def identity(self) -> dict[str, Any]:
        """What tells it from other data, as plain values that make the same source again; no place on this machine."""
        ...

    def build(self) -> Dataset:
        """The data.

        Raises:
            UserError: they are missing, or a setting does not fit them.
        """
        ...


def keys_of(fields: Mapping[str, Any]) -> list[str]:
    """What may be said of the source of a data set's configuration, but for where it lies, which is said once for all.

    Raises:
        UserError: its class cannot be imported.
    """
    if "_target_" in fields:
        return list(inspect.signature(imported("dataset._target_", str(fields["_target_"]), "its path")).parameters)
    return [key for key in DatasetConfig.model_fields if key != "root"]


def source_of(fields: Mapping[str, Any]) -> Source:
    """The source of a data set's configuration: `DatasetConfig`, unless its ``_target_`` names another class.

    Raises:
        UserError: an unknown key, a bad value, or a class that cannot be had.
    """
    if "_target_" not in fields:
        return DatasetConfig.of(fields)
    plain: Any = OmegaConf.to_container(fields, resolve=True) if OmegaConf.is_config(fields) else fields
    if plain.get("scenario") is not None:
        raise UserError(
            f"a scenario poses data that lie in a folder, and {plain['_target_']} makes its own: set scenario=null."
        )
    made, settings = settings_of("dataset", {key: plain[key] for key in plain if key not in ("root", "scenario")})
    source: Source = made(**settings)
    return source
