"""Cells: the points of the grid, and their identity."""

from __future__ import annotations

import difflib
import importlib
import inspect
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import hydra
import torch
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
    field_validator,
)

from kdbench.data.datasets import DatasetConfig
from kdbench.engine.route import EngineConfig
from kdbench.engine.source import source_hash
from kdbench.errors import UserError, nearest
from kdbench.method import Method
from kdbench.protocol import Protocol
from kdbench.results import record as rec
from kdbench.results.record import cell_id
from kdbench.settings import adapters, explain, validated
from kdbench.taxonomy import load_taxonomy

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
            source=source_hash(cls),
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


def construct(
    name: str, cls: type[Method], settings: Mapping[str, Any], protocol: Protocol, where: str | None = None
) -> Method:
    """A method object from its config's settings, each checked against the constructor's annotation.

    ``_target_`` may be among them: it says which class, not how. They stand at `where` in the config, by default under
    ``method.NAME``.

    Raises:
        UserError: a setting is unknown, missing, of the wrong type or out of bounds.
    """
    where = where or f"method.{name}"
    try:
        given = {key: value for key, value in settings.items() if key != "_target_"}
        known = {key: check for base in reversed(cls.__mro__) for key, check in _adapters(base).items()}
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
    _check_declarations(name, cls)
    return cls


def _check_declarations(name: str, cls: type[Method]) -> None:
    """Raises `UserError` for what the class says of itself, if a record could not be made of it after its training."""
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
    }
    for key, kind in kinds.items():
        if not hasattr(cls, key):
            raise UserError(f"method '{name}': {cls.__name__} does not say its {key}: add `{key} = ...` to the class.")
        value = getattr(cls, key)
        if isinstance(value, property):  # one that depends on the settings
            continue
        try:
            TypeAdapter(kind).validate_python(dict(value) if isinstance(value, Mapping) else value)
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


Text = Annotated[str, Field(min_length=1)]
Natural = Annotated[StrictInt, Field(ge=0, lt=2**63)]


class _Config(BaseModel):
    """Settings of which none is passed over: an unknown one is an error."""

    model_config = ConfigDict(extra="forbid")


class Pair(_Config):
    """Two networks; `tuned` are settings of methods that belong to just these, which methods' YAML files look up."""

    teacher: Text
    student: Text
    tuned: dict[str, dict[str, Any]] = Field(default_factory=dict)


class TeacherConfig(_Config):
    """How an absent teacher is trained, see ``conf/teacher/default.yaml``."""

    method: dict[str, Any]
    seed: Natural = 0
    epochs: Annotated[StrictInt, Field(ge=1)] | None = None
    dataset: dict[str, Any] | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None


class Paths(_Config):
    results: Text
    work: Text


class TrainerConfig(_Config):
    """What may be said of Lightning's trainer: where to compute and how to watch, nothing that changes a number."""

    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps"] = "auto"
    devices: Literal["auto"] | Annotated[StrictInt, Field(ge=1)] | Annotated[list[Natural], Field(min_length=1)] = 1
    deterministic: StrictBool | Literal["warn"] | None = None
    benchmark: StrictBool | None = None
    profiler: Literal["simple", "advanced", "pytorch"] | None = None
    detect_anomaly: StrictBool = False


INSTEAD = {
    "gradient_clip_val": "set protocol.clip_norm",
    "gradient_clip_algorithm": "set protocol.clip_norm",
    "accumulate_grad_batches": "set protocol.accumulate",
    "precision": "set protocol.precision",
    "max_epochs": "set protocol.epochs",
    "check_val_every_n_epoch": "set protocol.eval_every",
    "fast_dev_run": "set debug=fast",
    "limit_train_batches": "set debug=fast, or for fewer images dataset.per_class",
    "limit_val_batches": "set debug=fast",
    "overfit_batches": "set debug=fast, or for fewer images dataset.per_class",
    "max_steps": "set protocol.epochs",
    "max_time": "stop it when you like, and repeat the command to go on",
    "logger": "set logger=csv, tensorboard or wandb",
    "enable_checkpointing": "set checkpoint_seconds",
    "default_root_dir": "set paths.work",
    "num_nodes": "start several sweeps on one store",
    "strategy": "start several sweeps on one store",
}
"""What to do instead of setting something of Lightning's trainer that a cell's numbers depend on."""


