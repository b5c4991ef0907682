"""Cells: the points of the grid, and their identity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from kdbench.construct import check_optimizer, construct, method_class, method_identity
from kdbench.engine.job import Job
from kdbench.errors import UserError
from kdbench.method import Method
from kdbench.protocol import Protocol
from kdbench.results import record as rec
from kdbench.results.record import cell_id
from kdbench.settings import explain, of_run, recipes_in
from kdbench.source import source_hash
from kdbench.targets import first_line
from kdbench.teaching.recipe import Known, dataset_identity, further, name_of, recipe_of
from kdbench.teaching.teachers import Teachers


@dataclass(frozen=True)
class Cell:
    """One point of the grid. `config` is its whole identity: what is not in there cannot change its numbers.

    A teacher's recipe is in the identity only of methods that need a teacher, so the student from scratch is one cell
    for all its teachers; those of further teachers only in that of methods that need several, so KD beside such a
    method is the KD of every other grid.
    """

    name: str
    method: type[Method]
    config: Mapping[str, Any]
    pins: tuple[str | None, ...] = ()
    start: Mapping[str, Tensor] | None = field(default=None, compare=False, repr=False)
    """Weights that its student begins with (the rest is drawn); the config names them by their hash."""

    @property
    def id(self) -> str:
        return cell_id(dict(self.config))

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def student(self) -> str:
        return str(self.config["student"])

    @cached_property
    def dataset(self) -> Mapping[str, Any]:
        """The settings of its data, as this run draws them."""
        return of_run(self.config["dataset"], self.seed)

    @property
    def teacher(self) -> Mapping[str, Any] | None:
        """The recipe of its teacher, of the first of several, see `kdbench.teaching.recipe`."""
        return self._recipes[0] if self._recipes else None

    @property
    def teachers(self) -> list[tuple[Mapping[str, Any], str | None]]:
        """The recipe of each of its teachers, and the sha256 that is demanded of it."""
        return [(recipe, self.pins[k] if k < len(self.pins) else None) for k, recipe in enumerate(self._recipes)]

    @cached_property
    def _recipes(self) -> list[dict[str, Any]]:
        return recipes_in(self.config)

    @property
    def pair(self) -> str:
        return f"{self.teacher['name']}-{self.student}" if self.teacher else self.student

    @property
    def protocol(self) -> Protocol:
        return Protocol.of(self.config["protocol"])

    def __str__(self) -> str:
        return f"{self.name} {self.pair} {self.dataset['name']} seed {self.seed}"

    def named(self) -> rec.Cell:
        """Its names, as its record holds them."""
        return rec.Cell(
            id=self.id,
            method=self.name,
            pair=self.pair,
            student=self.student,
            teacher=str(self.teacher["name"]) if self.teacher else None,
            dataset=self.dataset["name"],
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
    return f"{len(cells)} in lockstep ({names}) {pair} {first.dataset['name']} seed {first.seed}"


def cells_of(job: Job) -> list[Cell]:
    """All cells of one job: methods x seeds, seed by seed.

    Raises:
        UserError: a setting is wrong.
    """
    protocol = Protocol.of(job.protocol)
    check_optimizer(protocol)
    taught_by = _recipes(job)
    (recipe, *others), pins = [each for each, _ in taught_by], tuple(pin for _, pin in taught_by)
    dataset = dataset_identity(job.dataset)
    cells, chosen = [], []
    for name, config in job.method.items():
        cls = method_class(name, config)
        settings = method_identity(cls, config)
        construct(name, cls, settings, protocol)
        chosen.append((name, cls, settings))
    for seed in dict.fromkeys(job.seed):
        for name, cls, settings in chosen:
            taught = bool({"teacher", "teachers"} & cls.needs)
            identity: dict[str, Any] = {
                "method": {"name": name, **settings},
                "student": job.pair.student,
                "teacher": recipe if taught else None,
                "dataset": dataset,
                "protocol": protocol.model_dump(mode="json"),
                "seed": seed,
            }
            if "teachers" in cls.needs:
                identity["teachers"] = others
            cell = Cell(name, cls, identity, pins if taught else ())
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


def known_to(job: Job) -> Known:
    """Where the teachers of a job are looked up that it names by their weights."""
    return partial(Teachers(Path(job.paths.results)).of_hash, dataset=job.dataset.get("name"))


def teachers_of(job: Job) -> list[tuple[dict[str, Any], str | None]]:
    """The recipe of each teacher of a job, of its runs one after the other, and the sha256 that is demanded of it; the
    pair's first."""
    taught_by = _recipes(job)
    each = [(of_run(recipe, seed), pin) for seed in job.seed for recipe, pin in taught_by]
    return list({name_of(recipe): (recipe, pin) for recipe, pin in each}.values())


def dataset_of(job: Job) -> dict[str, Any]:
    """The settings of a job's data, as its first run draws them."""
    return of_run(dataset_identity(job.dataset), job.seed[0])


def _recipes(job: Job) -> list[tuple[dict[str, Any], str | None]]:
    protocol, pair = Protocol.of(job.protocol), job.pair.teacher
    named = {"teacher": job.teacher}
    named |= {f"teachers[{k}]": other for k, other in enumerate(further(job.teacher, job.teachers))}
    known = known_to(job)
    found = []
    for where, teacher in named.items():
        recipe = recipe_of(teacher, job.dataset, protocol, known=known, pair=pair, where=where)
        pin = known(teacher.weights).sha256 if teacher.weights else teacher.sha256
        found.append((recipe, pin))
    return found


def cell_of(recipe: Mapping[str, Any], name: str = "teacher", start: Mapping[str, Tensor] | None = None) -> Cell:
    """A teacher is a kept student: the cell that trains one, or of another `name` any.

    Args:
        start: weights that were brought, from which it trains.
    """
    cls = method_class(name, recipe["method"])
    identity = {
        "method": {"name": name, **recipe["method"]},
        "student": recipe["name"],
        "teacher": recipe.get("teacher"),
        "dataset": recipe["dataset"],
        "protocol": recipe["protocol"],
        "seed": recipe["seed"],
        **({"weights": recipe["weights"]} if "weights" in recipe else {}),
    }
    if "teachers" in recipe:
        identity["teachers"] = recipe["teachers"]
    return Cell(name, cls, identity, start=start)


def cell_in(record: rec.Record) -> Cell:
    """The cell of a record, whatever the configuration says now.

    Raises:
        UserError: the class of its method cannot be imported.
    """
    name = record.cell.method
    return Cell(name, method_class(name, record.config["method"]), record.config)
