"""Claims: the numbers that papers and repositories report, and what the records of a store say to them.

The committed claims lie in ``results/claims``, whose README explains the columns.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from kdbench import shipped
from kdbench.errors import UserError
from kdbench.measures import TOP1, further
from kdbench.protocol import Protocol
from kdbench.results.record import Record, canonical_json, flatten
from kdbench.results.stats import Estimate, mean_interval
from kdbench.results.verdict import WORDS, Arm, Printed, Verdict, Word, judge
from kdbench.text import fixed
from kdbench.tuned import settings_on

Status = Word | Literal["protocol differs", "untested"]
STATUSES: Final[tuple[Status, ...]] = (*WORDS, "protocol differs", "untested")

TOLERANCE: Final = 0.3
"""Percentage points within which a claim counts as reproduced however small the standard error is."""
SAME_NUMBER: Final = 0.01
"""Two sources print the same number where they differ by no more: one of them rounded, or copied a digit wrongly."""
TEACHER_TOLERANCE: Final = 1.0
"""Percentage points by which two teachers of one recipe may differ; farther apart they are different teachers."""
PLAUSIBLE_GAIN: Final = 1.0
"""Percentage points above a claim from which our own result is to be doubted."""

FROM_MEMORY: Final = "the number is from memory, to be confirmed"

ROLES: Final = frozenset({"peers", "self", "ema self", "ensemble", "previous model", "supervised model"})
"""Teachers that are not a network of their own."""
_FOREIGN: Final = re.compile(r"[^\s@]+@[^\s@]+")
_EPOCHS: Final = re.compile(r"\d+(\+\d+)?|\d+ iterations|\d+( iterations)? per task|unknown|n/a")
_ARM: Final = re.compile(r"[a-z0-9_]+/[a-z0-9_]+")
_FRAMEWORKS: Final = ("torchvision/", "timm/")


def _none_if_empty(value: Any) -> Any:
    return None if value == "" else value


OptionalNumber = Annotated[float | None, BeforeValidator(_none_if_empty)]
OptionalNatural = Annotated[Annotated[int, Field(ge=0)] | None, BeforeValidator(_none_if_empty)]
OptionalCount = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_none_if_empty)]
Text = Annotated[str, Field(min_length=1)]
Selection = Literal["last", "best-test", "best-run", "validation", "median", "unknown"]


@dataclass(frozen=True)
class Metric:
    """What a claim prints: which measure of a record that is, and how the printed number becomes one of it.

    Attributes:
        measure: its name, as `kdbench.measures` and the tasks have it.
        kind: ``error``: 100 minus it; ``count``: wrong ones out of the claim's `n_test` images.
        bounded: whether it is a share of 100.
    """

    measure: str
    kind: Literal["as it is", "error", "count"] = "as it is"
    bounded: bool = True


METRICS: Final[dict[str, Metric]] = {
    "top1_acc": Metric("top1"),
    "top1_err": Metric("top1", "error"),
    "top1_errors": Metric("top1", "count"),
    "top5_acc": Metric("top5"),
    "top5_err": Metric("top5", "error"),
    "mAP": Metric("mAP"),
    "mIoU": Metric("mIoU"),
    "retrieval_mAP": Metric("retrieval_mAP"),
    "average_accuracy": Metric("average"),  # incremental: mean over the tasks so far, see kdbench.tasks.incremental
    "forgetting": Metric("forgetting"),
    "agreement": Metric("agreement"),
    "return": Metric("return", bounded=False),
}
"""Column ``metric`` -> what it means; which way is better `kdbench.measures` knows."""


class Claim(BaseModel):
    """One published number; the columns are explained in ``results/claims/README.md``.

    `value`, `teacher_value` and `student_value` are as printed, errors where `metric` is an error; `accuracy`,
    `teacher_accuracy` and `student_accuracy` are the accuracies (or what else is measured, see `METRICS`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_strip_whitespace=True)

    method: Text
    config: str = ""
    settings: str = ""
    reported_by: Text
    teacher: str = ""
    student: Text
    dataset: Text
    metric: str
    value: Annotated[float, Field(ge=0)]
    selection: Selection
    epochs: Text
    protocol: str = ""
    kd_term: Literal["yes", "no", "n/a", "unknown"]
    teacher_value: OptionalNumber = None
    student_value: OptionalNumber = None
    source: Text
    notes: str = ""
    reproduction: str = ""
    baseline: str = ""
    control: str = ""
    provenance: Literal["confirmed", "memory"] = "confirmed"
    decimals: OptionalNatural = None
    seeds: OptionalCount = None
    spread: OptionalNumber = None
    split: str = ""
    n_test: OptionalCount = None

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, value: str) -> str:
        if value not in METRICS:
            raise ValueError(f"choose from {', '.join(METRICS)}")
        return value

    @field_validator("reproduction")
    @classmethod
    def _arm(cls, value: str) -> str:
        if value and not _ARM.fullmatch(value):
            raise ValueError("give NAME/ARM of conf/reproduction")
        return value

    @field_validator("provenance", mode="before")
    @classmethod
    def _confirmed(cls, value: Any) -> Any:
        return value or "confirmed"

    @model_validator(mode="before")
    @classmethod
    def _printed_decimals(cls, data: Any) -> Any:
        """Where nothing else is said, those of the text that stands there."""
        if isinstance(data, dict) and data.get("decimals") in (None, "") and isinstance(data.get("value"), str):
            return {**data, "decimals": len(data["value"].strip().partition(".")[2])}
        return data

    @field_validator("teacher", "student")
    @classmethod
    def _network(cls, value: str) -> str:
        from kdbench import models  # PyTorch, which whoever reads no claims need not wait for

        known = models.known(value) or value.startswith(_FRAMEWORKS) or _FOREIGN.fullmatch(value)
        if value and not known and value not in ROLES:
            raise ValueError(
                f"'{value}' is not a network of kdbench; one of another definition is written NAME@REPOSITORY"
            )
        return value

    @field_validator("epochs")
    @classmethod
    def _budget(cls, value: str) -> str:
        if not _EPOCHS.fullmatch(value):
            raise ValueError("give N, N+N, 'N iterations', unknown or n/a")
        return value

    @field_validator("protocol")
    @classmethod
    def _known_protocol(cls, value: str) -> str:
        if value and value not in _protocols():
            raise ValueError(f"there is no protocol '{value}'; leave it empty or choose from {', '.join(_protocols())}")
        return value

    @field_validator("settings")
    @classmethod
    def _pairs(cls, value: str) -> str:
        _parse_settings(value)
        return value

    @model_validator(mode="after")
    def _columns_agree(self) -> Claim:
        if self.settings and not self.config:
            raise ValueError("settings without a config mean nothing")
        if (self.baseline or self.control) and not self.reproduction:
            raise ValueError("a baseline or a control is an arm beside that of column reproduction: give it")
        if METRICS[self.metric].kind == "count" and self.n_test is None:
            raise ValueError("a number of errors needs n_test, the images that it is out of")
        if self.spread is not None and self.seeds is None:
            raise ValueError("a spread needs seeds, the number of runs that it is over")
        if METRICS[self.metric].bounded:
            for name in ("value", "teacher_value", "student_value"):
                number = getattr(self, name)
                if number is not None and not 0 <= self._converted(number) <= 100:
                    raise ValueError(f"{name}={number:g} is no share of 100")
        return self

    @property
    def quantity(self) -> str:
        """The name of what is measured, errors and accuracies alike: ``top1``, ``mIoU``, ``average``."""
        return METRICS[self.metric].measure

    @property
    def accuracy(self) -> float:
        """`value`, or 100 - `value` where that is an error, or 100 - the share of `n_test` where it counts errors."""
        return self._converted(self.value)

    @property
    def teacher_accuracy(self) -> float | None:
        return None if self.teacher_value is None else self._converted(self.teacher_value)

    @property
    def student_accuracy(self) -> float | None:
        """Of the student trained alone, in the same source."""
        return None if self.student_value is None else self._converted(self.student_value)

    @property
    def pair(self) -> str:
        return f"{self.teacher} → {self.student}" if self.teacher else self.student

    @property
    def origin(self) -> str:
        """Where it was read: ``OWNER/REPOSITORY``, or ``arXiv:NUMBER`` of a paper."""
        return self.source.split()[0].partition("@")[0]

    @property
    def group(self) -> str:
        """The name of its reproduction, empty without one."""
        return self.reproduction.partition("/")[0]

    @property
    def printed(self) -> Printed:
        """For a verdict: so that higher is better, a mean of runs with their sd where both are printed."""
        kind = METRICS[self.metric].kind
        decimals = 2 if self.decimals is None else self.decimals
        if kind == "count" and self.n_test:
            decimals += round(math.log10(self.n_test)) - 2  # one error of 10,000 images is .01 %
        return Printed(
            self.merit(self.accuracy),
            decimals,
            self.seeds or 1,
            self.spread,
            best=self.selection == "best-run",
        )

    def merit(self, value: float) -> float:
        """A value of its measure so that higher is better."""
        return further(self.quantity).merit(value)

    def _converted(self, value: float) -> float:
        kind = METRICS[self.metric].kind
        if kind == "count":
            value = 100 * value / (self.n_test or 1)
        return value if kind == "as it is" else round(100 - value, 6)


