"""Teachers: trained once per recipe and data, stored as safetensors, known by the sha256 of the file."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from kdbench.errors import UserError
from kdbench.files import check_room, write_atomic, writing_to
from kdbench.measures import TOP1
from kdbench.paths import CHOOSE_CACHE, CHOOSE_RESULTS, cache_dir
from kdbench.results.record import Measured, Name, Sha256, cell_id, check_range, digest
from kdbench.source import network_hash
from kdbench.sparse import Sparse

if TYPE_CHECKING:  # what a list of cards does not need, and takes seconds to import
    import torch
    from torch import Tensor

    from kdbench.data.batch import DataSpec
    from kdbench.data.datasets import Dataset

KEPT_BYTES = 10_000_000
"""Weights smaller than this are kept beside the records that they stand behind."""
LONGEST = 80
"""Of a network's name, how many characters stand in a file's."""
_PARTS = {"method": "_target_", "dataset": "name", "protocol": "name"}
"""What a recipe must hold to be told apart from others by people."""


class Origin(BaseModel):
    """Whence weights were brought.

    Attributes:
        source: the name of their file, or of a network of a library and its weights.
        sha256: of that file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Name
    sha256: Sha256 | None = None


class Card(Sparse):
    """The sidecar of a teacher's weights.

    Attributes:
        sha256: of the safetensors file.
        accuracy: what `measure` says of the last epoch on the whole test set.
        dataset_sha256: content hash of the data it was trained on.
        curve: the same per epoch.
        classes: names of what its logits mean, in their order.
        mean, std: per channel, of the pixels that it learned from.
        code: hash of its method's source, see `kdbench.source`.
        network: the same of its network, if that is the user's own.
        origin: where its weights, or those that its training began with, were brought.
        seal: `digest` of all the others; a card without one is older, and its accuracy is known by measuring it.
    """

    ADDED = frozenset({"classes", "mean", "std", "code", "seal", "measure", "network", "origin"})
    OF: ClassVar[str] = "teacher"

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    recipe: dict[str, Any]
    sha256: Sha256
    accuracy: float
    dataset_sha256: Sha256
    curve: list[Annotated[float, Field(allow_inf_nan=False)] | None]
    device: str
    torch: str
    classes: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    code: Sha256 | None = None
    seal: Sha256 | None = None
    measure: Measured = TOP1
    network: Sha256 | None = None
    origin: Origin | None = None

    @field_validator("recipe")
    @classmethod
    def _is_a_recipe(cls, recipe: dict[str, Any]) -> dict[str, Any]:
        brought = "method" not in recipe and isinstance(recipe.get("weights"), str)
        wanted = {"dataset": _PARTS["dataset"]} if brought else _PARTS
        parts = {key: recipe[key] for key in wanted if isinstance(recipe.get(key), dict)}
        whole = all(isinstance(parts.get(key, {}).get(name), str) for key, name in wanted.items())
        whole = whole and (brought or isinstance(recipe.get("seed"), int))
        if not whole or not isinstance(recipe.get("name"), str):
            raise ValueError(f"the recipe lacks 'name', 'seed' or one of {', '.join(_PARTS)}")
        return recipe

    @model_validator(mode="after")
    def _is_of_the_measure(self) -> Card:
        check_range(self.measure, [self.accuracy])
        return self

    @classmethod
    def parse(cls, raw: bytes) -> Card:
        """Raises ValueError with what is wrong, as a clause: no card, or edited."""
        try:
            data = json.loads(raw)
            card = cls.model_validate(data)
            sealed = digest({key: value for key, value in data.items() if key != "seal"})
        except (ValueError, TypeError, RecursionError):  # pydantic's errors are ValueErrors
            raise ValueError(f"is no {cls.OF}'s card") from None
        if card.seal not in (None, sealed):
            raise ValueError(f"is no {cls.OF}'s card any more: it was edited after it was written")
        return card

    def dump(self) -> bytes:
        """The card's file, sealed."""
        bare = self.model_copy(update={"seal": None})
        sealed = bare.model_copy(update={"seal": digest(bare.model_dump(mode="json"))})
        return (sealed.model_dump_json(indent=1) + "\n").encode()

    @property
    def name(self) -> str:
        return str(self.recipe["name"])

    @property
    def again(self) -> str:
        """How such a teacher is made again, as a clause."""
        return "bring it again with kdbench teacher import" if "weights" in self.recipe else "train it again"

    def is_of(self, recipe: Mapping[str, Any], data: Dataset) -> bool:
        """Whether this is the teacher of that recipe, trained on just these data; what an old card does not say counts
        as equal."""
        return (
            digest(self.recipe) == digest(dict(recipe))
            and self.dataset_sha256 == data.content_hash
            and self.classes in (None, data.classes)
            and (self.mean is None or same_numbers(self.mean, data.mean))
            and (self.std is None or same_numbers(self.std, data.std))
        )


