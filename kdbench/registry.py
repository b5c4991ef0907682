"""The methods that a configuration offers: one YAML each, found in Hydra's method groups, bundled or the user's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kdbench import shipped
from kdbench.construct import BENCH_KEYS, method_class, method_identity
from kdbench.docs import Docs, docs_of
from kdbench.errors import UserError
from kdbench.method import Method
from kdbench.paths import conf_dir
from kdbench.results.record import flatten


@dataclass(frozen=True)
class Entry:
    """A method's config: its name, class, default settings and search ranges (in Hydra's override grammar)."""

    name: str
    cls: type[Method]
    settings: Mapping[str, Any]
    search: Mapping[str, str]
    file: Path

    @property
    def path(self) -> str:
        """The class, as records name it."""
        return f"{self.cls.__module__}.{self.cls.__qualname__}"

    @property
    def survey(self) -> Mapping[str, str]:
        return self.cls.survey

    @property
    def tasks(self) -> frozenset[str]:
        return self.cls.tasks

    def defaults(self, teacher: str | None, student: str) -> Mapping[str, Any]:
        """The settings that its YAML gives on a pair, flattened, as a record's config holds them."""
        config = _resolved(self.file, shipped.pair(teacher, student))
        return flatten({"name": self.name, **method_identity(self.cls, config)})

    @property
    def docs(self) -> Docs:
        return docs_of(self.cls)

    @property
    def leaf(self) -> str:
        return self.cls.leaf

    @property
    def title(self) -> str:
        return self.cls.title

    @property
    def paper(self) -> str | None:
        return self.cls.paper or None

    @property
    def extension(self) -> bool:
        return self.cls.extension


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


def _read(path: Path) -> Entry:
    name, config = path.stem, _resolved(path, {})
    cls = method_class(name, config)
    settings = {key: value for key, value in config.items() if key not in (*BENCH_KEYS, "_target_")}
    return Entry(name, cls, settings, config.get("search") or {}, path)


def _resolved(path: Path, pair: Mapping[str, Any]) -> Any:
    """A method's YAML as it is composed on a pair, which may tune a value."""
    try:
        full: Any = OmegaConf.create({"pair": dict(pair), "method": {path.stem: OmegaConf.load(path)}})
        return OmegaConf.to_container(full, resolve=True)["method"][path.stem]  # type: ignore[call-overload,index]
    except Exception as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}): mend the YAML.") from None
