"""What ``kdbench tune`` finds: trials of one method make a study; studies make a table, lists, and a pair's YAML."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.table import Column, Table

from kdbench.cli.console import plain, say
from kdbench.data.batch import DataSpec
from kdbench.engine.job import Job
from kdbench.errors import UserError
from kdbench.files import write_atomic, writing_to
from kdbench.measures import Measure
from kdbench.results.record import digest
from kdbench.tasks import task_for
from kdbench.text import fixed

FOLDER = "tune"
"""In ``paths.work``: the store of trials, and a CSV file for each study."""


@dataclass(frozen=True)
class Trial:
    """One setting, and what came of it.

    Attributes:
        number: 0 is the default setting.
        settings: value by dotted key, without ``method.NAME``.
        cells: ids, one for each seed.
        merit: mean over seeds of the last validation measure, so that higher is better; None if it could not be tried.
        diverged: some of its cells.
    """

    number: int
    settings: Mapping[str, Any]
    cells: tuple[str, ...]
    merit: float | None
    diverged: bool = False


@dataclass
class Study:
    """The trials of one method, none of them twice, the first with its default settings.

    Attributes:
        ranges: in Hydra's grammar, by dotted key, without ``method.NAME``.
    """

    method: str
    ranges: Mapping[str, str]
    trials: list[Trial] = field(default_factory=list)

    @property
    def best(self) -> Trial:
        """The earliest of the best: no other setting is preferred to an equal default."""
        return max(self.trials, key=lambda trial: -math.inf if trial.merit is None else trial.merit)


@dataclass(frozen=True)
class Judged:
    """What all studies of a command have in common: the job that their trials are variants of, and its data."""

    job: Job
    data: DataSpec

    @property
    def measure(self) -> Measure:
        return task_for(self.data).primary

    @property
    def pair(self) -> str:
        return f"{self.job.pair.teacher}-{self.job.pair.student}"

    @property
    def on(self) -> str:
        """What a trial is judged on, in words."""
        seeds = f"seed{'s' if len(self.job.seed) > 1 else ''} {', '.join(map(str, self.job.seed))}"
        return f"{self.data.n_val} validation {self.measure.examples}, {seeds}"

    @property
    def folder(self) -> Path:
        return Path(self.job.paths.work, FOLDER)

    def tuned_pair(self, folder: Path) -> Path:
        """The pair's file in a folder for ``--config-dir``."""
        return folder / "pair" / f"{_name(self.pair)}-tuned.yaml"

    def reached(self, trial: Trial, digits: int | None = None) -> str:
        """What a trial reached, without a unit."""
        if trial.merit is None:
            return "failed"
        value = self.measure.merit(trial.merit)
        return (
            "diverged" if trial.diverged else fixed(value, self.measure.digits([value]) if digits is None else digits)
        )

    def digits(self, studies: Sequence[Study]) -> int:
        """Decimals for all that stands in one table."""
        trials = [trial for study in studies for trial in (study.trials[0], study.best) if not trial.diverged]
        return self.measure.digits(trial.merit for trial in trials if trial.merit is not None)


def show(judged: Judged, studies: Sequence[Study]) -> None:
    """The studies as one table."""
    digits = judged.digits(studies)
    right = (Column(head, justify="right") for head in ("Trials", "Default", "Best"))
    table = Table("Method", *right, "Best settings")
    for study in studies:
        reached = (judged.reached(trial, digits) for trial in (study.trials[0], study.best))
        table.add_row(*map(plain, (study.method, str(len(study.trials)), *reached, _best(study))))
    title = (judged.data.name, judged.pair, judged.job.protocol["name"])
    say(f"{', '.join(map(str, title))}: {judged.measure.quantity} on {judged.on}")
    say(table)


def _best(study: Study) -> str:
    if not study.ranges:
        return "nothing to search for"
    return f"{shown(study.best.settings)}{' (default)' if study.best is study.trials[0] else ''}"


def shown(settings: Mapping[str, Any]) -> str:
    """Settings in one line, numbers with four digits."""
    return ", ".join(
        f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in settings.items()
    )


def write_trials(judged: Judged, study: Study) -> None:
    """List a study's trials as CSV, in a file of the same name for the same data, networks, protocol, seeds and ranges.

    Raises:
        UserError: it cannot be written.
    """
    job, text = judged.job, io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["trial", *study.ranges, f"val {judged.measure.name}", "cells"])
    for trial in study.trials:
        value = "" if trial.merit is None else "diverged" if trial.diverged else judged.measure.merit(trial.merit)
        rows.writerow([trial.number, *trial.settings.values(), value, " ".join(trial.cells)])
    known = digest({"ranges": dict(study.ranges), "default": study.trials[0].cells})[:8]
    name = _name(f"{study.method}-{judged.pair}-{job.dataset['name']}-{job.protocol['name']}-{known}")
    with writing_to(judged.folder):
        judged.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(judged.folder / f"{name}.csv", text.getvalue(), overwrite=True)


def write_pair(judged: Judged, studies: Sequence[Study], folder: Path) -> Path:
    """Write the pair with the best values of each study, beside those that it has already; returns the file.

    Raises:
        UserError: it cannot be written, or is there already.
    """
    job, digits = judged.job, judged.digits(studies)
    searched = [study for study in studies if study.ranges]
    lines = [
        f"# kdbench tune: {judged.measure.quantity} on {judged.on}, of {job.dataset['name']}, protocol "
        f"{job.protocol['name']}",
        *(
            f"# {study.method}: {judged.reached(study.best, digits)}, the best of {len(study.trials)} trials; "
            f"by default {judged.reached(study.trials[0], digits)}"
            for study in searched
        ),
    ]
    tuned = {**job.pair.tuned, **{study.method: _nested(study) for study in searched}}
    content = {"teacher": job.pair.teacher, "student": job.pair.student, "tuned": tuned}
    lines.append(yaml.safe_dump(content, sort_keys=False, default_flow_style=None))
    file = judged.tuned_pair(folder)
    with writing_to(file.parent, "write=FOLDER says where"):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            write_atomic(file, "\n".join(lines), overwrite=False)
        except FileExistsError:
            raise UserError(f"{file} is there already: remove it, and repeat the command.") from None
    return file


def _nested(study: Study) -> dict[str, Any]:
    """The best settings, as mappings within mappings where keys are dotted."""
    made: dict[str, Any] = {}
    for key, value in study.best.settings.items():
        *within, last = key.split(".")
        inner = made
        for part in within:
            inner = inner.setdefault(part, {})
        inner[last] = value
    return made


def _name(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text)