def load_claims(root: str | Path | None = None) -> list[Claim]:
    """All claims of ``root/claims`` if that folder has any, else those that come with kdbench; by file, then by line.

    Raises:
        UserError: a file has an unknown or missing column, a bad value, or a claim that stands there twice; the message
            names file and line.
    """
    claims: list[Claim] = []
    seen: dict[Claim, str] = {}
    for path in _files(root):
        for line, claim in _read(path):
            where = f"{path}:{line}"
            bare = claim.model_copy(update={"notes": ""})
            if bare in seen:
                raise UserError(f"{where}: the same claim stands in {seen[bare]}: delete one.")
            seen[bare] = where
            claims.append(claim)
    return claims


def _files(root: str | Path | None) -> list[Path]:
    package = Path(__file__).parents[1]  # the claims lie in the installed package, or beside it in a checkout
    folders = [package / "claims", package.parent / "results" / "claims"]
    if root is not None:
        folders.insert(0, Path(root) / "claims")
    for folder in folders:
        if files := sorted(folder.glob("*.csv")):
            return files
    raise UserError(f"There are no claims in {' nor '.join(map(str, folders))}: reinstall kdbench.")


def _read(path: Path) -> Sequence[tuple[int, Claim]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets begin with a mark
            return _rows(path, file.read())
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}): mend or remove the file.") from None


