"""The runs of one method that differ in the seed alone, and how two such sets of runs compare."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from kdbench.results.record import MethodInfo, Record, canonical_json, flatten, unpack_correct
from kdbench.results.stats import ALPHA, Difference, paired_difference, sign_flip
from kdbench.taxonomy import load_taxonomy

CONTROLS = ("scratch", "smoothing", "kd")


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

    @property
    def finished(self) -> list[Record]:
        return [record for record in self.records if record.status == "finished"]

    @property
    def scores(self) -> dict[int, float]:
        """Last-epoch accuracy by seed."""
        return {record.cell.seed: record.metrics.last for record in self.records if record.metrics}


@dataclass(frozen=True)
class Comparison(Difference):
    """A paired difference to a control.

    Attributes:
        holm: `p` corrected for all rows of the table that are compared with this control.
        p_examples: exact sign-flip test over the test examples (`kdbench.results.stats.sign_flip`).
    """

    p_examples: float
    holm: float | None = None

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
        flats = {same: {key: shown(value) for key, value in flatten(json.loads(same)).items()} for same in groups}
        differing = sorted(
            key for key in set().union(*flats.values()) if len({flat.get(key) for flat in flats.values()}) > 1
        )
        for same, group in groups.items():
            values = ((key.removeprefix("method."), flats[same].get(key, "unset")) for key in differing)
            label = ", ".join(f"{key}={value}" for key, value in values)
            ordered = sorted(group, key=lambda record: record.cell.seed)
            settings.append(Setting(method, label, flats[same], ordered))
    return sorted(settings, key=_rank)


def compare_settings(a: Setting, b: Setting) -> Comparison | None:
    """a - b over common seeds, and over the test examples of these runs; None where they share no seed."""
    difference = paired_difference(a.scores, b.scores)
    if difference is None:
        return None
    others = {record.cell.seed: record for record in b.finished}
    pairs = [
        (unpack_correct(record.correct), unpack_correct(other.correct))
        for record in a.finished
        if (other := others.get(record.cell.seed)) and record.correct and other.correct
    ]
    values = {each.name: getattr(difference, each.name) for each in fields(difference)}
    return Comparison(**values, p_examples=sign_flip(pairs))


def reference(settings: Sequence[Setting], control: str) -> Setting | None:
    """The setting of a control that others are compared with: the one of most seeds, not the one of best accuracy."""
    candidates = [setting for setting in settings if setting.info.control == control and setting.scores]
    return max(candidates, key=lambda setting: len(setting.scores), default=None)


def row_label(method: str, setting: str) -> str:
    return f"{method} ({setting})" if setting else method


def _rank(setting: Setting) -> tuple[int, tuple[int, str], str, str]:
    """Controls, then the survey's leaves in its order, then extensions."""
    info = setting.info
    if info.control:
        place = (0, (CONTROLS.index(info.control), ""))
    else:
        place = (2 if info.extension else 1, load_taxonomy().order(info.leaf))
    return (*place, setting.method, setting.setting)


def shown(value: Any) -> str:
    """A value of a config: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else canonical_json(value)
