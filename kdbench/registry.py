"""The methods that a configuration offers: one YAML each, found in Hydra's method groups, bundled or the user's."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from kdbench import shipped
from kdbench.declared import BENCH_KEYS, Declared, Stamp, declared, identity_of, stamp_of
from kdbench.docs import Docs, read_docs
from kdbench.errors import UserError
from kdbench.files import load_yaml
from kdbench.paths import conf_dir
from kdbench.taxonomy import load_taxonomy

if TYPE_CHECKING:
    from kdbench.method import Method


@dataclass(frozen=True)
class Entry:
    """A method's config: its name, class, default settings and search ranges (in Hydra's override grammar).

    What the class says of itself is read from its source where that is enough: lists need not import PyTorch.

    Attributes:
        stamp: of its YAML when it was read.
        source: what its source says, None where only importing it tells.
    """

    name: str
    target: str
    file: Path
    stamp: Stamp
    source: Declared | None

    @cached_property
    def _config(self) -> Mapping[str, Any]:
        return cast(Mapping[str, Any], _resolved(self.file, {}))

    @property
    def settings(self) -> Mapping[str, Any]:
        return {key: value for key, value in self._config.items() if key not in (*BENCH_KEYS, "_target_")}

    @property
    def search(self) -> Mapping[str, str]:
        return self._config.get("search") or {}

    @cached_property
    def cls(self) -> type[Method]:
        from kdbench.construct import method_class

        return method_class(self.name, {"_target_": self.target})

    def _says(self, name: str) -> Any:
        return self.source.values[name] if self.source else getattr(self.cls, name)

    @property
    def path(self) -> str:
        """The class, as records name it."""
        return self.source.path if self.source else f"{self.cls.__module__}.{self.cls.__qualname__}"

    @property
    def code(self) -> Path:
        """Where the class stands."""
        return self.source.file if self.source else Path(inspect.getsourcefile(self.cls) or "")

    @property
    def doc(self) -> str:
        """Its docstring; empty where there is none, as all of these texts."""
        return self.source.doc if self.source else inspect.cleandoc(vars(self.cls).get("__doc__") or "")

    @property
    def about(self) -> str:
        """The docstring of its module."""
        return self.source.about if self.source else inspect.getdoc(inspect.getmodule(self.cls)) or ""

    @property
    def beside(self) -> Mapping[str, str]:
        """Docstrings of the functions and classes in its file, by name, where its source was read."""
        return self.source.functions if self.source else {}

    @property
    def survey(self) -> Mapping[str, str]:
        return cast(Mapping[str, str], self._says("survey"))

    @property
    def tasks(self) -> frozenset[str]:
        return cast(frozenset[str], self._says("tasks"))

    @property
    def needs(self) -> frozenset[str]:
        return cast(frozenset[str], self._says("needs"))

    def defaults(self, teacher: str | None, student: str) -> Mapping[str, Any]:
        """The settings that its YAML gives on a pair, flattened, as a record's config holds them."""
        from kdbench.results.record import flatten

        config = _resolved(self.file, shipped.pair(teacher, student))
        return flatten({"name": self.name, **identity_of(self._says("added"), config)})

    @cached_property
    def docs(self) -> Docs:
        return read_docs(self.about, self.doc)

    @property
    def leaf(self) -> str:
        return str(self._says("leaf"))

    @property
    def title(self) -> str:
        return str(self._says("title"))

    @property
    def paper(self) -> str | None:
        return self._says("paper") or None

    @property
    def extension(self) -> bool:
        return bool(self._says("extension"))


def methods(config_dirs: Iterable[str | Path] = ()) -> list[Entry]:
    """All methods, in order of name; those in `config_dirs` (folders given as ``--config-dir``) included.

    Raises:
        UserError: a YAML or its class is broken, or one of `config_dirs` has no methods.
    """
    found = {}
    for folder in config_dirs:
        if not Path(folder, "method").is_dir():
            raise UserError(f"{folder} has no folder 'method' with YAML files: name the folder above it.")
    for folder in (conf_dir(), *map(Path, config_dirs)):
        for path in sorted((folder / "method").glob("*.yaml")):
            found[path.stem] = _read(path)
    return [found[name] for name in sorted(found)]


def shipped_settings(name: str, pair: Mapping[str, Any]) -> dict[str, Any]:
    """What the shipped YAML of a method gives it on a pair; empty where there is none."""
    path = conf_dir() / "method" / f"{name}.yaml"
    return deepcopy(_resolved(path, pair)) if name in shipped.names("method") else {}


_KEPT: dict[Path, Entry] = {}
"""What was read before: a run asks for all methods at its beginning and for its tables."""


def _read(path: Path) -> Entry:
    where = path.absolute()
    kept = _KEPT.get(where)
    if not (kept and kept.file == path and _is_as_it_was(kept)):
        kept = _KEPT[where] = _read_anew(path)
    return kept


def _is_as_it_was(entry: Entry) -> bool:
    """Whether neither its YAML nor a source that it rests on has changed."""
    read = {entry.file: entry.stamp, **entry.source.rests_on} if entry.source else {}
    with suppress(OSError):
        return bool(read) and {file: stamp_of(file) for file in read} == read
    return False


def _read_anew(path: Path) -> Entry:
    try:
        stamp = stamp_of(path)
        config = load_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from None
    target = config.get("_target_") if isinstance(config, dict) else None
    source = declared(target) if isinstance(target, str) else None
    if source is None or not _whole(source.values):  # what is wrong with it, importing it tells
        from kdbench.construct import method_class

        method_class(path.stem, config)
        source = None
    return Entry(path.stem, str(target), path, stamp, source)


def _whole(values: Mapping[str, Any]) -> bool:
    """Whether a class says all that is asked here, on a leaf of the survey's tree."""
    kinds = {"title": str, "paper": str, "extension": bool, "needs": frozenset, "tasks": frozenset}
    mappings = all(isinstance(values.get(name), dict) for name in ("survey", "added"))
    known = load_taxonomy().find(str(values.get("leaf"))) is not None
    return known and mappings and all(isinstance(values.get(name), kind) for name, kind in kinds.items())


def _resolved(path: Path, pair: Mapping[str, Any]) -> Any:
    """A method's YAML as it is composed on a pair, which may tune a value."""
    try:
        return _composed(path.stem, path.read_text(encoding="utf-8"), json.dumps(pair))
    except Exception as error:
        raise _unreadable(path, error) from None


@cache
def _composed(name: str, text: str, pair: str) -> Any:
    """Kept, as a report asks for the same ones of each of its tables, and OmegaConf takes its time."""
    from omegaconf import OmegaConf

    from kdbench.tuned import settings_on

    return settings_on(json.loads(pair), name, OmegaConf.create(text))


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} cannot be read ({str(error).splitlines()[0]}): mend the YAML.")
