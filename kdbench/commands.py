"""From a cell's config back to the command that trains it: the shipped choices nearest to it, and what differs.

Nothing is composed here; the settings are read from the YAML files that Hydra composes.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from kdbench import shipped
from kdbench.construct import method_class, method_identity
from kdbench.data.datasets import DatasetConfig
from kdbench.protocol import Protocol
from kdbench.registry import shipped_settings
from kdbench.results.record import canonical_json, flatten
from kdbench.targets import settings_of
from kdbench.text import BARE, in_hydra

Config = Mapping[str, Any]
DIGITS = 12
"""Of a hash, to name weights by."""


def overrides_of(config: Config, weights: Sequence[str] = ()) -> list[str]:
    """What `kdbench run` takes to train the cell of a record's `config`, in Hydra's grammar, without a shell's quotes.

    Args:
        weights: the sha256 of each of its teachers, by which those are named that were brought.

    Raises:
        UserError: the class of the method, or of its teacher's, cannot be imported.
    """
    teacher, student = config["teacher"], config["student"]
    pair, pair_name = _pair(teacher and teacher["name"], student)
    made = [*_method(config["method"], pair), f"pair={pair_name}"]
    names = {"student": student, **({"teacher": teacher["name"]} if teacher else {})}
    made += _differences(pair, pair, {**pair, **names}, "pair")
    made += _dataset(config["dataset"])
    made += _protocol(config["protocol"])
    if teacher and "weights" in teacher:
        made.append(f"teacher.weights={text(weights[0][:DIGITS])}")
    elif teacher:
        made += _teacher(teacher, config, pair)
    if others := config.get("teachers"):
        first = {} if "weights" in teacher else _spec(teacher, config["dataset"], config["protocol"], None)
        brought = dict.fromkeys(first.keys() - {"method", "seed"})  # is of none of the first one's settings
        told = [
            {**brought, "weights": weights[k][:DIGITS]} if "weights" in each else _other(each, first, config)
            for k, each in enumerate(others, start=1)
        ]
        made.append(f"teachers={text(told)}")
    return [*made, f"seed={config['seed']}"]


def text(value: Any) -> str:
    """A value in Hydra's grammar."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {text(item)}" for key, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(text, value))}]"
    return in_hydra(value) if isinstance(value, str) else repr(value)


def _method(config: Config, pair: Config) -> list[str]:
    name, want = str(config["name"]), {key: value for key, value in config.items() if key != "name"}
    cls = method_class(name, want)
    if not (there := shipped_settings(name, pair)):
        return ["method=[]", f"+method.{name}={text(want)}"]
    have = method_identity(cls, there)
    return [f"method={name}", *_differences(there, have, want, f"method.{name}", cls.added)]


def _pair(teacher: str | None, student: str) -> tuple[Config, str]:
    """The shipped pair that is nearest, and its name."""
    pairs = {name: shipped.config("pair", name) for name in shipped.names("pair")}
    usual = shipped.choice("pair")

    def distance(name: str) -> tuple[bool, bool, bool]:
        there = pairs[name]
        return there["student"] != student, teacher is not None and there["teacher"] != teacher, name != usual

    nearest = min(pairs, key=distance)
    return pairs[nearest], nearest


def _dataset(want: Config) -> list[str]:
    names = [name for name in shipped.names("dataset") if _same_source(shipped.config("dataset", name), want)]
    name = next((name for name in names if shipped.config("dataset", name)["name"] == want["name"]), None)
    name = name or next(iter(names), "streamed" if want.get("views") else "folder")
    there = shipped.config("dataset", name)
    settings = {key: value for key, value in there.items() if key != "root"}
    have = settings if "_target_" in there else _full(DatasetConfig.of(settings))
    full = want if "_target_" in want else _full(DatasetConfig.of(want))
    made, scenario = [f"dataset={name}"], full.get("scenario")
    if scenario:
        made += _scenario(scenario)
    have, want = ({key: value for key, value in each.items() if key != "scenario"} for each in (have, full))
    return [*made, *_differences(there, have, want, "dataset")]


def _same_source(there: Config, want: Config) -> bool:
    if "_target_" in want:
        return there.get("_target_") == want["_target_"]
    return "_target_" not in there and there["name"] == want["name"]


def _scenario(want: Config) -> list[str]:
    for name in shipped.names("scenario"):
        there = shipped.config("scenario", name)
        if there["_target_"] == want["_target_"]:
            cls, have = settings_of("dataset.scenario", there)
            later = {key: inspect.signature(cls).parameters[key].default for key in getattr(cls, "ADDED", ())}
            have = {"_target_": there["_target_"], **have}
            return [f"scenario={name}", *_differences(there, have, want, "dataset.scenario", later)]
    return [f"+dataset.scenario={text(want)}"]


def _protocol(config: Config) -> list[str]:
    want = _full(Protocol.of(config))

    def of(name: str) -> tuple[Config, list[str]]:
        there = shipped.composed("protocol", name)
        return there, list(_differences(there, _full(Protocol.of(there)), want, "protocol"))

    best = min(shipped.names("protocol"), key=lambda name: (name != want["name"], len(of(name)[1]), name))
    return [f"protocol={best}", *of(best)[1]]


def _full(model: BaseModel) -> dict[str, Any]:
    """All fields of a model, those too that its dump leaves out."""
    dump = model.model_dump(mode="json")
    fields = type(model).model_fields
    return {
        name: dump[name] if name in dump else field.get_default(call_default_factory=True)
        for name, field in fields.items()
        if name != "root"
    }


# ---- teachers -------------------------------------------------------------------------------------------------------