@dataclass(frozen=True)
class Teacher:
    card: Card
    weights: Path

    def load(self, data: Dataset) -> torch.nn.Module:
        """The network in eval mode, frozen.

        Args:
            data: that it was trained on.

        Raises:
            UserError: its file is not there, does not match its hash, or does not hold this architecture.
        """
        import safetensors.torch
        from safetensors import SafetensorError

        net = create(self.card.name, data.spec)
        try:
            net.load_state_dict(safetensors.torch.load(self._bytes()))
        except (RuntimeError, SafetensorError):
            raise UserError(
                f"{self.weights} does not hold a {self.card.name} of {data.spec.num_classes} classes, though its .json "
                f"says so: delete both to {self.card.again}."
            ) from None
        return net.eval().requires_grad_(False)

    def check(self) -> None:
        """Raises `UserError` if the weights are not the card's."""
        self._bytes()

    def _bytes(self) -> bytes:
        raw = _bytes(self.weights)
        if raw is None or hashlib.sha256(raw).hexdigest() != self.card.sha256:
            raise UserError(
                f"{self.weights} is missing or does not match the sha256 {self.card.sha256[:12]} in its .json: "
                f"restore the file, or delete both to {self.card.again}."
            )
        return raw


def create(name: str, spec: DataSpec) -> torch.nn.Module:
    """A fresh network for some data, out of the zoo of their task, see `kdbench.models.create`."""
    from kdbench import models
    from kdbench.tasks import task_for

    return models.create(name, spec.shape, spec.num_classes, task_for(spec).zoo)


def serialized(state: Mapping[str, Tensor]) -> bytes:
    """Weights as a safetensors file, of which each tensor has its own part."""
    import safetensors.torch

    return safetensors.torch.save({name: value.detach().cpu().contiguous().clone() for name, value in state.items()})


@dataclass(frozen=True)
class Listed:
    """A teacher's file in a folder, with its card if that can be read, and what is wrong, as a sentence."""

    path: Path
    card: Card | None
    wrong: str | None


def same_numbers(a: Sequence[float], b: Sequence[float]) -> bool:
    """Equal but for rounding: pixels are float32."""
    return len(a) == len(b) and all(math.isclose(x, y, rel_tol=1e-7, abs_tol=1e-9) for x, y in zip(a, b, strict=True))


def stem(recipe: Mapping[str, Any]) -> str:
    """Readable file name of a recipe, ending in its hash."""
    how = ("brought",) if "protocol" not in recipe else (recipe["protocol"]["name"], f"s{recipe['seed']}")
    parts = (recipe["dataset"]["name"], recipe["name"][:LONGEST], *how)
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(map(str, parts))) + "-" + cell_id(dict(recipe))[:8]


def full_stem(recipe: Mapping[str, Any], data: str, classes: Sequence[str] | None) -> str:
    """The same with the hash of the data, content and class names: one recipe has a teacher for each."""
    return f"{stem(recipe)}-{digest([data, classes])[:8]}"


