"""Curves of records in few bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from kdbench.results.record import Record

CURVE_POINTS = 60
"""The most points that a curve is shown with; the record has them all."""

_LEVELS = 64 * 64 - 2
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_NULL = "__"


def curves(record: Record) -> list[list[Any]]:
    """The loss terms and what is measured on the test set: name, number of points, and `pack_curve`."""
    primary = record.measure.name
    shown = [
        name
        for name, values in sorted(record.curves.items())
        if values and (not name.startswith(("test", "val")) or name.endswith(primary))
    ]
    return [[name, len(record.curves[name]), *pack_curve(record.curves[name])] for name in shown]


def pack_curve(values: Sequence[float | None]) -> tuple[float, float, str]:
    """A curve in few bytes: its least and largest value, and two characters for each of at most `CURVE_POINTS` points.

    The points, first and last included, are evenly spread over `values`. A point is a level in 0..4094 between the two
    values, in base 64 (most significant digit first); ``__`` is a value that was not finite.
    """
    count = min(len(values), CURVE_POINTS)
    step = (len(values) - 1) / (count - 1) if count > 1 else 0.0
    points = [values[math.floor(index * step + 0.5)] for index in range(count)]
    finite = [value for value in points if value is not None]
    low, high = (_significant(min(finite)), _significant(max(finite))) if finite else (0.0, 0.0)
    span = high - low
    packed = []
    for value in points:
        if value is None:
            packed.append(_NULL)
            continue
        level = round(min(max((value - low) / span, 0.0), 1.0) * _LEVELS) if span > 0 else 0
        packed.append(_ALPHABET[level // 64] + _ALPHABET[level % 64])
    return low, high, "".join(packed)


def _significant(value: float) -> float:
    return float(f"{value:.5g}")
