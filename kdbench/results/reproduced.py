"""Two records of one cell: whether the second reproduces the first, and what there was to expect."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kdbench.results.record import Record
from kdbench.results.stats import ALPHA, prediction_interval, sign_flip, sign_flip_scores

PARTS = {
    "processor": "device",
    "torch": "torch",
    "kdbench": "kdbench",
    "threads": "threads",
    "route": "path",
}
"""What equal bits depend on -> where a record's environment says it."""


@dataclass(frozen=True)
class Verdict:
    """Of a record and the one that was made of its cell again.

    Attributes:
        equal: all measures, curves and scores of single examples that the record has are the same numbers again.
        alike: of the test examples, how many have the same score, and of how many; None where records have none.
        other: in what, of all that equal bits depend on, the second differs.
        band: where 95 % of further seeds would lie; None where one seed tells no spread.
        p: of the difference over examples, None where the records have none.
        reproduced: equal bits where they were to be expected, else as near as another seed.
    """

    equal: bool
    alike: tuple[int, int] | None
    other: tuple[str, ...]
    band: tuple[float, float] | None
    p: float | None
    reproduced: bool


def judge(recorded: Record, again: Record, seeds: Sequence[float]) -> Verdict:
    """
    Args:
        seeds: what is measured after the last epoch by all finished records that differ from `recorded` in the seed
            alone, its own among them.
    """
    other = tuple(differing(recorded, again))
    equal = _equal(recorded, again)
    alike = p = None
    one, two = recorded.examples, again.examples
    if one is not None and two is not None and one.shape == two.shape:
        alike = int(np.equal(one, two).sum()), len(one)
        p = sign_flip([(one, two)]) if one.dtype == bool else sign_flip_scores([(one, two)])
    band = prediction_interval(seeds) if seeds else None
    near = recorded.status == again.status == "diverged"
    if again.metrics and recorded.metrics:
        near = band[0] <= again.metrics.last <= band[1] if band else p is not None and p >= ALPHA
    return Verdict(equal, alike, other, band, p, reproduced=equal or (near and bool(other)))


def _equal(recorded: Record, again: Record) -> bool:
    """Whether all numbers that the first record has are those of the second, which may have further measures."""
    was, now = recorded.metrics, again.metrics
    if any(getattr(recorded, part) != getattr(again, part) for part in ("status", "reason", "correct", "scores")):
        return False
    if was and now:
        others = {name: now.others.get(name) for name in was.others}
        if was != now.model_copy(update={"others": others}):
            return False
    return all(again.curves.get(name) == curve for name, curve in recorded.curves.items())


def differing(recorded: Record, again: Record) -> list[str]:
    """In what of all that equal bits depend on two records of one cell differ."""
    was, now = recorded.environment, again.environment
    found = []
    for name, field in PARTS.items():
        values = [getattr(each, field) for each in (was, now)]
        if name == "route":
            values = [route_of(value) for value in values]
        if values[0] != values[1]:
            found.append(name)
    if recorded.method.source and again.method.source and recorded.method.source != again.method.source:
        found.append("code of the method")
    if any(again.networks.get(name, code) != code for name, code in recorded.networks.items()):
        found.append("code of a network")
    teachers = [[info.sha256 for info in filter(None, (each.teacher, *each.others))] for each in (recorded, again)]
    return [*found, *(["teacher"] if teachers[0] != teachers[1] else [])]


def route_of(path: str) -> str:
    """How a cell was computed, without what changes no bit: its company, and looking views up unless it is compiled."""
    path = re.sub(r"; (lockstep of \d+|alone)", "", path)
    return path if ", compiled" in path else path.replace(", views cached", "")
