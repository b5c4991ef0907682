"""Cells: the points of the grid, and their identity."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_type_hints

import hydra
import torch
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, StrictInt, TypeAdapter, ValidationError, field_validator
from pydantic.errors import PydanticUserError
from pydantic_core import ErrorDetails

from kdbench.data.datasets import DatasetConfig
from kdbench.engine.route import EngineConfig
from kdbench.errors import UserError
from kdbench.method import Method
from kdbench.protocol import Protocol
from kdbench.results import record as rec
from kdbench.results.record import cell_id

BENCH_KEYS = ("search",)
"""Keys of a method's YAML that are the bench's, not the constructor's."""


@dataclass(frozen=True)
class Cell:
    """One point of the grid. `config` is its whole identity: what is not in there cannot change its numbers.

    A teacher's recipe is in the identity only of methods that need a teacher, so the student from scratch is one cell
    for all its teachers.
    """

    name: str
    method: type[Method]
    config: Mapping[str, Any]
    pinned_teacher: str | None = None

    @property
    def id(self) -> str:
        return cell_id(dict(self.config))

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def student(self) -> str:
        return str(self.config["student"])

    @property
    def teacher(self) -> Mapping[str, Any] | None:
        """The teacher's recipe, see `kdbench.engine.teachers`."""
        return self.config["teacher"]

    @property
    def pair(self) -> str:
        return f"{self.teacher['name']}-{self.student}" if self.teacher else self.student

    @property
    def protocol(self) -> Protocol:
        return Protocol.of(self.config["protocol"])

    def __str__(self) -> str:
        return f"{self.name} {self.pair} {self.config['dataset']['name']} seed {self.seed}"

    def named(self) -> rec.Cell:
        """Its names, as its record holds them."""
        return rec.Cell(
            id=self.id,
            method=self.name,
            pair=self.pair,
            student=self.student,
            teacher=str(self.teacher["name"]) if self.teacher else None,
            dataset=self.config["dataset"]["name"],
            protocol=self.protocol.name,
            seed=self.seed,
        )

    def described(self) -> rec.MethodInfo:
        """What its method's class says of itself, as its record holds it."""
        cls = self.method
        return rec.MethodInfo(
            cls=f"{cls.__module__}.{cls.__qualname__}",
            leaf=cls.leaf,
            paper=cls.paper or None,
            extension=cls.extension,
            control=cls.control,
            needs=sorted(cls.needs),
            survey=dict(cls.survey) or None,
        )

    def make_method(self) -> Method:
        """A fresh, unbound method object.

        Raises:
            UserError: the method's settings are wrong.
        """
        settings = {key: value for key, value in self.config["method"].items() if key != "name"}
        return construct(self.name, self.method, settings, self.protocol)


def title_of(cells: Sequence[Cell]) -> str:
    """What is training, in one line."""
    first = cells[0]
    if len(cells) == 1:
        return str(first)
    pair = next((cell.pair for cell in cells if cell.teacher), first.pair)
    names = ", ".join(dict.fromkeys(cell.name for cell in cells))
    return f"{len(cells)} in lockstep ({names}) {pair} {first.config['dataset']['name']} seed {first.seed}"


def construct(name: str, cls: type[Method], settings: Mapping[str, Any], protocol: Protocol) -> Method:
    """A method object from its config's settings, each checked against the constructor's annotation.

    ``_target_`` may be among them: it says which class, not how.

    Raises:
        UserError: a setting is unknown, missing or of the wrong type.
    """
    try:
        given = {key: value for key, value in settings.items() if key != "_target_"}
        return cls(**_typed(name, cls, given), protocol=protocol)
    except UserError:
        raise
    except Exception as error:
        what = re.sub(r"[\w.]*__init__\(\)", cls.__name__, first_line(error))
        raise UserError(f"method '{name}': {what}; mend its settings (method.{name}.*).") from None