@lru_cache(maxsize=64)
def _rows(path: Path, text: str) -> Sequence[tuple[int, Claim]]:
    """Line and claim of each row; kept, as the tables of every run stand beside the same ones."""
    known, rows = Claim.model_fields, []
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    columns = list(reader.fieldnames or [])
    unknown = [column for column in columns if column not in known]
    missing = [name for name, field in known.items() if field.is_required() and name not in columns]
    if unknown or missing or len(set(columns)) < len(columns):
        what = f"unknown column '{unknown[0]}'" if unknown else f"no column '{missing[0]}'" if missing else ""
        raise UserError(f"{path}:1: {what or 'a column stands twice'}: choose from {', '.join(known)}.")
    for row in reader:
        if None in row or None in row.values():
            raise UserError(f"{path}:{reader.line_num}: the row has not {len(columns)} fields: mend the commas.")
        try:
            rows.append((reader.line_num, Claim.model_validate(row)))
        except ValidationError as error:
            raise UserError(f"{path}:{reader.line_num}: {_explain(error)}: mend the row.") from None
    return rows


def _explain(error: ValidationError) -> str:
    first = error.errors()[0]
    message = first["msg"].removeprefix("Value error, ").rstrip(".")
    where = ".".join(map(str, first["loc"]))
    return f"{where} {first['input']!r}: {message}" if where else message


def _parse_settings(text: str) -> dict[str, Any]:
    """``key=value key=value`` with JSON's values, as dotted keys."""
    settings = {}
    for part in text.split():
        key, _, value = part.partition("=")
        try:
            settings[key] = json.loads(value)
        except ValueError:
            raise ValueError(f'"{part}" is not key=value with a JSON value') from None
    return settings


