"""Recipes: how a teacher is trained, which with its data is what it is known by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, ValidationError

from kdbench.construct import Text, construct, method_class, method_identity
from kdbench.data.datasets import differing
from kdbench.data.sources import keys_of, source_of
from kdbench.errors import UserError, nearest
from kdbench.networks import spelled
from kdbench.protocol import Protocol
from kdbench.results.record import digest
from kdbench.settings import explain

Natural = Annotated[StrictInt, Field(ge=0, lt=2**63)]


Network = Annotated[Text, BeforeValidator(spelled)]
"""A network's name, see `kdbench.networks`; or a mapping with its ``_target_``."""


class Settings(BaseModel):
    """Settings of which none is passed over: an unknown one is an error."""

    model_config = ConfigDict(extra="forbid")


class TeacherConfig(Settings):
    """How an absent teacher is trained, see ``conf/teacher/default.yaml``.

    Attributes:
        name: its architecture; None: the pair's teacher.
        teacher: of its own, where its method needs one: an assistant's, a generation's.
    """

    name: Network | None = None
    method: dict[str, Any]
    seed: Natural = 0
    epochs: Annotated[StrictInt, Field(ge=1)] | None = None
    dataset: dict[str, Any] | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    teacher: TeacherConfig | None = None

    def shortened(self) -> TeacherConfig:
        """For a trial: an epoch each, and no weights in particular."""
        own = self.teacher and self.teacher.shortened()
        return self.model_copy(update={"epochs": 1, "sha256": None, "teacher": own})


def name_of(recipe: Mapping[str, Any]) -> str:
    """What tells a recipe from all others."""
    return digest(dict(recipe))


def dataset_identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """A data set's validated settings, without where it lies on this machine."""
    return source_of(config).identity()


def recipe_of(
    teacher: TeacherConfig,
    dataset: Mapping[str, Any],
    protocol: Protocol,
    *,
    pair: str | None = None,
    where: str = "teacher",
) -> dict[str, Any]:
    """How a teacher is trained: on the cells' data set, by their protocol, but for what its config says otherwise.

    Args:
        dataset: the cells' data set, as it was configured.
        pair: the architecture where `teacher` names none.
        where: it stands in the config.

    Raises:
        UserError: a setting is wrong, or it needs a teacher of its own and has none, or the reverse.
    """
    name = teacher.name or pair
    if name is None:
        raise UserError(f"{where} names no network: give {where}.name, such as resnet56.")
    changes = {"epochs": teacher.epochs} if teacher.epochs else {}
    cls = method_class("teacher", teacher.method)
    method = method_identity(cls, teacher.method)
    construct("teacher", cls, method, protocol, f"{where}.method")
    own = teacher.dataset or {}
    known = keys_of(dataset)
    for key in own:
        if key not in known:
            raise UserError(f"unknown key '{where}.dataset.{key}': choose from {', '.join(known)}.")
    shown = differing(dataset, own)
    recipe = {
        "name": name,
        "method": method,
        "dataset": dataset_identity(shown),
        "protocol": protocol.model_copy(update=changes).model_dump(mode="json"),
        "seed": teacher.seed,
    }
    if "teachers" in cls.needs:
        raise UserError(f"{where}.method: {cls.__name__} needs several teachers: choose a method with one or none.")
    if "teacher" not in cls.needs:
        if teacher.teacher:
            raise UserError(
                f"{where}.teacher: {cls.__name__} needs no teacher, so nothing would read it: leave it out."
            )
        return recipe
    if teacher.teacher is None:
        raise UserError(
            f"{where}.method: {cls.__name__} needs a teacher of its own: say which with {where}.teacher, as "
            "teacher=assistant teacher.teacher.name=NETWORK does."
        )
    recipe["teacher"] = recipe_of(teacher.teacher, shown, protocol, where=f"{where}.teacher")
    return recipe


def further(teacher: TeacherConfig, others: Sequence[Mapping[str, Any]]) -> list[TeacherConfig]:
    """The teachers beside the first one, each given by what differs from it.

    Raises:
        UserError: an unknown setting or a bad value.
    """
    first = teacher.model_dump(exclude_unset=True, exclude={"sha256"})
    found = []
    for k, other in enumerate(others):
        try:
            found.append(TeacherConfig.model_validate({**first, **other}))
        except ValidationError as error:
            wrong = error.errors()[0]
            key = ".".join(map(str, wrong["loc"]))
            if wrong["type"] == "extra_forbidden":
                hint = nearest(key, list(TeacherConfig.model_fields))
                raise UserError(f"teachers[{k}] has an unknown setting '{key}': {hint}") from None
            raise UserError(f"teachers[{k}]: {explain(error)}.") from None
    return found