def _typed(name: str, cls: type[Method], settings: Mapping[str, Any]) -> dict[str, Any]:
    hints: dict[str, Any] = {}
    for base in reversed(cls.__mro__):
        if issubclass(base, Method) and "__init__" in vars(base):
            with suppress(NameError):  # annotations that only a type checker can read
                hints |= get_type_hints(base.__init__)
    typed = dict(settings)
    for key, value in settings.items():
        if key in hints:
            try:
                typed[key] = TypeAdapter(hints[key], config=ANY_TYPE).validate_python(value)
            except ValidationError as error:
                raise UserError(f"{explain(error, f'method.{name}.{key}')}.") from None
            except PydanticUserError:  # not a type that pydantic knows
                continue
    return typed


def explain(error: ValidationError, prefix: str = "") -> str:
    """What is wrong, as ``KEY=VALUE: what is expected``; of several things the deepest, for that is the nearest."""

    def keys(details: ErrorDetails) -> list[str]:
        parts = map(str, details["loc"])
        kinds = ("constrained-", "literal[", "dict[", "mapping[", "function-")  # the branches of a union
        return [part for part in parts if part not in ("float", "int", "bool") and not part.startswith(kinds)]

    worst = max(error.errors(), key=lambda details: len(keys(details)))
    where = ".".join([*([prefix] if prefix else []), *keys(worst)])
    if worst["type"] == "missing":
        return f"the config lacks '{where}'"
    messages = [details["msg"] for details in error.errors() if keys(details) == keys(worst)]
    return f"{where}={worst['input']!r}: {' or '.join(message[0].lower() + message[1:] for message in messages)}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its type's name where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".:!")


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
    if not target:
        raise UserError(
            f"method '{name}' was not chosen but has settings, or its YAML lacks '_target_': add it to method=[...] or "
            f"give its YAML the header '# @package method.{name}' and a _target_."
        )
    module, _, attribute = str(target).rpartition(".")
    try:
        # not hydra.utils.get_class, which also logs several lines
        cls = getattr(importlib.import_module(module), attribute)
    except Exception as error:
        raise UserError(
            f"method '{name}': cannot import {target} ({type(error).__name__}: {first_line(error)}): correct "
            "_target_, or put the file's folder on PYTHONPATH."
        ) from None
    if not isinstance(cls, type) or not issubclass(cls, Method):
        raise UserError(f"method '{name}': {target} is not a kdbench.method.Method: derive the class from it.")
    return cls


ANY_TYPE = ConfigDict(arbitrary_types_allowed=True)
Text = Annotated[str, Field(min_length=1)]
Natural = Annotated[StrictInt, Field(ge=0)]


class Pair(BaseModel):
    teacher: Text
    student: Text


class TeacherConfig(BaseModel):
    """How an absent teacher is trained, see ``conf/teacher/default.yaml``."""

    method: dict[str, Any]
    seed: Natural = 0
    epochs: Annotated[StrictInt, Field(ge=1)] | None = None
    dataset: dict[str, Any] = Field(default_factory=dict)
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None


class Paths(BaseModel):
    results: Text
    work: Text


class CohortConfig(BaseModel):
    """How many cells train in lockstep: at most `max_students`, or as many as memory holds."""

    model_config = ConfigDict(extra="forbid")

    max_students: Literal["auto"] | Annotated[StrictInt, Field(ge=1)] = "auto"