# ---- what a claim is compared with -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """A claim and the records that answer it.

    Attributes:
        also: the same number, to `SAME_NUMBER`, as other sources print it.
        differences: why the two numbers are not comparable; empty where they are judged.
        notes: what a reader should know besides.
        ours: the measure, top-1 accuracy for most, after the last epoch over the finished seeds; None without any.
        oracle: mean of our best test accuracies over the epochs; shown beside, judged only where that is the rule.
        under_rule: ours by the selection rule of a claim that has a reproduction.
        verdict: on a claim that has a reproduction, once that was run.
        teacher: test accuracy and sha256 of our teacher's weights.
        protocol, epochs: of our records.
        seeds: of the finished records.
        cells: ids of all records that join, diverged ones included.
        others: further settings of the same cell that are farther from the claim and not shown.
    """

    claim: Claim
    also: tuple[Claim, ...]
    status: Status
    differences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    ours: Estimate | None = None
    oracle: float | None = None
    teacher: tuple[float, str] | None = None
    protocol: str | None = None
    epochs: int | None = None
    seeds: tuple[int, ...] = ()
    cells: tuple[str, ...] = ()
    others: int = 0
    under_rule: Estimate | None = None
    verdict: Verdict | None = None

    @property
    def difference(self) -> float | None:
        """Ours - theirs in percentage points; None where the two are not comparable."""
        ours = self.under_rule or self.ours
        if ours is None or self.status in ("protocol differs", "untested") or self.claim.provenance == "memory":
            return None
        return ours.mean - self.claim.accuracy


Key = tuple[str, str, str, str]


def compare_claims(
    claims: Iterable[Claim], records: Iterable[Record], arms: Mapping[str, Sequence[Record]] | None = None
) -> list[Comparison]:
    """Answer each claim, in order of data set, pair and method; the order of `claims` and `records` plays no part.

    A claim that names an arm of a reproduction is answered by that arm's records, `arms` by ``NAME/ARM`` (see
    `kdbench.engine.arms`), and its status is the word of its verdict (`kdbench.results.verdict`).

    Any other claim, always of top-1, joins the records of top-1 of its `config`, teacher and student architecture and
    data set. Its status is

    - ``reproduced`` where selection rule and protocol are the same and |ours - claim| <= max(2 SE, `TOLERANCE`), with
      SE = s / √n over our seeds; else ``below`` or ``above``;
    - ``protocol differs`` where anything else differs: part of the data, augmentation, epochs, batch, learning rate,
      optimiser, schedule, precision, selection rule, KD term, hyper-parameters, or a teacher that is more than
      `TEACHER_TOLERANCE` better or worse. Of several such settings the closest is shown;
    - ``untested`` where no record joins, or all that join diverged.
    """
    joined = _join_duplicates(claims)
    wanted = {_key(group[0]) for group in joined} - {None}
    cells: dict[Key, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        cell = record.cell
        key = (cell.method, cell.teacher or "", cell.student, cell.dataset)
        if key in wanted and record.measure == TOP1:
            same = {name: value for name, value in record.config.items() if name != "seed"}
            sha = record.teacher.sha256 if record.teacher else None
            cells[key][canonical_json([same, sha, record.dataset.sha256])].append(record)
    runs: dict[Key, list[list[Record]]] = {
        key: [sorted(groups[name], key=lambda record: (record.cell.seed, record.cell.id)) for name in sorted(groups)]
        for key, groups in cells.items()
    }
    theirs: dict[tuple[str, str, str], Claim] = {}
    for group in reversed(joined):
        theirs |= {(claim.reproduction, claim.quantity, claim.selection): claim for claim in group}
    found = []
    for group in joined:
        found += [_judged(group, arms or {}, theirs)] if group[0].reproduction else _compare(group, runs)
    return found


def _join_duplicates(claims: Iterable[Claim]) -> list[tuple[Claim, ...]]:
    """Claims that several sources print alike, together; sorted."""
    groups: list[tuple[Claim, ...]] = []
    for claim in sorted(claims, key=_order):
        last = groups[-1] if groups else ()
        if (
            last
            and _setting(last[0]) == _setting(claim)
            and abs(last[0].accuracy - claim.accuracy) <= SAME_NUMBER + 1e-9
            and _close(last[0].teacher_accuracy, claim.teacher_accuracy, SAME_NUMBER)
            and last[0].source != claim.source
        ):
            groups[-1] = (*last, claim)
        else:
            groups.append((claim,))
    return groups


def _setting(claim: Claim) -> tuple[str, ...]:
    return (
        claim.dataset,
        claim.teacher,
        claim.student,
        claim.method.lower(),
        claim.config,
        claim.settings,
        claim.quantity,
        claim.selection,
        claim.epochs,
        claim.kd_term,
        claim.reproduction,
        claim.provenance,
    )


def _order(claim: Claim) -> tuple[Any, ...]:
    return (*_setting(claim), claim.accuracy, claim.source, claim.reported_by, claim.notes)


def _close(a: float | None, b: float | None, tolerance: float) -> bool:
    return a is b if a is None or b is None else abs(a - b) <= tolerance + 1e-9


def _key(claim: Claim) -> Key | None:
    if not claim.config or claim.quantity != "top1" or claim.reproduction:
        return None
    # a method without a frozen teacher has records without one, whoever teaches in the paper
    return (claim.config, "" if claim.teacher in ROLES else claim.teacher, claim.student, claim.dataset)


def _judged(
    group: tuple[Claim, ...], arms: Mapping[str, Sequence[Record]], theirs: Mapping[tuple[str, str, str], Claim]
) -> Comparison:
    """A claim beside the runs of its arm, of its baseline's and of its control's.

    Args:
        theirs: what the source prints of an arm, in the same measure and by the same rule.
    """
    claim, also = group[0], group[1:]
    records = sorted(arms.get(claim.reproduction, ()), key=lambda record: (record.cell.seed, record.cell.id))
    if not records:
        return Comparison(claim, also, "untested")
    first = records[0]
    last = _values(records, claim, "last")
    ruled = _values(records, claim, claim.selection)
    notes = []
    if diverged := sum(record.metrics is None for record in records):
        notes.append(f"{diverged} of {len(records)} seeds diverged")
    if last and not ruled:
        notes.append(f"their rule ({claim.selection}) cannot be applied to our runs: the last epoch is judged")
        ruled = last
    elif claim.selection in ("unknown", "median"):
        notes.append(f"their selection: {claim.selection}; the last epoch is judged")
    verdict = None
    if claim.provenance == "confirmed":
        verdict = _verdict(claim, ruled, arms, theirs, first.dataset.n_test)
        notes.insert(0, verdict.reason)
    else:
        notes.insert(0, FROM_MEMORY)
    best = [record.metrics.oracle for record in records if record.metrics and record.metrics.oracle is not None]
    epochs = _mapping(first.config, "protocol").get("epochs")
    return Comparison(
        claim,
        also,
        verdict.word if verdict else "cannot be decided",
        notes=tuple(notes),
        ours=mean_interval(list(last.values())) if last else None,
        oracle=math.fsum(best) / len(best) if best else None,
        teacher=(first.teacher.accuracy, first.teacher.sha256) if first.teacher else None,
        protocol=first.cell.protocol,
        epochs=epochs if isinstance(epochs, int) else None,
        seeds=tuple(last),
        cells=tuple(record.cell.id for record in records),
        under_rule=mean_interval(list(ruled.values())) if ruled else None,
        verdict=verdict,
    )


def _verdict(
    claim: Claim,
    ruled: Mapping[int, float],
    arms: Mapping[str, Sequence[Record]],
    theirs: Mapping[tuple[str, str, str], Claim],
    n_test: int,
) -> Verdict:
    def arm(name: str) -> Arm | None:
        if not name:
            return None
        records = arms.get(f"{claim.group}/{name}", ())
        values = _values(records, claim, claim.selection) or _values(records, claim, "last")
        return Arm(name, {seed: claim.merit(value) for seed, value in values.items()})

    printed = theirs.get((f"{claim.group}/{claim.baseline}", claim.quantity, claim.selection))
    claimed = printed.printed if printed and printed.provenance == "confirmed" else None
    if claimed is None and claim.baseline and claim.student_accuracy is not None:
        claimed = Printed(claim.merit(claim.student_accuracy), claim.printed.decimals)
    low, high = sorted(map(claim.merit, (0.0, 100.0))) if METRICS[claim.metric].bounded else (-math.inf, math.inf)
    fewer = claim.n_test if claim.n_test and claim.n_test < n_test else None
    return judge(
        replace(claim.printed, images=fewer),
        Arm(claim.reproduction.partition("/")[2], {seed: claim.merit(value) for seed, value in ruled.items()}),
        baseline=arm(claim.baseline),
        claimed_baseline=claimed,
        control=arm(claim.control),
        bounds=(low, high),
    )


def _values(records: Iterable[Record], claim: Claim, selection: Selection) -> dict[int, float]:
    """Seed -> the claim's measure of each finished run by a selection rule; empty where the runs do not tell."""
    found = {}
    for record in records:
        metrics = record.metrics
        if metrics is None:
            continue
        value: float | None
        if claim.quantity != metrics.primary:
            value = metrics.others.get(claim.quantity) if selection not in ("best-test", "validation") else None
        elif selection == "best-test":
            value = metrics.oracle
        elif selection == "validation":
            value = metrics.val_selected
        else:
            value = metrics.last
        if value is not None:
            found[record.cell.seed] = value
    return found


