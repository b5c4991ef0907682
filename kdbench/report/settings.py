"""The runs of one method that differ in the seed alone, and how two such sets of runs compare."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from kdbench.declared import declared
from kdbench.results.record import MethodInfo, Record, canonical_json, digest, flatten
from kdbench.results.stats import ALPHA, Difference, paired_difference, sign_flip, sign_flip_scores
from kdbench.settings import Ramp
from kdbench.shipped import is_third_party
from kdbench.taxonomy import MethodLike, load_taxonomy
from kdbench.text import one_line

CONTROLS = ("scratch", "smoothing", "kd")
ASSUMED = {field.name: field.default for field in fields(Ramp) if field.default is not MISSING}
"""What a ramp has that does not say it."""
Role = Literal["control", "survey", "extension", "third-party"]
ROLES: tuple[Role, ...] = ("control", "survey", "extension", "third-party")


class Known(MethodLike, Protocol):
    """A method as the registry knows it, which imports what the user's configuration names, and nothing else.

    A report learns from it what a record does not say; what a record names is never imported.
    """

    @property
    def path(self) -> str:
        """Its class, as records name it."""

    @property
    def survey(self) -> Mapping[str, str]:
        """See `kdbench.method.Method.survey`."""

    @property
    def tasks(self) -> frozenset[str]:
        """See `kdbench.method.Method.tasks`."""

    def defaults(self, teacher: str | None, student: str) -> Mapping[str, Any]:
        """The settings of its YAML on a pair, flattened, as a record's config holds them."""


@dataclass(frozen=True)
class Setting:
    """The records, by seed, that differ in the seed alone.

    Attributes:
        values: the flattened config without the seed, as text.
    """

    method: str
    setting: str
    values: Mapping[str, str]
    records: list[Record]

    @property
    def label(self) -> str:
        return row_label(self.method, self.setting)

    @property
    def info(self) -> MethodInfo:
        """What the method says of itself, by its latest record: code may move a method to another leaf."""
        return max(self.records, key=lambda record: (record.created, record.cell.id)).method

    def has(self, wanted: Mapping[str, str]) -> bool:
        """Whether it has all these values; a method's settings may be named without ``method.``."""
        return all(value in (self.values.get(key), self.values.get(f"method.{key}")) for key, value in wanted.items())

    @property
    def finished(self) -> list[Record]:
        return [record for record in self.records if record.status == "finished"]

    @property
    def scores(self) -> dict[int, float]:
        """What is measured after the last epoch, by seed."""
        return {record.cell.seed: record.metrics.last for record in self.records if record.metrics}


Examples = NDArray[np.bool_] | NDArray[np.float32]
"""(n,), see `kdbench.results.record.Record.examples`."""


@dataclass(frozen=True)
class Comparison(Difference):
    """A paired difference to a control.

    Attributes:
        higher: whether higher values are better.
        holm: `p` corrected for all rows of the table that are compared with this control.
        p_examples: sign-flip test over the test examples (`kdbench.results.stats.sign_flip`), None where the records do
            not say anything of single examples.
    """

    p_examples: float | None
    higher: bool
    holm: float | None = None

    @property
    def better(self) -> bool:
        """Whether it is in favour of what is compared; of a difference that is significant."""
        return self.mean > 0 if self.higher else self.mean < 0

    @property
    def significant(self) -> bool:
        """Whether runs with other seeds would show the sign of this difference again, at the level `ALPHA`."""
        return self.holm is not None and self.holm < ALPHA