def _teacher(recipe: Config, config: Config, pair: Config) -> list[str]:
    """What makes the first teacher: the choices of groups, and what differs from their settings."""
    own = "teacher" in recipe
    there = shipped.config("teacher", "default")["method"]
    made = []
    if own:
        made.append("teacher=assistant")
        assistant = shipped.config("teacher", "assistant")
        (usual,) = (each["/method@method"] for each in assistant["defaults"] if isinstance(each, dict))
        there = shipped_settings(usual, pair)
    if not _same(recipe["method"], _identity(there)):
        shipped_as = [(name, shipped_settings(name, pair)) for name in shipped.names("method")]
        same_class = [(name, found) for name, found in shipped_as if found["_target_"] == recipe["method"]["_target_"]]
        if same_class and same_class[0][1]["_target_"] != there["_target_"]:
            name, found = min(same_class, key=lambda each: len(_method_at(each[1], recipe["method"])))
            made.append(f"{'' if own else '+'}method@teacher.method={name}")
            there = found if own else {**there, **found}
        made += _method_at(there, recipe["method"])
    spec = _spec(recipe, config["dataset"], config["protocol"], recipe["name"])
    made += _settings({key: value for key, value in spec.items() if key not in ("method", "teacher")}, "teacher")
    if own:
        made += _settings(_changed(spec["teacher"]), "teacher.teacher")
    return made


def _method_at(there: Config, want: Config) -> list[str]:
    cls = method_class("teacher", want)
    return list(_differences(there, _identity(there), want, "teacher.method", cls.added))


def _identity(settings: Config) -> dict[str, Any]:
    return method_identity(method_class("teacher", settings), settings)


def _settings(spec: Config, where: str) -> Iterator[str]:
    """Of a teacher's config, what is not as it ships."""
    for key, value in spec.items():
        if key == "dataset" and where == "teacher":
            # only what is merged into the cells' data is named setting by setting
            whole = {name: item for name, item in value.items() if isinstance(item, Mapping) and "_target_" in item}
            named = flatten({name: item for name, item in value.items() if name not in whole})
            yield from (f"teacher.dataset.{name}={text(item)}" for name, item in {**whole, **named}.items())
        else:
            yield f"{'+' if key in ('method', 'teacher') else ''}{where}.{key}={text(value)}"


def _spec(recipe: Config, dataset: Config, protocol: Config, pair: str | None) -> dict[str, Any]:
    """A recipe as `kdbench.teaching.recipe.TeacherConfig` states it beside a cell's data and protocol.

    What is as it ships is left out, but for the method.
    """
    epochs = recipe["protocol"]["epochs"]
    own, usual = _full(Protocol.of(recipe["protocol"])), _full(Protocol.of({**protocol, "epochs": epochs}))
    spec = {
        "name": recipe["name"] if recipe["name"] != pair else None,
        "seed": recipe["seed"] or None,
        "epochs": epochs if epochs != protocol["epochs"] else None,
        "protocol": {key: value for key, value in own.items() if not _same(value, usual[key])} or None,
        "dataset": _unlike(dataset, recipe["dataset"]) or None,
        "teacher": _spec(recipe["teacher"], recipe["dataset"], protocol, None) if "teacher" in recipe else None,
    }
    return {"method": recipe["method"], **{key: value for key, value in spec.items() if value is not None}}


def _changed(spec: Config) -> dict[str, Any]:
    """A spec without a method that is as it ships."""
    usual = shipped.config("teacher", "default")["method"]
    return {key: value for key, value in spec.items() if key != "method" or not _same(value, usual)}


def _other(recipe: Config, first: Config, config: Config) -> dict[str, Any]:
    """A further teacher by what differs from the first."""
    spec = _spec(recipe, config["dataset"], config["protocol"], None)
    usual = {"seed": 0}
    keys = dict.fromkeys((*spec, *first))
    return {key: spec.get(key, usual.get(key)) for key in keys if not _same(spec.get(key), first.get(key))}


def _unlike(dataset: Config, own: Config) -> dict[str, Any]:
    """What a teacher's data differ in from the cells', see `kdbench.data.datasets.differing`."""
    changes = {key: own.get(key) for key in (*dataset, *own) if not _same(dataset.get(key), own.get(key))}
    scenario, theirs = changes.get("scenario"), dataset.get("scenario")
    if scenario and theirs and scenario["_target_"] == theirs["_target_"] and not theirs.keys() - scenario.keys():
        changes["scenario"] = {key: each for key, each in scenario.items() if not _same(each, theirs.get(key))}
    return changes


# ---- settings -------------------------------------------------------------------------------------------------------


def _differences(there: Config, have: Config, want: Config, where: str, later: Config | None = None) -> list[str]:
    """Overrides that make `want` out of `have`.

    Args:
        there: what is written in the YAML, so that the rest must be added.
        later: settings that stay out of `want` where they have these values.
    """
    want = {**{key: value for key, value in (later or {}).items() if key in have}, **want}
    odd = [key for key in (*have, *want) if not BARE.fullmatch(str(key)) and not _same(have.get(key), want.get(key))]
    if odd:  # no keys that could be named one by one
        return [f"~{where}", f"+{where}={text(want)}"]
    made: list[str] = []
    for key in dict.fromkeys((*have, *want)):
        name, mine, theirs = f"{where}.{key}", have.get(key), want.get(key)
        if key not in want:
            made += [f"~{name}"] if key in there else []
        elif key in have and _same(mine, theirs):
            continue
        elif isinstance(mine, Mapping) and isinstance(theirs, Mapping):
            made += _differences(there.get(key) or {}, mine, theirs, name)
        else:
            made.append(f"{'' if key in there else '+'}{name}={text(theirs)}")
    return made


def _same(a: Any, b: Any) -> bool:
    return canonical_json(a) == canonical_json(b)


__all__: Sequence[str] = ["overrides_of", "text"]
