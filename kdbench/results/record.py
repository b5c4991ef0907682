"""The immutable result of one finished cell: what is measured, how, on what, and by which code.

A record is one JSON object. Two hashes guard it: ``cell.id`` is a function of ``config`` alone, ``sha256`` of the
whole, so a record that was edited after it was written is noticed (`parse`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from kdbench.measures import TOP1, Measure
from kdbench.settings import of_run, recipes_in
from kdbench.sparse import Sparse
from kdbench.text import full, has_control

SCHEMA_VERSION: Final = 1


def _plain(value: Any) -> Any:
    """`value` from JSON's types alone, with one spelling for each number (1 for 1.0)."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def canonical_json(value: Any) -> str:
    """The one JSON text of `value`: sorted keys, no spaces, whole numbers without a fraction.

    Raises:
        ValueError: a number is NaN or infinite.
        TypeError: a value is not of JSON's types.
    """
    return json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest(value: Any) -> str:
    """sha256 (64 hexadecimal digits) of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def cell_id(config: Mapping[str, Any]) -> str:
    """Identity of a cell: the first 16 digits of the hash of its resolved config; the order of keys plays no part."""
    return digest(config)[:16]


def flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys; lists (and empty mappings) stay whole."""
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            flat.update(flatten(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = item
    return flat


class _Strict(Sparse):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
Amount = Annotated[float, Field(ge=0)]
Percent = Annotated[float, Field(ge=0, le=100)]


def _without_control(value: str) -> str:
    if has_control(value):
        raise ValueError("a name has no control characters")
    return value


Name = Annotated[str, Field(min_length=1), AfterValidator(_without_control)]


def _null_if_not_finite(value: Any) -> Any:
    return None if isinstance(value, (float, np.floating)) and not math.isfinite(value) else value


def _named(measure: Measure) -> Measure:
    if not measure.name or any(map(has_control, (measure.name, measure.unit, measure.examples))):
        raise ValueError("a measure has a name, without control characters")
    return measure


Measured = Annotated[Measure, AfterValidator(_named)]

CurveValue = Annotated[float | None, BeforeValidator(_null_if_not_finite)]
"""A point of a curve; NaN and infinity, which JSON has no word for, become null."""


class Cell(_Strict):
    """A point of the grid, by name; `id` is `cell_id` of the record's config."""

    id: str = Field(pattern="^[0-9a-f]{16}$")
    method: Name
    pair: Name
    student: Name
    teacher: Name | None
    dataset: Name
    protocol: Name
    seed: Count


class MethodInfo(_Strict):
    """What the method's class (dotted path `cls`) said about itself; `paper` is a bibliography key.

    `source` is the hash of its code (see `kdbench.source`), null where it is not known; `survey` are its entries
    for the columns of the survey's table, null in records from before they were kept.
    """

    ADDED = frozenset({"source", "survey"})

    cls: Name
    leaf: Name
    paper: Name | None
    extension: bool
    control: Literal["scratch", "smoothing", "kd"] | None
    needs: list[Name]
    source: Sha256 | None = None
    survey: dict[Name, Name] | None = None


class DatasetInfo(_Strict):
    """Content hash and sizes of the splits in use: training images left after a validation split, and so on.

    Attributes:
        classes: hash of all class names in the order of their labels, which are no part of the content, if it is known.
    """

    ADDED = frozenset({"classes"})

    sha256: Sha256
    n_train: Count
    n_val: Count
    n_test: Count
    num_classes: Annotated[int, Field(ge=1)]
    classes: Sha256 | None = None


class Agreement(_Strict):
    """A teacher as it was run (folded, in low precision) against the network in float32, on the first test images.

    Attributes:
        max_abs_logit: largest difference of any logit.
        top1_percent: images that both give the same class.
        images: how many were compared.
    """

    max_abs_logit: Amount
    top1_percent: Percent
    images: Annotated[int, Field(ge=1)]


class TeacherInfo(_Strict):
    """The frozen teacher by the hash of its weights; what it reaches on the cell's test set, by the cell's measure.

    Attributes:
        accuracy: of the float32 network: what the teacher's card says, unless the teacher knows more classes than the
            cell, and so was judged on more images.
        as_fed: of what the cell was taught by: with its pixels, its classes, and the rounding of its route.
        agreement: null where the float32 network itself taught.
        origin: of weights that were brought: the name of their file, or what library has them under which name.
    """

    ADDED = frozenset({"as_fed", "agreement", "origin"})

    name: Name
    sha256: Sha256
    accuracy: float
    as_fed: float | None = None
    agreement: Agreement | None = None
    origin: Name | None = None


class Metrics(_Strict):
    """Of the test set, in the unit of the record's measure.

    Attributes:
        primary: the name of that measure.
        last: after the last epoch; the one that is ranked.
        val_selected: at the epoch that a validation split chose.
        oracle: best over the epochs on the test set itself; never ranked. Null where an earlier epoch answers another
            question, as in a sequence of experiences.
        others: further measures after the last epoch by name, each in its own unit.
    """

    ADDED = frozenset({"others"})

    primary: Name = TOP1.name
    last: float
    val_selected: float | None = None
    oracle: float | None
    others: dict[Name, float] = Field(default_factory=dict)


class Correct(_Strict):
    """Which of `n` test examples, in the order of the test set, the final model gets right: base64 of packed bits."""

    bits: str
    n: Count

    @model_validator(mode="after")
    def _whole(self) -> Correct:
        try:
            raw = base64.b64decode(self.bits, validate=True)
        except binascii.Error:
            raise ValueError("the bits are not base64") from None
        padding = -self.n % 8
        if len(raw) != (self.n + 7) // 8 or (padding and raw[-1] & ((1 << padding) - 1)):
            raise ValueError(f"the bits do not hold {self.n} examples")
        return self


class Scores(_Strict):
    """One number for each of `n` test examples or episodes, in their order: base64 of little-endian float32.

    They mean what the record's measure means, in its unit and direction. One that is not finite could not be judged.
    """

    values: str
    n: Annotated[int, Field(ge=1)]

    @model_validator(mode="after")
    def _whole(self) -> Scores:
        try:
            raw = base64.b64decode(self.values, validate=True)
        except binascii.Error:
            raise ValueError("the scores are not base64") from None
        if len(raw) != 4 * self.n:
            raise ValueError(f"the scores are not those of {self.n} examples")
        return self


class Cost(_Strict):
    """What the cell took. Forwards are counted in images, not in batches.

    Attributes:
        images_seen: training images drawn, over all epochs and stages.
        student_forwards, teacher_forwards: images passed through the student and through teachers while training.
        train_seconds: wall time of training, without set-up and evaluation; in a cohort that of the cell's own steps
            and an equal share of what all have in common.
        peak_memory_mb: null where the device has no meter.
        student_params, student_macs: of the deployed network; multiply-accumulates for one image.
        extra_params: of adapters, heads and generators that only training needs.
    """

    images_seen: Count
    student_forwards: Count
    teacher_forwards: Count
    train_seconds: Amount
    images_per_second: Amount
    peak_memory_mb: Amount | None
    student_params: Count
    student_macs: Count
    extra_params: Count


class Environment(_Strict):
    """Where the record comes from; `path` names the engine path that trained the cell, e.g. ``plain``."""

    kdbench: str
    python: str
    torch: str
    lightning: str
    device: str
    precision: str
    threads: Annotated[int, Field(ge=1)]
    platform: str
    path: Name
    commit: str | None


class Record(_Strict):
    """The result of one cell. `metrics` is null exactly where the cell diverged; `reason` says why.

    `config` is the whole resolved config and holds at least ``seed`` and ``protocol``.

    Attributes:
        correct: where each example is right or wrong; always there for top-1, whose mean it is.
        scores: instead of `correct`, where each example has a score. A measure of the test set as a whole has neither.
        measure: what is measured, and ranked.
        others: further teachers; `teacher` is the first.
        networks: of each network that is the user's own, by name, the hash of its code (see `kdbench.source`).
    """

    ADDED = frozenset({"scores", "measure", "others", "networks"})

    schema_version: Literal[1] = SCHEMA_VERSION
    cell: Cell
    config: dict[str, Any]
    method: MethodInfo
    dataset: DatasetInfo
    teacher: TeacherInfo | None
    status: Literal["finished", "diverged"]
    reason: str | None = None
    metrics: Metrics | None
    curves: dict[str, list[CurveValue]]
    correct: Correct | None
    cost: Cost
    environment: Environment
    created: AwareDatetime
    scores: Scores | None = None
    measure: Measured = TOP1
    others: list[TeacherInfo] = Field(default_factory=list)
    networks: dict[Name, Sha256] = Field(default_factory=dict)

    @property
    def taught_by(self) -> str | None:
        """What records of the same teacher share: the hash of its weights; where each run has a teacher of its own, of
        how it is trained. None without a teacher."""
        if self.teacher is None:
            return None
        return digest(self.config["teacher"]) if self.own_teacher else self.teacher.sha256

    @property
    def teachers(self) -> list[tuple[TeacherInfo, dict[str, Any]]]:
        """Each teacher as it is stated here, and its recipe."""
        if not self.teacher:
            return []
        return list(zip([self.teacher, *self.others], recipes_in(self.config), strict=False))

    @property
    def drawn(self) -> dict[str, Any]:
        """The settings of its data as its run drew them, see `kdbench.settings.RUN`."""
        return of_run(self.config["dataset"], self.cell.seed)

    @property
    def own_teacher(self) -> bool:
        """Whether each run has a teacher of its own, see `kdbench.settings.RUN`."""
        recipe = self.config.get("teacher")
        return isinstance(recipe, Mapping) and of_run(recipe, self.cell.seed) != recipe

    @property
    def examples(self) -> NDArray[np.bool_] | NDArray[np.float32] | None:
        """(n,), what `correct` or `scores` hold."""
        if self.correct:
            return unpack_correct(self.correct)
        return unpack_scores(self.scores) if self.scores else None

    @model_validator(mode="after")
    def _config_is_the_cell(self) -> Record:
        if not {"seed", "protocol"} <= self.config.keys():
            raise ValueError("the config lacks 'seed' or 'protocol'")
        if self.config["seed"] != self.cell.seed:
            raise ValueError(f"the config's seed {self.config['seed']} is not the cell's {self.cell.seed}")
        try:
            expected = cell_id(self.config)
        except TypeError as error:
            raise ValueError(f"the config is not JSON: {error}") from None
        if self.cell.id != expected:
            raise ValueError(f"the config belongs to cell {expected}, not {self.cell.id}")
        return self

    @model_validator(mode="after")
    def _numbers_are_of_the_measure(self) -> Record:
        if self.teacher is None and self.others:
            raise ValueError("there are further teachers, but no first")
        if self.metrics and self.metrics.primary != self.measure.name:
            raise ValueError(f"the metrics are of {self.metrics.primary}, but {self.measure.name} is measured")
        teachers = [self.teacher] if self.teacher else []
        numbers = [number for each in (*teachers, *self.others) for number in (each.accuracy, each.as_fed)]
        if self.metrics:
            numbers += [self.metrics.last, self.metrics.val_selected, self.metrics.oracle]
        check_range(self.measure, numbers)
        return self

    @model_validator(mode="after")
    def _status_and_metrics_agree(self) -> Record:
        if self.status == "diverged":
            if self.metrics or self.correct or self.scores or not self.reason:
                raise ValueError("a diverged cell has a reason, and neither metrics nor correctness")
            return self
        top1 = self.measure == TOP1
        if self.metrics is None or (top1 and self.correct is None):
            raise ValueError("a finished cell has metrics and correctness")
        if self.correct and self.scores:
            raise ValueError("an example is right or wrong, or it has a score, not both")
        if self.correct is None or not top1:
            return self
        if self.correct.n == 0 or self.correct.n != self.dataset.n_test:
            raise ValueError(f"correctness of {self.correct.n} examples, but the test set has {self.dataset.n_test}")
        accuracy = 100 * float(unpack_correct(self.correct).mean())
        if abs(accuracy - self.metrics.last) > 1e-6:
            raise ValueError(f"the accuracy {self.metrics.last} is not that of the examples, {accuracy}")
        return self


_ROUNDED: Final = 1e-4
"""What a mean in float32 may lie beside the truth."""


def check_range(measure: Measure, values: Iterable[float | None]) -> None:
    """Raises ValueError where a share of 100 is none."""
    for value in values:
        if measure.unit == "%" and value is not None and not -_ROUNDED <= value <= 100 + _ROUNDED:
            raise ValueError(f"{full(value)} is no percentage: {measure.label} lies between 0 and 100")


def pack_correct(correct: ArrayLike) -> Correct:
    """Per-example correctness, (n,) booleans (or 0 and 1), as a record stores it."""
    bits = np.asarray(correct)
    if bits.ndim != 1 or not np.isin(bits, (0, 1)).all():
        raise ValueError("correctness is one boolean per example")
    return Correct(bits=base64.b64encode(np.packbits(bits.astype(bool)).tobytes()).decode(), n=len(bits))


def unpack_correct(correct: Correct) -> NDArray[np.bool_]:
    """The inverse of `pack_correct`: booleans (n,)."""
    raw = np.frombuffer(base64.b64decode(correct.bits), dtype=np.uint8)
    return np.unpackbits(raw, count=correct.n).astype(bool)


def pack_scores(scores: ArrayLike) -> Scores:
    """One score per example, (n,) numbers, as a record stores it, rounded to float32."""
    values = np.asarray(scores)
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.number):
        raise ValueError("scores are one number per example")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
        raw = values.astype("<f4").tobytes()
    return Scores(values=base64.b64encode(raw).decode(), n=len(values))


def unpack_scores(scores: Scores) -> NDArray[np.float32]:
    """The inverse of `pack_scores`: float32 (n,)."""
    return np.frombuffer(base64.b64decode(scores.values), dtype="<f4").astype(np.float32)


def dump(record: Record) -> str:
    """The text of a record's file: one line per top-level field, sealed with ``sha256`` of all others."""
    data = record.model_dump(mode="json")
    data["sha256"] = digest(data)
    lines = (
        f"{json.dumps(key)}: {json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)}"
        for key, value in data.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def parse(text: str | bytes) -> Record:
    """The inverse of `dump`.

    Raises:
        ValueError: what is wrong, as a clause: not JSON, not a record, another schema version, edited.
    """
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise ValueError("is not valid JSON") from None
    if not isinstance(data, dict) or "schema_version" not in data or "sha256" not in data:
        raise ValueError("is not a kdbench record")
    if data["schema_version"] != SCHEMA_VERSION:
        raise ValueError(f"has schema version {data['schema_version']}, this kdbench reads {SCHEMA_VERSION}")
    seal = data.pop("sha256")
    if seal != digest(data):
        raise ValueError("was edited after it was written (its sha256 does not match)")
    try:
        return Record.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"is not a valid record ({where + ': ' if where else ''}{first['msg']})") from None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
