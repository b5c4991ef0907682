"""Kept students: the trained network of a cell beside its record, and as a module that can be loaded and shipped.

As teachers are kept: weights as safetensors, known by the sha256 of the file, and a sealed card. Whether the weights of
a cell are kept is no part of its identity, and changes nothing in its record.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from kdbench.data.batch import DataSpec
from kdbench.data.datasets import Dataset
from kdbench.data.sources import source_of
from kdbench.engine.binding import Lecturer, bind, network, untrained
from kdbench.engine.cell import Cell, cell_of
from kdbench.errors import Unreadable, UserError
from kdbench.files import write_atomic, writing_to
from kdbench.method import Method
from kdbench.paths import CHOOSE_RESULTS
from kdbench.results import record as rec
from kdbench.results.store import Store, file_name
from kdbench.settings import of_run
from kdbench.snapshot import Snapshot
from kdbench.teaching.adapter import Adapter
from kdbench.teaching.teachers import Card

FACTS = "kdbench"
"""The key under which an exported file holds its card."""
AGAIN = "train it again with force=true keep=student"
CLOSE = 1e-3
"""By how much of the largest logit two ways to compute the same network may differ."""


class StudentCard(Card):
    """The card of a student's weights: of `recipe` it is the network, of `accuracy` what its record says.

    Attributes:
        cell: id of its cell.
        method: the name of its method.
        spec: what it was made for.
        mean, std: per channel, of the pixels that it is judged on.
        bare: whether it is a network of the architecture `name` and no more; else the method's class makes the rest.
    """

    OF = "student"

    cell: str = Field(pattern="^[0-9a-f]{16}$")
    method: str
    spec: DataSpec
    bare: bool


@dataclass(frozen=True)
class Student:
    card: StudentCard
    weights: Path

    @classmethod
    def of(cls, path: Path) -> Student:
        """The student in a file of weights: with its card inside, as exported, or beside it, as kept.

        Raises:
            UserError: the file cannot be read, or there is no card.
        """
        raw = _content(path.with_suffix(".json"))
        if raw is None:
            try:
                with safe_open(path, framework="pt") as file:
                    raw = ((file.metadata() or {}).get(FACTS) or "").encode()
            except FileNotFoundError:
                raise UserError(f"there is no file {path}: name a .safetensors that was kept or exported.") from None
            except (SafetensorError, OSError) as error:
                raise UserError(f"{path} cannot be read ({error}): name a .safetensors that was exported.") from None
        try:
            return cls(StudentCard.parse(raw), path)  # type: ignore[arg-type]  # parse makes one of its class
        except ValueError as error:
            raise UserError(f"the card of {path} {error}: restore it, or {AGAIN}.") from None

    def state(self) -> dict[str, Tensor]:
        """Its weights by name.

        Raises:
            UserError: they are not those of the card.
        """
        raw = _content(self.weights)
        if raw is not None:
            with suppress(SafetensorError):
                state = safetensors.torch.load(raw)
                # an exported file holds its card too, so its own hash is another one
                if self.card.sha256 in (hashlib.sha256(raw).hexdigest(), hashlib.sha256(packed(state)).hexdigest()):
                    return state
        raise UserError(
            f"{self.weights} is missing or does not match the sha256 {self.card.sha256[:12]} of its card: restore the "
            f"file, or {AGAIN}."
        )

    def load(self) -> Deployed:
        """
        Raises:
            UserError: the weights are not those of the card, or its network cannot be made here.
        """
        net = _made(self.card)
        try:
            net.load_state_dict(self.state())
        except RuntimeError:
            raise UserError(
                f"{self.weights} does not hold a {self.card.name} as this kdbench makes it: {AGAIN}."
            ) from None
        return Deployed(net, self.card).eval()


class FromPixels(nn.Module):
    """A network behind the normalisation of its input.

    Takes float32 images (B, C, H, W) on the scale 0..1, of the size that the network was made for; where there is no
    `mean`, what the network takes. Returns ``logits``, see `kdbench.models`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.net((x - self.mean) / self.std if len(self.mean) else x)
        return logits