class Job(BaseModel):
    """One composed config, resolved and checked: methods x seeds for one pair, data set and protocol."""

    method: Annotated[dict[str, Any], Field(min_length=1)]
    pair: Pair
    dataset: dict[str, Any]
    protocol: dict[str, Any]
    teacher: TeacherConfig
    seed: Annotated[list[Natural], Field(min_length=1)]
    paths: Paths
    trainer: dict[str, Any] = Field(default_factory=dict)
    logger: dict[str, Any] | None = None
    engine: EngineConfig = Field(default_factory=EngineConfig)
    cohort: CohortConfig = Field(default_factory=CohortConfig)
    force: bool = False
    checkpoint_seconds: Annotated[float, Field(ge=0)] = 30.0

    @field_validator("seed", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return value if isinstance(value, list) else [value]

    @classmethod
    def of(cls, cfg: DictConfig) -> Job:
        """Raises `UserError` naming the first setting that is wrong."""
        try:
            return cls.model_validate(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
        except OmegaConfBaseException as error:
            raise UserError(f"the config cannot be resolved: {first_line(error)}; mend that setting.") from None
        except ValidationError as error:
            where, value = error.errors()[0]["loc"], error.errors()[0]["input"]
            if where[0] == "seed":
                raise UserError(
                    f"seed={value}: give one non-negative integer or a list of them, as in seed=[0,1,2]."
                ) from None
            if where[0] == "method":
                raise UserError("no method was chosen: name one or more, as in method=[scratch,kd].") from None
            raise UserError(f"{explain(error)}; kdbench run --cfg job shows all settings.") from None


def cells_of(job: Job) -> list[Cell]:
    """All cells of one job: methods x seeds, seed by seed.

    Raises:
        UserError: a setting is wrong.
    """
    protocol = Protocol.of(job.protocol)
    check_optimizer(protocol)
    recipe = teacher_recipe(job)
    dataset = dataset_identity(job.dataset)
    cells = []
    for seed in dict.fromkeys(job.seed):
        for name, config in job.method.items():
            cls = method_class(name, config)
            settings = method_identity(cls, config)
            construct(name, cls, settings, protocol)
            cell = Cell(
                name,
                cls,
                {
                    "method": {"name": name, **settings},
                    "student": job.pair.student,
                    "teacher": recipe if "teacher" in cls.needs else None,
                    "dataset": dataset,
                    "protocol": protocol.model_dump(mode="json"),
                    "seed": seed,
                },
                job.teacher.sha256,
            )
            check_names(cell)
            cells.append(cell)
    return cells


def check_names(cell: Cell) -> None:
    """Raises `UserError` if a record could not hold the cell's names, or what its method's class says of itself."""
    try:
        cell.named(), cell.described()
    except ValidationError as error:
        raise UserError(f"{cell.name!r} cannot be recorded: {explain(error)}; mend that name.") from None
    except AttributeError as error:
        raise UserError(
            f"method '{cell.name}': {first_line(error)}; give its class 'leaf', 'paper' and 'title'."
        ) from None


def method_identity(cls: type[Method], config: Mapping[str, Any]) -> dict[str, Any]:
    """A method's settings as they enter an id: without the bench's keys, and without those in `Method.added` that have
    the value from before they came."""
    return {
        key: value
        for key, value in config.items()
        if key not in BENCH_KEYS and not (key in cls.added and value == cls.added[key])
    }


def check_optimizer(protocol: Protocol) -> None:
    """Raises `UserError` if the protocol's optimiser cannot be made."""
    instantiate("protocol.optimizer", protocol.optimizer, [torch.nn.Parameter(torch.zeros(1))])


def dataset_identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """A data set's validated settings, without where it lies on this machine."""
    return DatasetConfig.of(config).model_dump(mode="json", exclude={"root"})


def teacher_recipe(job: Job) -> dict[str, Any]:
    """How the teacher of a job is trained: the job's data set and protocol, but for what `teacher` says otherwise."""
    teacher, protocol = job.teacher, Protocol.of(job.protocol)
    changes = {"epochs": teacher.epochs} if teacher.epochs else {}
    cls = method_class("teacher", teacher.method)
    method = method_identity(cls, teacher.method)
    construct("teacher", cls, method, protocol)
    return {
        "name": job.pair.teacher,
        "method": method,
        "dataset": dataset_identity({**job.dataset, **teacher.dataset}),
        "protocol": protocol.model_copy(update=changes).model_dump(mode="json"),
        "seed": teacher.seed,
    }
