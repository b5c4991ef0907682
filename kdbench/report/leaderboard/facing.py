"""Any two rows of a table, face to face: their paired difference over seeds, and who is right on which test example."""

from __future__ import annotations

from typing import Any

import numpy as np

from kdbench.report.model import Table
from kdbench.report.settings import Setting, settings_of
from kdbench.report.sheet import mean, p_value
from kdbench.results.stats import Difference, paired_difference

ROWS = 60
"""Rows of a table that are set against one another, the controls and the best; `kdbench compare` takes any two."""


def facing(table: Table) -> dict[str, Any]:
    """All pairs of rows, the first before the second, in the order of `rows`.

    Returns:
        ``rows``, their places in the table; ``differences``, a text of each pair, or None where they share no seed;
        ``test``, of each pair, what the test says, a place in ``tests``; and ``examples``, of each pair over the seeds
        that both have: those that both, only the first, only the second and none gets right, or None where the records
        do not say.
    """
    settings = settings_of(table.records)
    rows = _chosen(table)
    differences: list[str | None] = []
    test: list[int] = []
    tests: dict[str, int] = {}
    for at, one in enumerate(rows):
        for other in rows[at + 1 :]:
            difference = paired_difference(settings[one].scores, settings[other].scores)
            differences.append(mean(difference, table.digits, signed=True).text if difference else None)
            test.append(tests.setdefault(_test(difference), len(tests)))
    return {
        "rows": rows,
        "differences": differences,
        "test": test,
        "tests": list(tests),
        "examples": _examples([settings[index] for index in rows]),
    }


def _chosen(table: Table) -> list[int]:
    ranked = [
        (row.control is None, -table.measure.merit(row.reached.mean), index)
        for index, row in enumerate(table.rows)
        if row.reached
    ]
    return sorted(index for *_, index in sorted(ranked)[:ROWS])


def _test(difference: Difference | None) -> str:
    if difference is None:
        return "no finished seed in common, so nothing is paired"
    if difference.n == 1:
        return "one seed in common: no interval and no test"
    return f"{p_value(difference.p)}, paired t-test over {difference.n} seeds, not corrected for other comparisons"


def _examples(settings: list[Setting]) -> list[list[int] | None]:
    """Of all pairs, from products of the matrices of right answers, one for each seed."""
    count = len(settings)
    counts = np.zeros((4, count, count), np.int64)
    for seed in sorted({record.cell.seed for setting in settings for record in setting.finished}):
        bits = {
            index: found
            for index, setting in enumerate(settings)
            for record in setting.finished
            if record.cell.seed == seed and (found := record.examples) is not None and found.dtype == bool
        }
        if not bits:
            continue
        places, right = np.array(list(bits)), np.array(list(bits.values()), np.float32)
        both = np.rint(right @ right.T).astype(np.int64)  # exact: counts are far below 2^24
        alone = both.diagonal()[:, None] - both
        quarters = np.stack([both, alone, alone.T, right.shape[1] - both - alone - alone.T])
        counts[:, places[:, None], places[None, :]] += quarters
    first, second = np.triu_indices(count, 1)
    return [each if any(each) else None for each in counts[:, first, second].T.tolist()]
