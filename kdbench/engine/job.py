"""One composed config, read and checked; what is wrong with it is said in one sentence."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import BaseModel, Field, StrictBool, StrictInt, ValidationError, field_validator

import kdbench.tuned  # noqa: F401  # the resolver that configs name
from kdbench.compute.route import EngineConfig
from kdbench.construct import Text
from kdbench.errors import UserError, nearest
from kdbench.settings import explain
from kdbench.targets import first_line
from kdbench.teaching.recipe import Natural, Network, Settings, TeacherConfig


class Pair(Settings):
    """Two networks; `tuned` are settings of methods that belong to just these, see `kdbench.tuned`."""

    teacher: Network
    student: Network
    tuned: dict[str, dict[str, Any]] = Field(default_factory=dict)


class Paths(Settings):
    results: Text
    work: Text


class TrainerConfig(Settings):
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
    "num_nodes": "train several cells at a time with cluster=slurm",
    "strategy": "train several cells at a time with cluster=ray_gpus or cluster=slurm",
}
"""What to do instead of setting something of Lightning's trainer that a cell's numbers depend on."""


class CohortConfig(Settings):
    """How many cells train in lockstep: at most `max_students`, or as many as memory holds."""

    max_students: Literal["auto"] | Annotated[StrictInt, Field(ge=1)] = "auto"


class Job(Settings):
    """One composed config, resolved and checked: methods x seeds for one pair, data set and protocol.

    `debug` is ``fast`` for a trial of everything in a few batches, of which nothing is kept. `force` trains finished
    cells again, ``replace`` also where git tracks their records. `keep` is ``student`` for the weights of each cell.
    `verbose` is about what is printed.
    """

    method: Annotated[dict[str, Any], Field(min_length=1)]
    pair: Pair
    dataset: dict[str, Any]
    protocol: dict[str, Any]
    teacher: TeacherConfig
    teachers: list[dict[str, Any]] = Field(default_factory=list)
    seed: Annotated[list[Natural], Field(min_length=1)]
    paths: Paths
    trainer: TrainerConfig = Field(default_factory=TrainerConfig)
    logger: dict[str, Any] | None = None
    engine: EngineConfig = Field(default_factory=EngineConfig)
    cohort: CohortConfig = Field(default_factory=CohortConfig)
    force: StrictBool | Literal["replace"] = False
    keep: Literal["student"] | None = None
    debug: Literal["fast"] | None = None
    verbose: StrictBool = False
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
        except MissingMandatoryValue as error:
            raise UserError(f"{error.full_key} has no value: give it one.") from None
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