def _compare(group: tuple[Claim, ...], runs: Mapping[Key, list[list[Record]]]) -> list[Comparison]:
    claim, also = group[0], group[1:]
    key = _key(claim)
    found = runs.get(key, []) if key else []
    if not found:
        return [Comparison(claim, also, "untested")]
    answers = [_answer(claim, also, run) for run in found]
    judged = [answer for answer in answers if not answer.differences]
    if not judged:
        judged = [min(answers, key=lambda answer: (len(answer.differences), -(answer.epochs or 0), -len(answer.seeds)))]
    others = len(answers) - len(judged)
    return [Comparison(**{**vars(answer), "others": others}) for answer in judged]


def _answer(claim: Claim, also: tuple[Claim, ...], run: Sequence[Record]) -> Comparison:
    first = run[0]
    finished = [(record.cell.seed, record.metrics) for record in run if record.metrics]
    partial, differences = _differences(claim, first)
    notes = []
    if len(finished) < len(run):
        notes.append(f"{len(run) - len(finished)} of {len(run)} seeds diverged")
    ours = oracle = None
    status: Status = "untested"
    if finished:
        values = [metrics.last for _, metrics in finished]
        ours = mean_interval(values)
        best = [metrics.oracle for _, metrics in finished if metrics.oracle is not None]
        oracle = math.fsum(best) / len(best) if best else None
        sd = statistics.stdev(values) if len(values) > 1 else None
        status = "protocol differs" if differences else _judge(ours.mean - claim.accuracy, sd, len(values))
        if sd is None:
            notes.append("one seed: no interval")
        if not partial and ours.mean > claim.accuracy + PLAUSIBLE_GAIN + 1e-9:
            notes.append(f"implausible: more than {PLAUSIBLE_GAIN:g} point above the claim")
        if sd is not None and first.teacher and ours.mean > first.teacher.accuracy + 3 * sd + 1e-9:
            notes.append("implausible: more than 3 sd above its own teacher")
    epochs = _mapping(first.config, "protocol").get("epochs")
    return Comparison(
        claim,
        also,
        status,
        differences=tuple(differences),
        notes=tuple(notes),
        ours=ours,
        oracle=oracle,
        teacher=(first.teacher.accuracy, first.teacher.sha256) if first.teacher else None,
        protocol=first.cell.protocol,
        epochs=epochs if isinstance(epochs, int) else None,
        seeds=tuple(seed for seed, _ in finished),
        cells=tuple(record.cell.id for record in run),
    )


