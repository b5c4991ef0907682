"""The configuration that ships with kdbench, as data: YAML files that are read, without importing what they name."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from kdbench.files import load_yaml
from kdbench.paths import conf_dir

REPRODUCTION = "reproduction"
"""The group of published settings, see `kdbench.reproductions`, which is not imported before one is asked for."""


def names(group: str) -> list[str]:
    """The choices of a Hydra group, sorted."""
    return sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))


@cache
def config(group: str, name: str) -> dict[str, Any]:
    """A file of a Hydra group as it is written, interpolations unresolved; empty where there is none."""
    path = conf_dir() / group / f"{name}.yaml"
    if not re.fullmatch(r"[\w.+-]+", name) or not path.is_file():
        return {}
    content = load_yaml(path.read_text(encoding="utf-8"))
    return content if isinstance(content, dict) else {}


def composed(group: str, name: str) -> dict[str, Any]:
    """A file of a Hydra group with those of its own group that it builds upon, as its ``defaults`` say."""
    own = dict(config(group, name))
    whole: dict[str, Any] = {}
    for base in own.pop("defaults", ["_self_"]):
        whole = merged(whole, own if base == "_self_" else composed(group, base))
    return whole


def merged(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """A mapping with another one laid over it, mapping by mapping, as Hydra does."""
    whole = {**below, **above}
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(old := below.get(key), dict):
            whole[key] = merged(old, value)
    return whole


@cache
def choice(group: str) -> str | None:
    """What `kdbench run` takes of a Hydra group where nothing is said."""
    run = load_yaml((conf_dir() / "run.yaml").read_text(encoding="utf-8"))
    return next((each[group] for each in run["defaults"] if isinstance(each, dict) and group in each), None)


@cache
def _pairs() -> dict[tuple[str, str], dict[str, Any]]:
    pairs = [config("pair", name) for name in names("pair")]
    return {(str(pair.get("teacher")), str(pair.get("student"))): pair for pair in pairs}


def pair(teacher: str | None, student: str) -> dict[str, Any]:
    """What ships for a pair of architectures, values tuned for it among them; empty for a pair that does not ship."""
    return _pairs().get((str(teacher), student), {})


@cache
def _packages() -> frozenset[str]:
    targets = [str(config("method", name).get("_target_", "")) for name in names("method")]
    return frozenset(target.partition(".")[0] for target in targets)


def is_third_party(path: str) -> bool:
    """Whether the class of a method (dotted path) is of a package from which no shipped method comes."""
    return path.partition(".")[0] not in _packages()
