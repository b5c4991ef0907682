"""The terms of an epoch, summed on the device: reading a value within a step would stop the pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class _Sums:
    """Of the n terms that turns yield together: totals, the last finite totals, and after how many turns; each (n,)."""

    total: Tensor
    last: Tensor
    finite: Tensor
    turns: int = 0


@dataclass
class Tally:
    """Running sums of named scalars.

    Attributes:
        steps: finished so far; the caller counts them.
    """

    steps: int = 0
    _sums: dict[tuple[str, ...], _Sums] = field(default_factory=dict)

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Enter the terms of one turn: scalars."""
        names = tuple(terms)
        # the digits of a half-precision number would not hold a sum of hundreds
        values = torch.stack([v.detach() if v.dtype.itemsize > 2 else v.detach().float() for v in terms.values()])
        if names not in self._sums:
            self._sums[names] = _Sums(torch.zeros_like(values), torch.zeros_like(values), torch.zeros_like(values))
        sums = self._sums[names]
        sums.total = sums.total + values
        finite = sums.total.isfinite()
        sums.last = torch.where(finite, sums.total, sums.last)
        sums.finite = sums.finite + finite
        sums.turns += 1

    def means(self) -> dict[str, float]:
        """The mean of every term over its turns."""
        totals: dict[str, float] = {}
        turns: dict[str, int] = {}
        for name, total, _, _, n in self._read():
            totals[name], turns[name] = totals.get(name, 0.0) + total, turns.get(name, 0) + n
        return {name: total / turns[name] for name, total in totals.items()}

    def lost(self) -> dict[str, int]:
        """Of the terms that are infinite or no number any more: the step, from 0, in which they became so."""
        steps: dict[str, int] = {}
        for name, _, _, finite, n in self._read():
            if finite < n:
                steps[name] = min(finite * self.steps // n, steps.get(name, self.steps))
        return steps

    def finite_means(self) -> dict[str, float]:
        """The mean of every term over the turns in which it was finite; 0 where there were none."""
        totals: dict[str, float] = {}
        turns: dict[str, int] = {}
        for name, _, last, finite, _ in self._read():
            totals[name], turns[name] = totals.get(name, 0.0) + last, turns.get(name, 0) + finite
        return {name: total / max(turns[name], 1) for name, total in totals.items()}

    def _read(self) -> Iterator[tuple[str, float, float, int, int]]:
        """(name, total, last finite total, turns until then, turns), where the device is waited for."""
        for names, sums in self._sums.items():
            columns = (sums.total.tolist(), sums.last.tolist(), map(int, sums.finite.tolist()))
            for name, total, last, finite in zip(names, *columns, strict=True):
                yield name, total, last, finite, sums.turns