class Deployed(FromPixels):
    """A student as it is shipped: from pixels to logits, or where there are no images, from observations (B, n).

    Attributes:
        net: the network alone, which takes what is normalised already; with taps (see `kdbench.taps.Net`).
        classes: names of what the logits mean, in their order.
        card: all that is known of it.
    """

    def __init__(self, net: nn.Module, card: StudentCard) -> None:
        super().__init__(net, card.mean or (), card.std or ())
        self.card, self.classes = card, card.classes


class Students:
    """Where a store's students lie: beside its records, and out of git's sight, as they can be many and large."""

    def __init__(self, results: Path) -> None:
        self.folder = results / "students"

    def save(self, cell: Cell, method: Method, dataset: Dataset, record: rec.Record) -> Student:
        """Write weights and card of what a trained method deploys; the weights first, so that there is no card without.

        Raises:
            UserError: the folder cannot be written, or see `form`.
        """
        assert record.metrics is not None
        bare, state = form(cell, method)
        raw = packed(state)
        card = StudentCard(
            recipe=_recipe(cell),
            sha256=hashlib.sha256(raw).hexdigest(),
            accuracy=record.metrics.last,
            dataset_sha256=dataset.content_hash,
            curve=record.curves[f"test/{record.measure.name}"],
            device=record.environment.device,
            torch=record.environment.torch,
            classes=dataset.classes,
            mean=dataset.test.mean or dataset.mean,
            std=dataset.test.std or dataset.std,
            code=record.method.source,
            measure=record.measure,
            cell=cell.id,
            method=cell.name,
            spec=dataset.spec,
            bare=bare,
        )
        path = self.folder / file_name(record)
        with writing_to(self.folder, CHOOSE_RESULTS):
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / ".gitignore").exists():
                write_atomic(self.folder / ".gitignore", "*\n", overwrite=True)
            write_atomic(path.with_suffix(".safetensors"), raw, overwrite=True)
            write_atomic(path, card.dump(), overwrite=True)
        return Student(card, path.with_suffix(".safetensors"))

    def path(self, cell_id: str) -> Path | None:
        """The weights of a cell's student, if they are kept."""
        return next(iter(sorted(self.folder.glob(f"*-{cell_id}.safetensors"))), None)

    def discard(self, cell_id: str) -> None:
        """Remove a student whose record is replaced."""
        if path := self.path(cell_id):
            with writing_to(self.folder, CHOOSE_RESULTS):
                path.with_suffix(".json").unlink(missing_ok=True)
                path.unlink(missing_ok=True)

    def all(self) -> list[Path]:
        """The weights of all students, in order of name."""
        return sorted(path for path in self.folder.glob("*.safetensors") if not path.name.startswith("."))


def packed(state: Mapping[str, Tensor], facts: str | None = None) -> bytes:
    """The bytes of a safetensors file; tensors that share memory are written once for each name."""
    whole = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    return safetensors.torch.save(whole, {FACTS: facts} if facts else None)


def form(cell: Cell, method: Method) -> tuple[bool, dict[str, Tensor]]:
    """What is kept of a bound method: whether it is a bare network of the student's architecture, and the weights.

    That what is kept will be what is deployed is tried on random inputs.

    Raises:
        UserError: what it deploys cannot be made again of its settings and weights.
    """
    net = method.deployed()
    net = copy.deepcopy(net.net if isinstance(net, Snapshot) else net).cpu().eval()
    state = net.state_dict()
    x = torch.randn(4, *method.data.shape, generator=torch.Generator().manual_seed(0))
    for bare in (True, False):
        made = network(cell.student, method.data, cell.seed) if bare else _again(cell, method)
        with suppress(RuntimeError):  # other names or shapes
            made.cpu().load_state_dict(state)
            if _alike(net, made.eval(), x):
                return bare, state
    raise UserError(
        f"what {type(method).__name__} deploys cannot be made again of its settings and weights, so keep=student is "
        "not for it: leave it out, or have what deployed() returns hold all that it needs in parameters and buffers."
    )