class Teachers:
    """Where teachers lie: beside a store's records (small ones), and in the user's cache (all).

    No file is ever overwritten by another one's content: the first teacher of a recipe is called by its `stem`, those
    of other data under the same recipe by longer names. So any number of processes may save at the same time.
    """

    def __init__(self, results: Path, cache: Path | None = None) -> None:
        self.kept = results / "teachers"
        self.cache = (cache or cache_dir()) / "teachers"

    def find(self, recipe: Mapping[str, Any], data: Dataset) -> Teacher | None:
        """The teacher trained by this recipe on these data, or None.

        Raises:
            UserError: a card is damaged or may not be read, or the weights do not match it and lie nowhere else.
        """
        damaged: tuple[str, UserError] | None = None
        for teacher in self._cards(recipe):
            if not teacher.card.is_of(recipe, data) or (damaged and damaged[0] != teacher.card.sha256):
                continue
            try:
                teacher.check()
            except UserError as error:  # the same weights may lie in the other folder
                damaged = damaged or (teacher.card.sha256, error)
            else:
                return teacher
        if damaged:
            raise damaged[1]
        return None

    def known(self, recipe: Mapping[str, Any], sha256: str) -> Teacher | None:
        """The teacher of this hash, whatever data it was trained on."""
        return next((teacher for teacher in self._cards(recipe) if teacher.card.sha256 == sha256), None)

    def of_hash(self, prefix: str, dataset: str | None) -> Card:
        """The card of the teacher whose sha256 begins so, on whatever data set; of several uses of the same weights the
        one on `dataset`.

        Raises:
            UserError: there is none, or more than one.
        """
        found: dict[str, Card] = {}
        for folder in (self.kept, self.cache):
            for path in _files(folder):
                with suppress(UserError):  # of a damaged card, which kdbench teacher list shows
                    teacher = _read(path) if path.suffix == ".json" else None
                    if teacher and teacher.card.sha256.startswith(prefix):
                        found.setdefault(digest(teacher.card.recipe), teacher.card)
        if not found:
            raise UserError(
                f"there is no teacher with the weights {prefix}: kdbench teacher list shows those that are there, and "
                "kdbench teacher import brings one."
            )
        cards = list(found.values())
        alike = len({card.sha256 for card in cards}) == 1
        if alike:
            cards = [card for card in cards if card.recipe["dataset"]["name"] == dataset] or cards
        if len(cards) > 1:
            if alike:  # and no digit tells them apart
                names = ", ".join(stem(card.recipe) for card in cards)
                mend = f"keep the card of one of them, and move the others away from {self.cache}"
            else:
                names = ", ".join(
                    f"{card.name} on {card.recipe['dataset']['name']} {card.sha256[:12]}" for card in cards
                )
                mend = f"give more digits, or delete what you do not mean from {self.cache}"
            raise UserError(f"{len(cards)} teachers have weights that begin with {prefix} ({names}): {mend}.")
        return cards[0]

    def lock(self, recipe: Mapping[str, Any], data: Dataset) -> Path:
        """The file that whoever trains this teacher holds a lock on: all who share the cache see it."""
        return self.cache / ".locks" / f"{full_stem(recipe, data.content_hash, data.classes)}.lock"

    def save(self, recipe: Mapping[str, Any], data: Dataset, state: Mapping[str, Tensor], **card: Any) -> Teacher:
        """Write weights and card into the cache, whole or not at all; another process may have been faster."""
        raw = serialized(state)
        full = Card(
            recipe=dict(recipe),
            sha256=hashlib.sha256(raw).hexdigest(),
            dataset_sha256=data.content_hash,
            classes=data.classes,
            mean=data.mean,
            std=data.std,
            network=network_hash(recipe["name"]),
            **card,
        )
        with writing_to(self.cache, CHOOSE_CACHE):
            self.cache.mkdir(parents=True, exist_ok=True)
            _put(self.cache, full, raw, full.dump())
        found = self.find(recipe, data)
        assert found is not None
        return found

    def check_room(self, net: torch.nn.Module) -> None:
        """Fail now rather than after hours of training: raises `UserError` if such weights could not be saved."""
        need = sum(value.nbytes for value in net.state_dict().values())
        check_room(self.cache, need, "the teacher's weights", CHOOSE_CACHE)

    def keep(self, teacher: Teacher) -> None:
        """Have a small teacher whole beside the records that it stands behind.

        Raises:
            UserError: it cannot be read, or not be written there.
        """
        if teacher.weights.parent == self.kept or teacher.weights.stat().st_size >= KEPT_BYTES:
            return
        card = _bytes(teacher.weights.with_suffix(".json"))
        assert card is not None
        with writing_to(self.kept, CHOOSE_RESULTS):
            self.kept.mkdir(parents=True, exist_ok=True)
            _put(self.kept, teacher.card, teacher._bytes(), card)

    def all(self) -> list[Listed]:
        """Every card and every file of weights, kept ones first; each whole teacher once."""
        listed: list[Listed] = []
        whole: set[str] = set()
        for folder in (self.kept, self.cache):
            try:
                cards = {path.with_suffix(".json") for path in _files(folder)}
            except UserError as error:
                listed.append(Listed(folder, None, str(error)))
                continue
            for path in sorted(cards):
                card, wrong = None, None
                try:
                    teacher = _read(path)
                    if teacher is None:
                        wrong = f"{path} is missing beside its .safetensors: restore it, or delete that too."
                    else:
                        card = teacher.card
                        teacher.check()
                        if not path.name.startswith(stem(card.recipe)):
                            wrong = f"{path} is not found by this name: call it {stem(card.recipe)}.json."
                except UserError as error:
                    wrong = str(error)
                if card and not wrong:
                    if card.sha256 in whole:
                        continue
                    whole.add(card.sha256)
                listed.append(Listed(path.with_suffix(".safetensors"), card, wrong))
        return listed

    def _cards(self, recipe: Mapping[str, Any]) -> Iterator[Teacher]:
        for folder in (self.kept, self.cache):
            for path in _files(folder):
                if path.name.startswith(stem(recipe)) and path.suffix == ".json" and (teacher := _read(path)):
                    yield teacher