def _judge(difference: float, sd: float | None, n: int) -> Status:
    tolerance = max(TOLERANCE, 2 * sd / math.sqrt(n)) if sd is not None else TOLERANCE
    if abs(difference) <= tolerance + 1e-9:
        return "reproduced"
    return "above" if difference > 0 else "below"


def _differences(claim: Claim, record: Record) -> tuple[bool, list[str]]:
    """Whether the record saw only a part of the data, and all that keeps it from being compared with the claim."""
    partial = _cuts(record)
    found = [
        *([FROM_MEMORY] if claim.provenance == "memory" else []),
        *partial,
        *_of_protocol(claim, record),
        *_of_selection(claim),
        *_of_settings(claim, record),
        *_of_teacher(claim, record),
    ]
    return bool(partial), found


def _cuts(record: Record) -> list[str]:
    data = _mapping(record.config, "dataset")
    found = []
    if data.get("classes") is not None:
        found.append(f"only {record.dataset.num_classes} classes")
    if isinstance(scenario := data.get("scenario"), Mapping):
        found.append(f"posed as {str(scenario.get('_target_')).rpartition('.')[2]}")
    if data.get("per_class") is not None:
        found.append(f"only {data['per_class']} images per class")
    if record.dataset.n_val:
        found.append(f"{record.dataset.n_val} training images held out")
    return found