@torch.no_grad()
def _alike(a: nn.Module, b: nn.Module, x: Tensor) -> bool:
    """Whether two networks say the same; what is infinite in one is so in the other."""
    one, two = a(x), b(x)
    finite = one.isfinite()
    if one.shape != two.shape or not torch.equal(one[~finite], two[~finite]):
        return False
    return bool(((one - two)[finite].abs() <= CLOSE * one[finite].abs().max()).all()) if finite.any() else True


def _again(cell: Cell, method: Method) -> nn.Module:
    """What a method of the same settings deploys, bound to the same teachers."""
    lecturers = [
        Lecturer(spec.name, net, spec.classes) for net, spec in zip(method._teachers, method.teachers, strict=True)
    ]
    return bind(cell, lecturers, method.data).deployed()


def _made(card: StudentCard) -> nn.Module:
    """A network of a card, with whatever weights."""
    cell = cell_of(card.recipe, card.method)
    if card.bare:
        return network(card.name, card.spec, cell.seed)
    shown = _data(cell.dataset) if cell.teachers else None
    lecturers = []
    for recipe, _ in cell.teachers:
        learned = _data(recipe["dataset"])
        assert shown is not None
        adapter = Adapter.between(recipe["name"], learned, shown, partial=True)
        lecturers.append(untrained(recipe["name"], learned.spec, adapter))
    net = bind(cell, lecturers, card.spec).deployed()
    return net.net if isinstance(net, Snapshot) else net


def _data(config: Mapping[str, Any]) -> Dataset:
    return source_of(config).build()


def _recipe(cell: Cell) -> dict[str, Any]:
    """A cell as the recipe of its student; `cell_of` is the inverse, but for a seed that the config calls the run's."""
    config = of_run(cell.config, cell.seed)
    recipe = {"name": cell.student, "method": {key: value for key, value in config["method"].items() if key != "name"}}
    recipe |= {key: config[key] for key in ("dataset", "protocol", "seed")}
    return recipe | {key: config[key] for key in ("teacher", "teachers") if config.get(key)}


def _content(path: Path) -> bytes | None:
    """A file's bytes, None where there is none."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unreadable(path, error) from None


# ---- from Python ----------------------------------------------------------------------------------------------------


def load_student(cell: str | Path, results: str | Path = "results") -> Deployed:
    """The trained network of a cell that was run with ``keep=student``, in eval mode.

    Args:
        cell: its id or the unique beginning of one, the name or path of its record, or a ``.safetensors`` that was kept
            or exported; the latter stands alone.
        results: the store.

    Returns:
        a module from pixels (B, C, H, W) on the scale 0..1 to logits; see `Deployed`.

    Raises:
        UserError: there is no such cell, its student was not kept, or its files were changed.
    """
    return find_student(cell, Path(results)).load()


def find_student(cell: str | Path, results: Path) -> Student:
    """As `load_student`, but the network is not made yet."""
    if str(cell).endswith(".safetensors"):
        return Student.of(Path(cell))
    store = Store(results)
    record_path = store.find(str(cell))
    store = Store(record_path.parent.parent)
    record = store.read(record_path)
    if path := Students(store.root).path(record.cell.id):
        return Student.of(path)
    name = f"{record.cell.method}, seed {record.cell.seed} (cell {record.cell.id})"
    if record.status == "diverged":
        raise UserError(f"{name} diverged ({record.reason}), so it has no student: choose another cell.")
    raise UserError(
        f"the student of {name} was not kept when it was trained: kdbench reproduce {record.cell.id} trains it "
        "again in a store of its own and keeps it there, its command with force=true keep=student does so here."
    )


__all__ = ["Deployed", "Student", "Students", "find_student", "load_student"]
