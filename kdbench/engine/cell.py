"""Cells: the points of the grid, and their identity."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdbench.data.datasets import DatasetConfig
from kdbench.errors import UserError
from kdbench.method import Method
from kdbench.protocol import Protocol
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

    def make_method(self) -> Method:
        """A fresh, unbound method object.

        Raises:
            UserError: the method's settings are wrong.
        """
        settings = {key: value for key, value in self.config["method"].items() if key not in ("name", "_target_")}
        return construct(self.name, self.method, settings, self.protocol)


def construct(name: str, cls: type[Method], settings: Mapping[str, Any], protocol: Protocol) -> Method:
    try:
        return cls(**settings, protocol=protocol)
    except TypeError as error:
        raise UserError(f"method '{name}': {str(error).replace('__init__()', cls.__name__)}; mend its config.") from None


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
    try:
        cls = hydra.utils.get_class(target)
    except Exception as error:
        raise UserError(
            f"method '{name}': cannot import {target} ({str(error).splitlines()[-1]}): correct _target_, or put the file's "
            "folder on PYTHONPATH."
        ) from None
    if not issubclass(cls, Method):
        raise UserError(f"method '{name}': {target} is not a kdbench.method.Method: derive the class from it.")
    return cls


def seeds_of(cfg: DictConfig) -> list[int]:
    seeds = OmegaConf.to_container(cfg)["seed"]  # type: ignore[call-overload,index]
    seeds = seeds if isinstance(seeds, list) else [seeds]
    if not seeds or not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
        raise UserError(f"seed={cfg.seed}: give one non-negative integer or a list of them, as in seed=[0,1,2].")
    return list(dict.fromkeys(seeds))


def cells_of(cfg: DictConfig) -> list[Cell]:
    """All cells of one composed job: methods x seeds, seed by seed.

    Raises:
        UserError: a setting is wrong.
    """
    try:
        resolved: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"the config cannot be resolved: {str(error).splitlines()[0]}.") from None
    protocol = Protocol.of(resolved["protocol"])
    for side in ("teacher", "student"):
        if not isinstance(resolved["pair"].get(side), str):
            raise UserError(f"pair.{side} must name a network: choose a pair or set pair.{side}=NAME.")
    recipe = teacher_recipe(resolved, protocol)
    cells = []
    for seed in seeds_of(cfg):
        for name, config in resolved["method"].items():
            cls = method_class(name, config)
            settings = {key: value for key, value in config.items() if key not in BENCH_KEYS}
            construct(name, cls, {k: v for k, v in settings.items() if k != "_target_"}, protocol)
            cells.append(
                Cell(
                    name,
                    cls,
                    {
                        "method": {"name": name, **settings},
                        "student": resolved["pair"]["student"],
                        "teacher": recipe if "teacher" in cls.needs else None,
                        "dataset": dataset_identity(resolved["dataset"]),
                        "protocol": protocol.model_dump(mode="json"),
                        "seed": seed,
                    },
                    resolved["teacher"].get("sha256"),
                )
            )
    return cells


def dataset_identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """A data set's validated settings, without where it lies on this machine."""
    return DatasetConfig.of(config).model_dump(mode="json", exclude={"root"})


def teacher_recipe(resolved: Mapping[str, Any], protocol: Protocol) -> dict[str, Any]:
    """How the teacher of a job is trained: the job's data set and protocol, but for what `teacher` says otherwise."""
    teacher = resolved["teacher"]
    method = {key: value for key, value in teacher["method"].items() if key not in BENCH_KEYS}
    changes = {"epochs": teacher["epochs"]} if teacher.get("epochs") else {}
    return {
        "name": resolved["pair"]["teacher"],
        "method": method,
        "dataset": dataset_identity({**resolved["dataset"], **(teacher.get("dataset") or {})}),
        "protocol": protocol.model_copy(update=changes).model_dump(mode="json"),
        "seed": teacher["seed"],
    }
