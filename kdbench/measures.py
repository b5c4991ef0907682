"""What is measured: a number's name, which way is better, and its unit. Records, statistics and reports all read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """A measure of a network on held-out data.

    Attributes:
        name: the field's own, as a column's head shows it: ``top1``, ``mIoU``, ``AbsRel``, ``return``.
        higher: whether higher is better.
        unit: ``%`` for shares of 100; else a unit or nothing.
    """

    name: str
    higher: bool = True
    unit: str = "%"


TOP1 = Measure("top1")
"""The measure of classification, and of every record that names none."""
