"""Values that were tuned for a pair of networks: a method's YAML says ``key: ${tuned:DEFAULT}``.

That is the pair's value of this key where it has one, as ``pair.tuned.NAME.KEY``, else the default. What an experiment
or the command line says stands in the key's place, so it wins over both.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import Container, Node, OmegaConf

from kdbench.errors import UserError
from kdbench.results.record import flatten

_KEY = re.compile(r"method\.(.+)")
"""A setting of a method of the job, by its whole name; those of a teacher's own method belong to another pair."""


def tuned(default: Any, *, _node_: Node, _root_: Container) -> Any:
    """OmegaConf's resolver: the pair's value of the key where it stands, or `default`."""
    key = _KEY.fullmatch(_node_._get_full_key(None))
    return OmegaConf.select(_root_, f"pair.tuned.{key[1]}", default=default) if key else default


OmegaConf.register_new_resolver("tuned", tuned, replace=True)


def settings_on(pair: Mapping[str, Any], name: str, config: Any) -> Any:
    """The YAML of method `name`, as plain values, as it is composed on a pair."""
    full: Any = OmegaConf.create({"pair": dict(pair), "method": {name: config}})
    return OmegaConf.to_container(full, resolve=True)["method"][name]  # type: ignore[call-overload,index]


def looked_up(file: Path) -> list[str]:
    """The keys for which a method's YAML takes a tuned value, in this way or in one of its own.

    Raises:
        yaml.YAMLError: it is none.
    """
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    settings = flatten(content) if isinstance(content, dict) else {}
    return [key for key, value in settings.items() if isinstance(value, str) and re.search(r"\$\{.*tuned", value)]


def method_file(name: str, folders: Iterable[Path]) -> Path | None:
    """Where method `name` is configured, as Hydra finds it in folders of groups; None if in none."""
    return next((file for folder in folders if (file := folder / "method" / f"{name}.yaml").is_file()), None)


def check_tuned(config: Any, folders: Iterable[Path]) -> None:
    """Raises `UserError` if a composed config's pair has a tuned value for a chosen method that nothing would read."""
    found = OmegaConf.select(config, "pair.tuned")
    if not OmegaConf.is_dict(found):
        return
    values: Any = OmegaConf.to_container(found)
    folders = list(folders)
    for name in OmegaConf.select(config, "method") or ():
        file = method_file(name, folders)
        if file is None or not isinstance(values.get(name), dict):
            continue
        known = looked_up(file)
        for key in flatten(values[name]):
            if key not in known:
                raise UserError(
                    f"nothing would read pair.tuned.{name}.{key}: {file} takes tuned values for "
                    f"{', '.join(known) or 'no setting'}; write {key.rpartition('.')[2]}: ${{tuned:DEFAULT}} there, or "
                    f"set method.{name}.{key}."
                )
