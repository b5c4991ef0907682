"""From configs to what they name: methods and optimisers, each setting checked before it is used."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any

import hydra
import torch
from hydra.errors import HydraException
from omegaconf import DictConfig
from pydantic import Field, StrictBool, StrictStr, TypeAdapter, ValidationError

from kdbench.declared import identity_of
from kdbench.errors import UserError, nearest
from kdbench.method import Method
from kdbench.protocol import Protocol
from kdbench.results import record as rec
from kdbench.settings import adapters, validated
from kdbench.targets import first_line, imported
from kdbench.taxonomy import load_taxonomy

Text = Annotated[str, Field(min_length=1)]


def construct(
    name: str, cls: type[Method], settings: Mapping[str, Any], protocol: Protocol, where: str | None = None
) -> Method:
    """A method object from its config's settings, each checked against the constructor's annotation.

    ``_target_`` may be among them: it says which class, not how. They stand at `where` in the config, by default under
    ``method.NAME``. What is not among them has the value in `Method.added`, where there is one, as it has in an id.

    Raises:
        UserError: a setting is unknown, missing, of the wrong type or out of bounds.
    """
    where = where or f"method.{name}"
    try:
        given = {key: value for key, value in settings.items() if key != "_target_"}
        known = {key: check for base in reversed(cls.__mro__) for key, check in _adapters(base).items()}
        given = {key: value for key, value in cls.added.items() if key in known} | given
        method = cls(**validated(known, given, f"{where}."), protocol=protocol)
        method.check_weights(where)
        return method
    except UserError:
        raise
    except Exception as error:
        what = re.sub(r"[\w.]*__init__\(\)", cls.__name__, first_line(error))
        raise UserError(f"method '{name}': {what}; mend its settings ({where}.*).") from None


def _adapters(base: type) -> Mapping[str, TypeAdapter[Any]]:
    return adapters(base.__init__) if issubclass(base, Method) and "__init__" in vars(base) else {}


def instantiate(what: str, config: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
    """Hydra's, with one sentence about `what` for anything that goes wrong.

    Raises:
        UserError: the ``_target_`` cannot be imported, or refuses its arguments.
    """
    try:
        return hydra.utils.instantiate(dict(config), *args, **kwargs)
    except HydraException as error:
        cause = error.__cause__ or error
        raise UserError(f"{what}: {first_line(cause)}; mend its _target_ or arguments.") from None


def method_class(name: str, config: Any) -> type[Method]:
    """The class behind a method's config.

    Raises:
        UserError: no ``_target_``, not importable, or not a `Method`.
    """
    target = config.get("_target_") if isinstance(config, (DictConfig, dict)) else None
    if not target and name.startswith("_"):
        raise UserError(
            f"'{name}' stands in 'method' itself: a YAML of method=[...] lacks the header '# @package method.NAME' on "
            "its first line, above all comments."
        )
    if not target:
        raise UserError(
            f"method '{name}' was not chosen but has settings, or its YAML lacks '_target_': add it to method=[...] or "
            f"give its YAML the header '# @package method.{name}' and a _target_."
        )
    cls = imported(f"method '{name}'", str(target))
    if not isinstance(cls, type) or not issubclass(cls, Method):
        raise UserError(f"method '{name}': {target} is not a kdbench.method.Method: derive the class from it.")
    _check_declarations(name, cls)
    return cls


@cache
def _declarations() -> Mapping[str, TypeAdapter[Any]]:
    """What a class says of itself, and what checks that."""
    kinds: dict[str, Any] = {
        "leaf": Text,
        "title": Text,
        "paper": StrictStr,
        "terms": tuple[Text, ...],
        "needs": frozenset[str],
        "tasks": frozenset[str],
        "extension": StrictBool,
        "control": rec.MethodInfo.model_fields["control"].annotation,
        "survey": dict[str, str],
        "added": dict[str, Any],
        "earlier": frozenset[str],
    }
    return {key: TypeAdapter(kind) for key, kind in kinds.items()}


def _check_declarations(name: str, cls: type[Method]) -> None:
    """Raises `UserError` for what the class says of itself, if a record could not be made of it after its training."""
    for key, kind in _declarations().items():
        if not hasattr(cls, key):
            raise UserError(f"method '{name}': {cls.__name__} does not say its {key}: add `{key} = ...` to the class.")
        value = getattr(cls, key)
        if isinstance(value, property):  # one that depends on the settings
            continue
        try:
            kind.validate_python(dict(value) if isinstance(value, Mapping) else value)
        except ValidationError:
            raise UserError(
                f"method '{name}': {cls.__name__}.{key} = {value!r} is not as in kdbench.method.Method: mend it."
            ) from None
    known = [leaf.id for leaf in load_taxonomy().leaves]
    if cls.leaf not in known and difflib.get_close_matches(cls.leaf, known, cutoff=0.8):
        raise UserError(
            f"method '{name}': there is no leaf '{cls.leaf}' in the survey's tree: {nearest(cls.leaf, known)} "
            "kdbench methods shows them all; one of your own needs a name less like those."
        )


def method_identity(cls: type[Method], config: Mapping[str, Any]) -> dict[str, Any]:
    """A method's settings as they enter an id, see `identity_of`."""
    return identity_of(cls.added, config)


def check_optimizer(protocol: Protocol) -> None:
    """Raises `UserError` if the protocol's optimiser cannot be made."""
    settings = dict(protocol.optimizer)
    target = str(settings.pop("_target_"))
    try:
        module, _, name = target.rpartition(".")
        cls = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise UserError(
            f"protocol.optimizer._target_={target} cannot be imported ({first_line(error)}): name a class, such as "
            "torch.optim.SGD."
        ) from None
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        raise UserError(
            f"protocol.optimizer._target_={target} is no torch.optim.Optimizer: name one, such as torch.optim.SGD."
        )
    known = inspect.signature(cls).parameters
    for key, value in settings.items():
        if key not in known and not any(each.kind is each.VAR_KEYWORD for each in known.values()):
            raise UserError(
                f"protocol.optimizer.{key} is no setting of {name}: leave it out with ~protocol.optimizer.{key}."
            )
        if key in known and (kind := _unlike(value, known[key].default)):
            raise UserError(f"protocol.optimizer.{key}={value!r} is not what {name} takes there: give {kind}.")
    try:
        parameter = torch.nn.Parameter(torch.zeros(1))
        parameter.grad = torch.zeros(1)
        cls([parameter], **settings).step()
    except Exception as error:
        given = ", ".join(f"{key}={value}" for key, value in settings.items())
        raise UserError(
            f"protocol.optimizer: {name} with {given} cannot train a network ({first_line(error)}); mend that."
        ) from None


def _unlike(value: Any, default: Any) -> str | None:
    """What should be given where `default` stands, if `value` is of another kind; None where that cannot be told."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if isinstance(default, (int, float)):
        return None if number else "a number"
    if isinstance(default, tuple):
        same = isinstance(value, list) and len(value) == len(default)
        wrong = not same or any(map(_unlike, value, default))
        return f"a list of {len(default)} numbers" if wrong else None
    return None


def slots(protocol: Protocol) -> float:
    """How many numbers the protocol's optimiser keeps for each parameter, between steps: 1 with momentum, 2 of Adam."""
    parameter = torch.nn.Parameter(torch.zeros(100))
    optimizer = instantiate("protocol.optimizer", protocol.optimizer, [parameter])
    parameter.grad = torch.zeros(100)
    optimizer.step()
    kept = optimizer.state_dict()["state"].get(0, {}).values()
    return sum(value.numel() for value in kept if isinstance(value, torch.Tensor) and value.numel() > 1) / 100