class CohortConfig(_Config):
    """How many cells train in lockstep: at most `max_students`, or as many as memory holds."""

    max_students: Literal["auto"] | Annotated[StrictInt, Field(ge=1)] = "auto"


class Job(_Config):
    """One composed config, resolved and checked: methods x seeds for one pair, data set and protocol.

    `debug` is ``fast`` for a trial of everything in a few batches, of which nothing is kept.
    """

    method: Annotated[dict[str, Any], Field(min_length=1)]
    pair: Pair
    dataset: dict[str, Any]
    protocol: dict[str, Any]
    teacher: TeacherConfig
    seed: Annotated[list[Natural], Field(min_length=1)]
    paths: Paths
    trainer: TrainerConfig = Field(default_factory=TrainerConfig)
    logger: dict[str, Any] | None = None
    engine: EngineConfig = Field(default_factory=EngineConfig)
    cohort: CohortConfig = Field(default_factory=CohortConfig)
    force: StrictBool = False
    debug: Literal["fast"] | None = None
    checkpoint_seconds: Annotated[float, Field(ge=0, strict=True)] = 30.0

    @field_validator("seed", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return value if isinstance(value, list) else [value]

    @classmethod
    def of(cls, cfg: DictConfig) -> Job:
        """Raises `UserError` naming the first setting that is wrong."""
        try:
            plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            raise UserError(f"the config cannot be resolved: {first_line(error)}; mend that setting.") from None
        assert isinstance(plain, dict)
        for name, value in _numbers(plain):
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{name}={value}: give a finite number.")
            if isinstance(value, int) and abs(value) >= 2**63:
                raise UserError(f"{name}={str(value)[:20]}... has more than 64 bits: give a smaller number.")
        try:
            return cls.model_validate(plain)
        except ValidationError as error:
            first = error.errors()[0]
            where, value = first["loc"], first["input"]
            if where[0] == "seed" and first["type"] != "missing":
                raise UserError(
                    f"seed={value}: give one non-negative integer or a list of them, as in seed=[0,1,2]."
                ) from None
            if where[0] == "method":
                raise UserError("no method was chosen: name one or more, as in method=[scratch,kd].") from None
            if first["type"] == "extra_forbidden":
                raise UserError(_unknown(*map(str, where))) from None
            raise UserError(f"{explain(error)}; kdbench run --cfg job shows all settings.") from None


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a config, with its dotted name."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(item, name)


def _unknown(*where: str) -> str:
    """What to say of a setting that nothing reads."""
    name = ".".join(where)
    if where[0] == "trainer":
        instead = INSTEAD.get(where[1], f"choose from {', '.join(TrainerConfig.model_fields)}")
        return f"{name} is not for the user to set, as a cell's numbers may depend on it: {instead}."
    models: dict[str, type[BaseModel]] = {
        "pair": Pair,
        "teacher": TeacherConfig,
        "paths": Paths,
        "cohort": CohortConfig,
        "engine": EngineConfig,
    }
    known = models[where[0]] if len(where) > 1 else Job
    return f"there is no setting '{name}', so nothing would read it: {nearest(where[-1], list(known.model_fields))}"


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
        if key not in BENCH_KEYS and not (key in cls.added and _same(value, cls.added[key]))
    }


def _same(a: Any, b: Any) -> bool:
    """Equality for which ``true`` is not 1."""
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


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


def dataset_identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """A data set's validated settings, without where it lies on this machine."""
    return DatasetConfig.of(config).model_dump(mode="json", exclude={"root"})


def teacher_recipe(job: Job) -> dict[str, Any]:
    """How the teacher of a job is trained: the job's data set and protocol, but for what `teacher` says otherwise."""
    teacher, protocol = job.teacher, Protocol.of(job.protocol)
    changes = {"epochs": teacher.epochs} if teacher.epochs else {}
    cls = method_class("teacher", teacher.method)
    method = method_identity(cls, teacher.method)
    construct("teacher", cls, method, protocol, "teacher.method")
    own = teacher.dataset or {}
    known = [field for field in DatasetConfig.model_fields if field != "root"]  # where data lie is said once for all
    for key in own:
        if key not in known:
            raise UserError(f"unknown key 'teacher.dataset.{key}': choose from {', '.join(known)}.")
    return {
        "name": job.pair.teacher,
        "method": method,
        "dataset": dataset_identity({**job.dataset, **own}),
        "protocol": protocol.model_copy(update=changes).model_dump(mode="json"),
        "seed": teacher.seed,
    }