def check_pin(teacher: Teacher, pinned: str | None) -> None:
    """Raises `UserError` if other weights were demanded."""
    if pinned and pinned != teacher.card.sha256:
        raise UserError(
            f"the teacher at {teacher.weights} has sha256 {teacher.card.sha256[:12]}, but teacher.sha256={pinned[:12]} "
            "was demanded: put those weights there, or drop teacher.sha256."
        )


def _put(folder: Path, card: Card, weights: bytes, text: bytes) -> None:
    """Make a teacher whole in `folder`: its weights first, so that there is no card without them.

    Raises:
        OSError: it cannot be written.
        UserError: what lies there cannot be read.
    """
    full = full_stem(card.recipe, card.dataset_sha256, card.classes)
    for name in (stem(card.recipe), full, f"{full}-{card.sha256[:16]}"):
        path, target = folder / f"{name}.json", folder / f"{name}.safetensors"
        there = _read(path)
        if there and there.card.sha256 != card.sha256:
            continue
        with suppress(FileExistsError):
            write_atomic(target, weights, overwrite=False)
        if _bytes(target) != weights:
            if not there:  # another teacher's, whose card is gone or not yet written
                continue
            write_atomic(target, weights, overwrite=True)
        if not there:
            with suppress(FileExistsError):
                write_atomic(path, text, overwrite=False)
        return


def _read(path: Path) -> Teacher | None:
    """The teacher of a card, whose weights may be anything; None where there is no card.

    Raises:
        UserError: it is damaged, or may not be read.
    """
    raw = _bytes(path)
    if raw is None:
        return None
    try:
        return Teacher(Card.parse(raw), path.with_suffix(".safetensors"))
    except ValueError as error:
        raise UserError(f"{path} {error}: delete it and its .safetensors to train the teacher again.") from None


def _files(folder: Path) -> list[Path]:
    """The cards and weights in a folder; none where it is not there.

    Raises:
        UserError: it may not be read.
    """
    try:
        found = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError:
        raise _forbidden(folder) from None
    return [path for path in found if path.suffix in (".json", ".safetensors") and not path.name.startswith(".")]


def _forbidden(path: Path) -> UserError:
    return UserError(
        f"you may not read {path}: have its owner allow it (chmod +r), or let KDBENCH_CACHE or paths.results name "
        "another folder."
    )


def _bytes(path: Path) -> bytes | None:
    """A file's content, None where there is none.

    Raises:
        UserError: it is there and cannot be read, which says nothing about what it holds.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, where a teacher's file should be: move it away.") from None
    except PermissionError:
        raise _forbidden(path) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): mend the disk or restore the file.") from None
