"""A method's settings: the annotations of its constructor say what they may be, inside the bench and outside alike."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, wraps
from types import UnionType
from typing import Annotated, Any, Final, Literal, ParamSpec, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, Discriminator, Field, Strict, Tag, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import ErrorDetails

from kdbench.errors import UserError

P = ParamSpec("P")

Temperature = Annotated[float, Field(gt=0)]
"""What logits are divided by in front of a softmax."""
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Strict(), Field(ge=0, allow_inf_nan=False)]
"""Of a loss term: terms are written so that less is better, and a negative weight would teach the opposite."""
RUN: Final = "run"
"""The word for the seed of the run, where a teacher or what data draw is to be each run's own."""
DrawSeed = Annotated[int, Strict(), Field(ge=0, lt=2**32)] | Literal["run"]
"""Of NumPy's ``RandomState``, by which data draw, or `RUN`."""


def of_run(config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """A recipe's or a data set's settings, with the seed of a run wherever one says `RUN`."""

    def resolved(key: str, value: Any) -> Any:
        if (key, value) == ("seed", RUN):
            return seed
        if isinstance(value, Mapping):
            return of_run(value, seed)
        return [resolved(key, each) for each in value] if isinstance(value, list) else value

    return {key: resolved(key, value) for key, value in config.items()}


def recipes_in(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The recipes of the teachers of the cell that has this config, as its run draws them."""
    recipes = [config["teacher"], *config.get("teachers", [])] if config["teacher"] else []
    return [of_run(recipe, int(config["seed"])) for recipe in recipes]


@dataclass(frozen=True)
class Ramp:
    """A weight that moves from `start` to `end` over the first `until` (a share of the stage's epochs).

    Either ``linear``, or ``gaussian``: by exp(-5 (1 - e/R)²) in the 0-based epoch e of R (Laine & Aila, ICLR 2017,
    arXiv:1610.02242).
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    start: Weight
    end: Weight
    until: Annotated[float, Strict(), Field(gt=0, le=1)] = 1.0
    curve: Literal["linear", "gaussian"] = "linear"

    def at(self, epoch: int, epochs: int) -> float:
        """Value in the 0-based `epoch` out of `epochs`; a line is one step up in the first, as epochs count from 1."""
        length = max(self.until * epochs, 1.0)
        if self.curve == "gaussian":
            progress = math.exp(-5 * (1 - min(epoch / length, 1.0)) ** 2)
        else:
            progress = min((epoch + 1) / length, 1.0)
        return self.start + (self.end - self.start) * progress


WeightOrRamp = Annotated[
    Annotated[Weight, Tag("number")] | Annotated[Ramp, Tag("ramp")],
    Discriminator(lambda value: "ramp" if isinstance(value, (Mapping, Ramp)) else "number"),
]

CONFIG = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)


def checked(init: Callable[P, None]) -> Callable[P, None]:
    """A constructor that compares what it is given with its annotations first.

    Raises:
        UserError: naming the class and the setting.
    """
    signature = inspect.signature(init)

    @wraps(init)
    def checking(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:  # Python's own says it well
            return init(*args, **kwargs)
        try:
            bound.arguments |= validated(adapters(init), bound.arguments)
        except UserError as error:
            raise UserError(f"{type(args[0]).__name__}: {error}") from None
        return init(*bound.args, **bound.kwargs)

    return checking


@cache
def adapters(init: Callable[..., None]) -> Mapping[str, TypeAdapter[Any]]:
    """What checks each annotated parameter: numbers strictly (neither ``true`` nor text is one), and finite."""
    found: dict[str, TypeAdapter[Any]] = {}
    with suppress(NameError):  # annotations that only a type checker can read
        for name, hint in get_type_hints(init, include_extras=True).items():
            with suppress(PydanticUserError):  # not a type that pydantic knows
                found[name] = TypeAdapter(_strict(hint), config=CONFIG)
    return found


def validated(known: Mapping[str, TypeAdapter[Any]], settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings as their annotations want them; those without one as they are.

    Raises:
        UserError: one is of the wrong type or out of bounds; `prefix` stands before its name.
    """
    values = dict(settings)
    for name in known.keys() & settings.keys():
        try:
            values[name] = known[name].validate_python(settings[name])
        except ValidationError as error:
            raise UserError(f"{explain(error, prefix + name)}.") from None
    return values


def _strict(hint: Any) -> Any:
    """The hint with every number in it strict. Not the whole: YAML has lists for tuples, and text for paths."""
    if hint in (int, float, bool):
        return Annotated[hint, Strict()]
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return Annotated[(_strict(args[0]), *hint.__metadata__)]
    if origin in (None, Literal, Callable) or not args:
        return hint
    parts = tuple(_strict(arg) for arg in args)
    return Union[parts] if origin in (Union, UnionType) else origin[parts]  # noqa: UP007  # of a tuple


def explain(error: ValidationError, prefix: str = "") -> str:
    """What is wrong, as ``KEY=VALUE: what is expected``; of several things the deepest, for that is the nearest."""

    def keys(details: ErrorDetails) -> list[str]:
        parts = map(str, details["loc"])
        kinds = ("constrained-", "literal[", "list[", "tuple[", "dict[", "mapping[", "function-")  # branches of a union
        branches = ("float", "int", "bool", "str", "number", "ramp")
        return [part for part in parts if part not in branches and not part.startswith(kinds)]

    worst = max(error.errors(), key=lambda details: len(keys(details)))
    where = ".".join([*([prefix] if prefix else []), *keys(worst)])
    if worst["type"] == "missing":
        return f"the config lacks '{where}'"
    messages = [details["msg"] for details in error.errors() if keys(details) == keys(worst)]
    text = worst["type"] == "string_type" and isinstance(worst["input"], (int, float))
    quoted = f" (write \"{where}='{worst['input']}'\" for a text)" if text else ""
    told = " or ".join(message[0].lower() + message[1:] for message in messages)
    return f"{where}={worst['input']!r}: {told}{quoted}"


__all__ = [
    "RUN",
    "DrawSeed",
    "Ramp",
    "Share",
    "Temperature",
    "Weight",
    "WeightOrRamp",
    "adapters",
    "checked",
    "explain",
    "of_run",
    "validated",
]