def _of_protocol(claim: Claim, record: Record) -> list[str]:
    try:
        ours = Protocol.of(_mapping(record.config, "protocol"))
    except UserError:
        return ["our protocol is not one of this kdbench"]
    found = []
    if claim.epochs != str(ours.epochs):
        budget = claim.epochs if claim.epochs[0].isdigit() else "an unknown number"
        found.append(f"{ours.epochs} epochs instead of {budget}")
    if not claim.protocol:
        return [*found, "their schedule is not on record"]
    theirs = _protocols()[claim.protocol]
    student = record.cell.student
    rates = ours.lr(student), theirs.lr(student)
    if ours.batch_size != theirs.batch_size:
        found.append(f"batch {ours.batch_size} instead of {theirs.batch_size}")
    if rates[0] != rates[1]:
        found.append(f"learning rate {rates[0]:g} instead of {rates[1]:g}")
    if {**ours.optimizer, "lr": 0} != {**theirs.optimizer, "lr": 0}:
        found.append("another optimiser")
    if ours.schedule != theirs.schedule:
        found.append("another schedule")
    if ours.precision != theirs.precision:
        found.append(f"{ours.precision} instead of {theirs.precision}")
    return found + _of_data(record)


def _of_data(record: Record) -> list[str]:
    expected = shipped.config("dataset", record.cell.dataset)
    data = _mapping(record.config, "dataset")
    views = [each.get("views") or {} for each in (data, expected)]
    found = [
        f"views.{key} {views[0].get(key)} instead of {views[1].get(key)}"
        for key in {**views[0], **views[1]}
        if views[0].get(key) != views[1].get(key)
    ]
    if data.get("mix"):
        found.append("mixed images")
    found += [
        f"{key} {data[key]} instead of {expected[key]}"
        for key in ("pad", "flip", "mean", "std")
        if key in data and key in expected and data[key] != expected[key]
    ]
    if expected.get("sha256") not in (None, record.dataset.sha256):
        found.append("other images under the same name")
    return found


def _of_selection(claim: Claim) -> list[str]:
    said = {
        "best-test": "best test epoch",
        "best-run": "best run",
        "validation": "best validation epoch",
        "median": "median of several runs",
        "unknown": "unknown selection",
    }
    return [f"their {said[claim.selection]}"] if claim.selection in said else []


def _of_settings(claim: Claim, record: Record) -> list[str]:
    found = []
    if claim.kd_term == "unknown":
        found.append("not stated whether they add a KD term")
    # a claim's settings that differ from the config's, an added KD term among them, are in its column `settings`
    if claim.kd_term == "yes" and not claim.settings:
        found.append("they add a KD term")
    theirs = _shipped(claim.config, claim.teacher, claim.student)
    if theirs is None:
        return [*found, f"no shipped config '{claim.config}' to compare settings with"]
    theirs = {**theirs, **_parse_settings(claim.settings)}
    ours = flatten({key: value for key, value in _mapping(record.config, "method").items() if key not in _NOT_SETTINGS})
    changed = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
    found += [f"{key} {_shown(ours.get(key))} instead of {_shown(theirs.get(key))}" for key in changed[:3]]
    if len(changed) > 3:
        found.append(f"{len(changed) - 3} more settings")
    return found


def _of_teacher(claim: Claim, record: Record) -> list[str]:
    if record.teacher is None or claim.teacher_accuracy is None:
        return []
    if abs(record.teacher.accuracy - claim.teacher_accuracy) <= TEACHER_TOLERANCE + 1e-9:
        return []
    return [f"teacher {fixed(record.teacher.accuracy, 2)} instead of {fixed(claim.teacher_accuracy, 2)}"]


def _shown(value: Any) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key)
    return value if isinstance(value, Mapping) else {}


# ---- what kdbench ships ----------------------------------------------------------------------------------------------

_NOT_SETTINGS: Final = frozenset({"name", "_target_", "search", "defaults"})


@cache
def _protocols() -> dict[str, Protocol]:
    """The shipped protocols that stand on their own."""
    configs = {name: shipped.config("protocol", name) for name in shipped.names("protocol")}
    return {name: Protocol.of(config) for name, config in configs.items() if "defaults" not in config}


@cache
def _shipped(name: str, teacher: str, student: str) -> dict[str, Any] | None:
    """The settings that kdbench ships for a method on a pair, with dotted keys; None for a method it does not know."""
    config = shipped.config("method", name)
    if not config:
        return None
    resolved = settings_on(shipped.pair(teacher, student), name, config)
    settings = {key: value for key, value in resolved.items() if key not in _NOT_SETTINGS}
    return flatten(settings)