def settings_of(records: Sequence[Record]) -> list[Setting]:
    """Settings in the order in which tables show them, labelled by what differs between those of one method."""
    methods: dict[str, dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        same = canonical_json({key: value for key, value in record.config.items() if key != "seed"})
        methods[record.cell.method][same].append(record)
    settings = []
    for method, groups in methods.items():
        configs = {same: flatten(json.loads(same)) for same in groups}
        keys = dict.fromkeys(key for config in configs.values() for key in config)
        for config in configs.values():
            config |= _earlier(config, keys)
        flats = {same: {key: shown(value) for key, value in config.items()} for same, config in configs.items()}
        differing = sorted(key for key in keys if len({flat.get(key) for flat in flats.values()}) > 1)
        labels = {
            same: ", ".join(_told(key, config.get(key), key in config) for key in differing)
            for same, config in configs.items()
        }
        for same, group in groups.items():
            label = labels[same]
            if list(labels.values()).count(label) > 1:  # lists of recipes of one length
                label = f"{label}, {digest(json.loads(same))[:6]}"
            ordered = sorted(group, key=lambda record: record.cell.seed)
            settings.append(Setting(method, label, flats[same], ordered))
    return sorted(settings, key=_rank)


def compare_settings(a: Setting, b: Setting) -> Comparison | None:
    """a - b over common seeds, and over the test examples of these runs; None where they share no seed."""
    difference = paired_difference(a.scores, b.scores)
    if difference is None:
        return None
    pairs = list(paired_examples(a, b).values())
    values = {each.name: getattr(difference, each.name) for each in fields(difference)}
    return Comparison(**values, p_examples=p_of_examples(pairs), higher=a.records[0].measure.higher)


def paired_examples(a: Setting, b: Setting) -> dict[int, tuple[Examples, Examples]]:
    """What the records of common seeds say of single examples, where they are of the same ones."""
    others = {record.cell.seed: record.examples for record in b.finished}
    pairs = {}
    for record in a.finished:
        one, other = record.examples, others.get(record.cell.seed)
        if one is not None and other is not None and (one.shape, one.dtype) == (other.shape, other.dtype):
            pairs[record.cell.seed] = (one, other)
    return pairs if len({(len(one), one.dtype) for one, _ in pairs.values()}) == 1 else {}


def p_of_examples(pairs: Sequence[tuple[Examples, Examples]]) -> float | None:
    """The sign-flip test that fits: for right and wrong, or for scores."""
    if not pairs:
        return None
    return sign_flip(pairs) if pairs[0][0].dtype == bool else sign_flip_scores(pairs)


@dataclass(frozen=True)
class Reference:
    """The setting of a control that the others are compared with.

    Attributes:
        why: it was ``named``, it is the shipped ``default``, or it has the most ``seeds``.
        of: from how many settings it was chosen.
        default: see `is_default`.
    """

    setting: Setting
    why: Literal["named", "default", "seeds"]
    of: int
    default: bool | None


def reference(
    settings: Sequence[Setting], control: str, known: Iterable[Known] = (), named: Sequence[str] = ()
) -> Reference | None:
    """The setting of a control that others are compared with; never the one of best accuracy.

    One of `named` (see `parse_setting`) where there is any. Else of the method that serves the fewest tasks, as that is
    the control made for the table's: replay rather than training from scratch where classes arrive in turn. Of its
    settings the one with the values that ship with kdbench. Of several, or where there is none of either, the one of
    most seeds.
    """
    known = list(known)
    candidates = [setting for setting in settings if setting.info.control == control and setting.scores]
    fewest = min((_tasks(setting, known) for setting in candidates), default=0)
    own = [setting for setting in candidates if _tasks(setting, known) == fewest]
    choices: list[tuple[Literal["named", "default", "seeds"], list[Setting]]] = [
        (
            "named",
            [s for s in candidates if any(s.method == name and s.has(v) for name, v in map(parse_setting, named))],
        ),
        ("default", [s for s in own if is_default(s, known)]),
        ("seeds", own),
    ]
    for why, found in choices:
        if found:
            best = max([s for s in found if is_default(s, known)] or found, key=lambda setting: len(setting.scores))
            return Reference(best, why, len(own), is_default(best, known))
    return None


def _tasks(setting: Setting, known: Iterable[Known]) -> float:
    """How many tasks its method serves; no fewer than any other where it is not known."""
    return next((len(entry.tasks) for entry in known if entry.path == setting.info.cls), math.inf)


def is_default(setting: Setting, known: Iterable[Known]) -> bool | None:
    """Whether a setting has the values of its method's shipped YAML; None where none ships, or it is not `known`."""
    info, cell, config = setting.info, setting.records[0].cell, setting.records[0].config.get("method")
    for entry in known:
        if entry.name == setting.method and entry.path == info.cls and not is_third_party(entry.path):
            defaults = entry.defaults(cell.teacher, cell.student)
            return isinstance(config, Mapping) and canonical_json(defaults) == canonical_json(flatten(config))
    return None


def parse_setting(text: str) -> tuple[str, dict[str, str]]:
    """``NAME`` or ``NAME:key=value,...``; numbers may be written in any way."""
    name, _, rest = text.partition(":")
    values = {}
    for item in filter(None, rest.split(",")):
        key, _, value = item.partition("=")
        try:
            values[key] = shown(json.loads(value))
        except ValueError:  # a text
            values[key] = value
    return name, values


def role_of(info: MethodInfo) -> Role:
    """What a method is to the survey: only what ships with kdbench can count as the survey's."""
    if info.control:
        return "control"
    if is_third_party(info.cls) or load_taxonomy().find(info.leaf) is None:
        return "third-party"
    return "extension" if info.extension or info.paper not in load_taxonomy().cited else "survey"


def row_label(method: str, setting: str) -> str:
    return f"{method} ({setting})" if setting else method


def _earlier(config: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Of a flattened config, the values of those settings that its method, or a ramp, did not have yet.

    See `Method.added` and `kdbench.settings.Ramp`.
    """
    target = str(config.get("method._target_"))
    absent = [key for key in keys if key.startswith("method.") and key not in config]
    said = declared(target) if absent and not is_third_party(target) else None  # whose source may be anyone's
    added = {f"method.{name}": value for name, value in said.values["added"].items()} if said else {}
    for key in absent:
        ramp, _, name = key.rpartition(".")
        if f"{ramp}.start" in config and name in ASSUMED:
            added[key] = ASSUMED[name]
    return {key: added[key] for key in absent if key in added}


def _told(key: str, value: Any, given: bool) -> str:
    """A value that tells settings of one method apart; a list of recipes is told by its length."""
    name = one_line(key.removeprefix("method."))
    if isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
        return f"{len(value)} {name if len(value) > 1 else name.removesuffix('s')}"
    return f"{name}={shown(value) if given else 'unset'}"


def _rank(setting: Setting) -> tuple[int, tuple[int, str], str, str]:
    """Controls, then the survey's leaves in its order, then extensions, then third parties."""
    info = setting.info
    place = (CONTROLS.index(info.control), "") if info.control else load_taxonomy().order(info.leaf)
    return (ROLES.index(role_of(info)), place, setting.method, setting.setting)


def shown(value: Any) -> str:
    """A value of a config: text as it is, in one line, anything else as JSON."""
    return one_line(value if isinstance(value, str) else canonical_json(value))
