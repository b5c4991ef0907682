"""Reproductions: published numbers with all that it takes to train them again (``conf/reproduction``).

One YAML is one group of claims, a source's table whose numbers share a setting. Its arms are what is trained: those
that the source reports, its baseline, and the controls that it lacks. Whatever stands in ``common`` and in an arm is
what one would write behind `kdbench run`: ``GROUP: NAME`` chooses, ``a.dotted.key: VALUE`` sets; the arm's word for a
key goes before the common one. A mapping in a group's place writes the group out.

Two readers need the settings of an arm. For Hydra it is a config of the group ``reproduction``, named ``NAME/ARM``, so
that all that the command line knows goes with it. The report asks hundreds of arms which cells they are, which Hydra
would take a tenth of a second each for: `Reproduction.config` composes the same in milliseconds (a test compares them).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError, model_validator

from kdbench import shipped
from kdbench.errors import UserError, nearest
from kdbench.files import load_yaml
from kdbench.paths import conf_dir
from kdbench.settings import explain
from kdbench.shipped import REPRODUCTION as GROUP

CHOSEN: Final = ("method", "pair", "dataset", "scenario", "protocol")
"""Groups of which `common` and arms may choose; anything else is a setting."""

Text = Annotated[str, Field(min_length=1)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$")]
Settings = dict[Text, Any]


class Reproduction(BaseModel):
    """A group of claims and how its numbers are trained; the keys of its YAML.

    Attributes:
        title: what it is about, as a heading.
        source: paper or repository@commit, and the place there.
        claimed: what the source says, in one or two sentences.
        selection: which epoch and run the source reports, as a clause.
        filled_in: what the source leaves open -> what was fixed for it before the first run, and why; what was changed
            after it says so.
        seeds: how many runs of each arm.
        common: settings of all arms.
        arms: name -> settings of its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)

    name: Name
    title: Text
    source: Text
    claimed: Text
    selection: Text
    filled_in: dict[Text, Text] = Field(default_factory=dict)
    seeds: Annotated[StrictInt, Field(ge=1)]
    common: Settings
    arms: Annotated[dict[Name, Settings], Field(min_length=1)]

    @model_validator(mode="after")
    def _each_arm_is_one_cell_and_seed(self) -> Reproduction:
        for arm in self.arms:
            settings = self.settings(arm)
            if "seed" in settings:
                raise ValueError(f"arm '{arm}' sets seed: the group's 'seeds' says how many")
            if isinstance(settings.get("scenario"), Mapping):
                raise ValueError(f"arm '{arm}' writes scenario out: write it as dataset.scenario")
            for group in ("method", "pair", "dataset", "protocol"):
                if not settings.get(group):
                    raise ValueError(f"arm '{arm}' has no {group}: give one there, or in common")
            if len(methods := _methods(settings)) != 1:
                raise ValueError(f"arm '{arm}' has {len(methods)} methods: give each an arm of its own")
        return self

    def settings(self, arm: str) -> dict[str, Any]:
        """What is set of an arm, as it is written; what is written out whole comes before a part of it."""
        together = {**self.common, **self.arms[arm]}
        return {key: together[key] for key in sorted(together, key=lambda key: key.count("."))}

    def node(self, arm: str) -> dict[str, Any]:
        """The arm as a config for Hydra, of the package ``_global_``."""
        settings = self.settings(arm)
        defaults: list[Any] = []
        rest: dict[str, Any] = {"seed": list(range(self.seeds))}
        for key, value in settings.items():
            if key not in CHOSEN:
                rest = _put(rest, key, value)
            elif isinstance(value, Mapping):
                defaults.append({f"override /{key}": None})
                rest = _put(rest, key, value)
            else:
                defaults.append({f"override /{key}": _methods(settings) if key == "method" else value})
        return {"defaults": [*defaults, "_self_"], **rest}

    def config(self, arm: str) -> dict[str, Any]:
        """The arm's config for its first seed, as Hydra composes it from `node`; interpolations are not resolved yet.

        Raises:
            UserError: it chooses what there is not.
        """
        settings = self.settings(arm)
        config: dict[str, Any] = {"teacher": shipped.composed("teacher", "default"), "teachers": []}
        for group in CHOSEN:
            value = settings.get(group)
            if isinstance(value, Mapping) or value is None:
                continue
            for name in _methods(settings) if group == "method" else [value]:
                if not (found := shipped.composed(group, name)):
                    raise UserError(
                        f"{self.name}/{arm}: there is no {group} '{name}': {nearest(name, shipped.names(group))}"
                    )
                where = {"method": f"method.{name}", "scenario": "dataset.scenario"}.get(group, group)
                config = _put(config, where, found)
        for key, value in settings.items():
            if key not in CHOSEN or isinstance(value, Mapping):
                config = _put(config, key, value)
        chosen = _methods(settings)
        config["method"] = {name: value for name, value in config["method"].items() if name in chosen}
        return {**config, "seed": 0, "paths": {"results": "results", "work": "runs"}}


def _methods(settings: Mapping[str, Any]) -> list[str]:
    chosen = settings.get("method", [])
    return [chosen] if isinstance(chosen, str) else list(chosen)


def _put(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """A config with a dotted key set; mappings are merged, as Hydra does."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return shipped.merged(config, value)


def read(path: Path) -> Reproduction:
    """Of its YAML.

    Raises:
        UserError: it cannot be read, or a key is missing, unknown or wrong.
    """
    try:
        return _group(path, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        first = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read ({first}): mend it.") from None


@cache
def _group(path: Path, text: str) -> Reproduction:
    """Kept, as a report asks for the same ones again and again."""
    content = load_yaml(text)
    if not isinstance(content, dict):
        raise UserError(f"{path} is no mapping: begin with a title, see CONTRIBUTING.md.")
    try:
        return Reproduction.model_validate({**content, "name": path.stem})
    except ValidationError as error:
        raise UserError(f"{path}: {explain(error)}; see CONTRIBUTING.md, 'To reproduce a published number'.") from None


def files(folders: Iterable[Path] = ()) -> dict[str, Path]:
    """Name -> file, of the shipped configuration and of further `folders` of groups."""
    found = [path for folder in (conf_dir(), *folders) for path in sorted((folder / GROUP).glob("*.yaml"))]
    return {path.stem: path for path in found}


def find(name: str, folders: Iterable[Path] = ()) -> Reproduction:
    """By its name.

    Raises:
        UserError: there is none; the message says what there is.
    """
    known = files(folders)
    if name not in known:
        raise UserError(f"there is no {GROUP} '{name}': {nearest(name, list(known), f'see {conf_dir() / GROUP}.')}")
    return read(known[name])


def split(word: str, folders: Iterable[Path] = ()) -> tuple[Reproduction, list[str]]:
    """What ``NAME`` or ``NAME/ARM`` stands for: the group, and its arms or the one.

    Raises:
        UserError: there is no such group or arm.
    """
    name, slash, arm = word.partition("/")
    group = find(name, folders)
    if slash and arm not in group.arms:
        raise UserError(f"{GROUP} {name} has no arm '{arm}': {nearest(arm, list(group.arms))}")
    return group, [arm] if slash else list(group.arms)


@cache
def load_reproductions() -> dict[str, Reproduction]:
    """All that ship, by name.

    Raises:
        UserError: one of them is wrong.
    """
    return {name: read(path) for name, path in files().items()}
