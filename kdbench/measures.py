"""What is measured: a number's name, which way is better, and its unit. Records, statistics and reports all read it."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from kdbench.text import fixed


@dataclass(frozen=True)
class Measure:
    """A measure of a network on held-out data.

    Attributes:
        name: the field's own, as a column's head shows it: ``top1``, ``mIoU``, ``AbsRel``, ``return``.
        higher: whether higher is better.
        unit: ``%`` for shares of 100; else a unit or nothing.
        examples: what the test split consists of, of which each has a score: ``images``, ``episodes``.
    """

    name: str
    higher: bool = True
    unit: str = "%"
    examples: str = "images"

    @property
    def label(self) -> str:
        """The name as people write it."""
        return re.sub(r"^top(?=\d+$)", "top-", self.name)

    @property
    def quantity(self) -> str:
        """Name and unit, with an arrow where lower is better: ``top-1 %``, ``RMSE m ↓``."""
        return f"{self.label} {self.suffix}".rstrip()

    @property
    def suffix(self) -> str:
        """What stands behind the name in `quantity`."""
        return " ".join(filter(None, [self.unit, "" if self.higher else "↓"]))

    @property
    def direction(self) -> str:
        return f"{'higher' if self.higher else 'lower'} is better"

    def merit(self, value: float) -> float:
        """`value` so that higher is better."""
        return value if self.higher else -value

    def digits(self, values: Iterable[float]) -> int:
        """The decimals that tell `values` apart which stand in one column, or beside each other."""
        return 2 if self.unit == "%" else decimals(values)

    def text(self, value: float, digits: int | None = None) -> str:
        """A value with its unit; without `digits` as it is written alone."""
        return f"{fixed(value, self.digits([value]) if digits is None else digits)} {self.unit}".rstrip()

    def sentence(self, value: float) -> str:
        """A value by itself, which says what it is of unless that is top-1."""
        return self.text(value) if self.name == "top1" else f"{self.label} {self.text(value)}"


TOP1 = Measure("top1")
"""The measure of classification, and of every record that names none."""


FURTHER = {
    measure.name: measure
    for measure in (
        TOP1,
        Measure("top5"),
        Measure("nll", higher=False, unit="nats"),
        Measure("ece", higher=False),
        Measure("ci95", higher=False),
        Measure("forgetting", higher=False),
        Measure("pixel_accuracy"),
        Measure("RMSE", higher=False, unit="m"),
        Measure("delta1"),
        Measure("average"),
        Measure("agreement"),
        Measure("mAP"),
        Measure("mIoU"),
        Measure("retrieval_mAP"),
    )
}
"""What the meters of `kdbench.tasks` measure beside what is ranked; records hold the names alone."""


def further(name: str) -> Measure:
    """A further measure by name; of one that is not known here nothing is said but that."""
    return FURTHER.get(name, Measure(name, unit=""))


def decimals(values: Iterable[float]) -> int:
    """Two, or four where most are small, as errors of depth and log-likelihoods are."""
    return 4 if statistics.median([abs(value) for value in values] or [0.0]) < 10 else 2
