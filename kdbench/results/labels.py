"""The labels of test sets: with them the per-example bits of records tell the recall of each class.

``ROOT/labels`` holds one file for each test set that records stand on, written beside the first of them. A file says
which test set it is of (content hash of the data, and the settings that choose the split) and is sealed as records are.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from kdbench.errors import UserError
from kdbench.files import write_atomic, writing_to
from kdbench.results.record import Count, Name, Record, Sha256, canonical_json, digest
from kdbench.text import visible

FOLDER: Final = "labels"
UNEQUAL: Final = 1.5
"""Classes are of unequal size where the largest has more than so many times the examples of the smallest."""

_OF_TRAINING: Final = frozenset(
    {"name", "mean", "std", "pad", "flip", "views", "mix", "sha256", "val", "per_class", "root"}
)
"""Settings of a data set that choose nothing of its test split; any other, also one that comes later, may."""


class Labels(BaseModel):
    """A test set's labels, in the order of the records' bits.

    Attributes:
        content: content hash of the whole data set.
        selection: the settings that choose the test split from it.
        labels: base64 of unsigned little-endian integers, of one byte up to 256 classes, of four beyond.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    dataset: Name
    content: Sha256
    selection: dict[str, Any]
    classes: tuple[str, ...] = Field(min_length=1)
    n: Count
    labels: str

    @property
    def key(self) -> str:
        return _key(self.content, self.selection)

    @property
    def array(self) -> NDArray[np.int64]:
        """(n,), class indices."""
        raw = base64.b64decode(self.labels, validate=True)
        return np.frombuffer(raw, dtype=_dtype(len(self.classes))).astype(np.int64)

    @model_validator(mode="after")
    def _whole(self) -> Labels:
        try:
            array = self.array
        except ValueError:
            raise ValueError("the labels are not base64") from None
        if len(array) != self.n or (array >= len(self.classes)).any():
            raise ValueError(f"the labels are not {self.n} indices of {len(self.classes)} classes")
        return self


@dataclass(frozen=True, eq=False)
class ClassSizes:
    """How many test examples each class has, and which they are.

    Attributes:
        labels: (n,), class indices.
    """

    labels: NDArray[np.int64]
    num_classes: int

    @property
    def counts(self) -> NDArray[np.int64]:
        return np.bincount(self.labels, minlength=self.num_classes)

    @property
    def unequal(self) -> bool:
        """See `UNEQUAL`; also where a class has no example."""
        return bool(self.counts.max() > UNEQUAL * self.counts.min())

    def recalls(self, correct: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The share of its examples that are right, in percent, of each class that has any.

        Their mean is the balanced accuracy, which with one label for each example is the macro recall.

        Args:
            correct: (n,), whether each example is right.
        """
        counts = self.counts
        right = np.bincount(self.labels[correct], minlength=self.num_classes)
        return 100 * right[counts > 0] / counts[counts > 0]


def keep_labels(
    root: Path, name: str, content: str, config: Mapping[str, Any], labels: ArrayLike, classes: Sequence[str]
) -> Path:
    """Write a test set's labels under `root`, unless they lie there already.

    Args:
        content: content hash of the whole data set.
        config: the data set's settings, as they stand in the records' config.
        labels: (n,), class indices in the order of the records' bits.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    array = np.asarray(labels).astype(_dtype(len(classes)))
    made = Labels(
        dataset=name,
        content=content,
        selection=_selection(config),
        classes=tuple(map(visible, classes)),
        n=len(array),
        labels=base64.b64encode(array.tobytes()).decode(),
    )
    path = root / FOLDER / f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name).lstrip('.')[:100]}-{made.key}.json"
    text = _dump(made)
    with writing_to(path.parent):
        if not path.is_file() or path.read_bytes() != text.encode():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, text, overwrite=True)
    return path


def load_labels(root: str | Path) -> dict[str, Labels]:
    """All labels under `root`, by key.

    Raises:
        UserError: a file is broken, edited, or not what its name says.
    """
    found = {}
    for path in sorted((Path(root) / FOLDER).glob("[!.]*.json")):
        try:
            labels = _parse(path.read_bytes())
            if not path.stem.endswith(f"-{labels.key}"):
                raise ValueError(f"is of another test set ({labels.key})")
        except (OSError, ValueError) as error:
            what = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else error
            raise UserError(
                f"{path} {what}: restore it from git, or delete it, and the next `kdbench run` of one of its cells "
                "writes it again."
            ) from None
        found[labels.key] = labels
    return found


def class_sizes(known: Mapping[str, Labels], record: Record) -> ClassSizes | None:
    """Of the test set of a record; None where its labels are not `known`.

    Raises:
        UserError: they do not fit the record.
    """
    config = record.config.get("dataset")
    labels = known.get(_key(record.dataset.sha256, _selection(config if isinstance(config, Mapping) else {})))
    if labels is None:
        return None
    data = record.dataset
    if (labels.n, len(labels.classes)) != (data.n_test, data.num_classes):
        raise UserError(
            f"The labels {labels.key} of {labels.dataset} are {labels.n} of {len(labels.classes)} classes, but cell "
            f"{record.cell.id} was judged on {data.n_test} of {data.num_classes}: delete that file of {FOLDER}/, and "
            "run one of its cells again."
        )
    return ClassSizes(labels.array, data.num_classes)


def _selection(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _OF_TRAINING and value is not None}


def _key(content: str, selection: Mapping[str, Any]) -> str:
    return digest([content, selection])[:16]


def _dtype(classes: int) -> np.dtype[Any]:
    return np.dtype("u1" if classes <= 256 else "<u4")


def _dump(labels: Labels) -> str:
    data = labels.model_dump(mode="json")
    data["sha256"] = digest(data)
    lines = (f"{json.dumps(key)}: {canonical_json(value)}" for key, value in data.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _parse(text: bytes) -> Labels:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("is not valid JSON") from None
    if not isinstance(data, dict) or "sha256" not in data:
        raise ValueError("does not hold the labels of a test set")
    if data.pop("sha256") != digest(data):
        raise ValueError("was edited after it was written (its sha256 does not match)")
    try:
        return Labels.model_validate(data)
    except ValidationError as error:
        raise ValueError(f"does not hold the labels of a test set ({error.errors()[0]['msg']})") from None
