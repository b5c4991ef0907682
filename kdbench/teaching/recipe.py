"""Recipes: how a teacher is trained, which with its data is what it is known by."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, ValidationError

from kdbench.construct import Text, check_optimizer, construct, method_class, method_identity
from kdbench.data.datasets import differing
from kdbench.data.sources import keys_of, source_of
from kdbench.errors import UserError, nearest
from kdbench.networks import spelled
from kdbench.protocol import Protocol as TrainingProtocol
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
        seed: of its training; ``run``: each run has a teacher of its own, trained with the run's seed.
        epochs: None for as many as the protocol's, which is the cells' but for what `protocol` says otherwise.
        weights: the beginning of the sha256 of a teacher that is there: just that one, however it came to be.
        teacher: of its own, where its method needs one: an assistant's, a generation's.
    """

    name: Network | None = None
    method: dict[str, Any]
    seed: Natural | Literal["run"] = 0
    epochs: Annotated[StrictInt, Field(ge=1)] | None = None
    dataset: dict[str, Any] | None = None
    protocol: dict[str, Any] | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    weights: Annotated[str, Field(pattern=r"^[0-9a-f]{6,64}$")] | None = None
    teacher: TeacherConfig | None = None

    def shortened(self, known: Known) -> TeacherConfig:
        """For a trial: an epoch each, and no weights in particular."""
        changes: dict[str, Any] = {"epochs": 1, "sha256": None, "weights": None}
        if self.weights:
            recipe = known(self.weights).recipe
            pixels = {key: recipe["dataset"][key] for key in ("mean", "std") if key in recipe["dataset"]}
            return self.model_copy(update={**changes, "name": recipe["name"], "dataset": pixels or None})
        return self.model_copy(update={**changes, "teacher": self.teacher and self.teacher.shortened(known)})


class Found(Protocol):
    """A teacher that is there, as its card says."""

    @property
    def recipe(self) -> dict[str, Any]: ...

    @property
    def sha256(self) -> str: ...


Known = Callable[[str], Found]
"""The teacher whose sha256 begins so; raises `UserError` where there is none, or more than one."""


def name_of(recipe: Mapping[str, Any]) -> str:
    """What tells a recipe from all others."""
    return digest(dict(recipe))


def dataset_identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """A data set's validated settings, without where it lies on this machine."""
    return source_of(config).identity()


def recipe_of(
    teacher: TeacherConfig,
    dataset: Mapping[str, Any],
    protocol: TrainingProtocol,
    *,
    known: Known,
    pair: str | None = None,
    where: str = "teacher",
) -> dict[str, Any]:
    """How a teacher is trained: on the cells' data set, by their protocol, but for what its config says otherwise. Or
    how the one was made that its config names by its weights.

    Args:
        dataset: the cells' data set, as it was configured.
        known: where such a one is looked up.
        pair: the architecture where `teacher` names none.
        where: it stands in the config.

    Raises:
        UserError: a setting is wrong, or it needs a teacher of its own and has none, or the reverse.
    """
    if teacher.weights:
        return _of_weights(teacher, known, where)
    name = teacher.name or pair
    if name is None:
        raise UserError(f"{where} names no network: give {where}.name, such as resnet56.")
    cells, protocol = protocol, _by(teacher, protocol, where)
    cls = method_class("teacher", teacher.method)
    method = method_identity(cls, teacher.method)
    construct("teacher", cls, method, protocol, f"{where}.method")
    own = teacher.dataset or {}
    keys = keys_of(dataset)
    for key in own:
        if key not in keys:
            raise UserError(f"unknown key '{where}.dataset.{key}': choose from {', '.join(keys)}.")
    shown = differing(dataset, own)
    recipe = {
        "name": name,
        "method": method,
        "dataset": dataset_identity(shown),
        "protocol": protocol.model_dump(mode="json"),
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
    recipe["teacher"] = recipe_of(teacher.teacher, shown, cells, known=known, where=f"{where}.teacher")
    return recipe


def _by(teacher: TeacherConfig, protocol: TrainingProtocol, where: str) -> TrainingProtocol:
    """The cells' protocol with the teacher's own fields and epochs."""
    own = {**(teacher.protocol or {}), **({"epochs": teacher.epochs} if teacher.epochs else {})}
    if not own:
        return protocol
    try:
        changed = TrainingProtocol.of({**protocol.model_dump(), **own})
        check_optimizer(changed)
    except UserError as error:
        raise UserError(f"{where}.protocol: {error}") from None
    return changed


def _of_weights(teacher: TeacherConfig, known: Known, where: str) -> dict[str, Any]:
    """The recipe of the teacher that a config names by its weights; nothing else that it says may go unread."""
    assert teacher.weights
    recipe = known(teacher.weights).recipe
    if teacher.name not in (None, recipe["name"]):
        raise UserError(
            f"{where}.weights={teacher.weights} are of a {recipe['name']}, not of {teacher.name}: leave out "
            f"{where}.name."
        )
    for key in ("epochs", "dataset", "protocol", "teacher"):
        if getattr(teacher, key) is not None:
            raise UserError(
                f"{where}.{key} says how a teacher is trained, and {where}.weights={teacher.weights} names one that is "
                "there: leave out one of them."
            )
    return recipe


def further(teacher: TeacherConfig, others: Sequence[Mapping[str, Any]]) -> list[TeacherConfig]:
    """The teachers beside the first one, each given by what differs from it.

    Raises:
        UserError: an unknown setting or a bad value.
    """
    first = teacher.model_dump(exclude_unset=True, exclude={"sha256", "weights"})
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
