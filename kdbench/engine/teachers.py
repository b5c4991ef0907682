"""Teachers: trained once per recipe, stored as safetensors, known by the sha256 of the file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import load_file, save
from torch import Tensor

from kdbench import models
from kdbench.data.batch import DataSpec
from kdbench.errors import UserError
from kdbench.files import write_atomic, writing_to
from kdbench.paths import CHOOSE_CACHE, cache_dir
from kdbench.results.record import cell_id

KEPT_BYTES = 10_000_000
"""Weights smaller than this are kept beside the records that they stand behind."""


class Card(BaseModel):
    """The sidecar of a teacher's weights.

    Attributes:
        sha256: of the safetensors file.
        accuracy: top-1 of the last epoch on the whole test set, percent.
        dataset_sha256: content hash of the data it was trained on.
        curve: test accuracy per epoch.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: dict[str, Any]
    sha256: str
    accuracy: float
    dataset_sha256: str
    curve: list[float | None]
    device: str
    torch: str

    @property
    def name(self) -> str:
        return str(self.recipe["name"])


@dataclass(frozen=True)
class Teacher:
    card: Card
    weights: Path

    def load(self, data: DataSpec) -> torch.nn.Module:
        """The network in eval mode, frozen, its file checked against its hash once more.

        Raises:
            UserError: the weights were changed or do not belong to this architecture.
        """
        _check(self)
        net = models.create(self.card.name, data.shape, data.num_classes)
        try:
            net.load_state_dict(load_file(self.weights))
        except RuntimeError:
            raise UserError(
                f"{self.weights} does not hold a {self.card.name} of {data.num_classes} classes: delete it and its "
                ".json to train this teacher again."
            ) from None
        return net.eval().requires_grad_(False)


def stem(recipe: Mapping[str, Any]) -> str:
    """Readable file name of a recipe, ending in its hash."""
    parts = (recipe["dataset"]["name"], recipe["name"], recipe["protocol"]["name"], f"s{recipe['seed']}")
    return re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join(map(str, parts))) + "-" + cell_id(dict(recipe))[:8]


class Teachers:
    """Where teachers lie: beside a store's records (small ones), and in the user's cache (all)."""

    def __init__(self, results: Path) -> None:
        self.kept = results / "teachers"
        self.cache = cache_dir() / "teachers"

    def find(self, recipe: Mapping[str, Any]) -> Teacher | None:
        """The teacher trained by this recipe, or None.

        Raises:
            UserError: its file does not match its hash.
        """
        for folder in (self.kept, self.cache):
            card = folder / f"{stem(recipe)}.json"
            if card.exists():
                teacher = _read(card)
                _check(teacher)
                return teacher
        return None

    def save(self, recipe: Mapping[str, Any], state: Mapping[str, Tensor], **card: Any) -> Teacher:
        """Write weights and card into the cache, whole or not at all."""
        path = self.cache / f"{stem(recipe)}.safetensors"
        weights = save({name: value.detach().cpu().contiguous() for name, value in state.items()})
        full = Card(recipe=dict(recipe), sha256=hashlib.sha256(weights).hexdigest(), **card)
        with writing_to(self.cache, CHOOSE_CACHE):
            self.cache.mkdir(parents=True, exist_ok=True)
            write_atomic(path, weights, overwrite=True)
            write_atomic(path.with_suffix(".json"), full.model_dump_json(indent=1) + "\n", overwrite=True)
        return Teacher(full, path)

    def lock(self, name: str) -> Path:
        """The file that whoever trains the teacher of this `stem` holds a lock on: all who share the cache see it."""
        return self.cache / ".locks" / f"{name}.lock"

    def keep(self, teacher: Teacher) -> None:
        """Copy a small teacher beside the records that it stands behind."""
        target = self.kept / teacher.weights.name
        if teacher.weights == target or target.exists() or teacher.weights.stat().st_size >= KEPT_BYTES:
            return
        with writing_to(self.kept):
            self.kept.mkdir(parents=True, exist_ok=True)
            write_atomic(target, teacher.weights.read_bytes(), overwrite=True)
            write_atomic(target.with_suffix(".json"), teacher.card.model_dump_json(indent=1) + "\n", overwrite=True)

    def all(self) -> list[Teacher]:
        """Every known teacher, kept ones first, each hash once."""
        found: dict[str, Teacher] = {}
        for folder in (self.kept, self.cache):
            for card in sorted(folder.glob("*.json")):
                teacher = _read(card)
                found.setdefault(teacher.card.sha256, teacher)
        return list(found.values())


def check_pin(teacher: Teacher, pinned: str | None) -> None:
    """Raises `UserError` if other weights were demanded."""
    if pinned and pinned != teacher.card.sha256:
        raise UserError(
            f"the teacher at {teacher.weights} has sha256 {teacher.card.sha256[:12]}, but teacher.sha256={pinned[:12]} "
            "was demanded: put those weights there, or drop teacher.sha256."
        )


def _read(card: Path) -> Teacher:
    try:
        return Teacher(Card.model_validate_json(card.read_bytes()), card.with_suffix(".safetensors"))
    except (ValidationError, OSError):
        raise UserError(
            f"{card} is no teacher's card: delete it and its .safetensors to train the teacher again."
        ) from None


def _check(teacher: Teacher) -> None:
    if not teacher.weights.exists() or _sha256(teacher.weights) != teacher.card.sha256:
        raise UserError(
            f"{teacher.weights} is missing or does not match the sha256 {teacher.card.sha256[:12]} in its .json: "
            "restore the file, or delete both to train this teacher again."
        )


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
