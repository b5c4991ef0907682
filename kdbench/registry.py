"""The methods that a configuration offers: one YAML each, found in Hydra's method groups, bundled or the user's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kdbench.engine.cell import BENCH_KEYS, method_class
from kdbench.errors import UserError
from kdbench.method import Method
from kdbench.paths import conf_dir


@dataclass(frozen=True)
class Entry:
    """A method's config: its name, class, default settings and search ranges (in Hydra's override grammar)."""

    name: str
    cls: type[Method]
    settings: Mapping[str, Any]
    search: Mapping[str, str]

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
        UserError: a YAML or its class is broken.
    """
    found = {}
    for folder in (conf_dir(), *map(Path, config_dirs)):
        for path in sorted((folder / "method").glob("*.yaml")):
            found[path.stem] = _read(path)
    return [found[name] for name in sorted(found)]


def _read(path: Path) -> Entry:
    name = path.stem
    try:
        # as in a composed config, where pairs may tune a value
        full: Any = OmegaConf.create({"pair": {}, "method": {name: OmegaConf.load(path)}})
        config: Any = OmegaConf.to_container(full, resolve=True)["method"][name]  # type: ignore[call-overload,index]
    except Exception as error:
        raise UserError(f"{path} cannot be read ({str(error).splitlines()[0]}): mend the YAML.") from None
    cls = method_class(name, config)
    settings = {key: value for key, value in config.items() if key not in (*BENCH_KEYS, "_target_")}
    return Entry(name, cls, settings, config.get("search") or {})
