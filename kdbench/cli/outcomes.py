"""What becomes of a command's jobs, whatever launcher runs them.

A launcher may start a job in another process or on another machine, and what the job returns belongs to the sweeper:
it is the objective of a search. What all launchers share is the sweep's folder. So each job of a sweep leaves a file
there, and the process that was asked for the sweep reads them, also where the launcher itself gave up.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import env_override
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kdbench.cli.chosen import leave_the_chosen
from kdbench.cli.terminable import terminable
from kdbench.data.datasets import Dataset
from kdbench.engine.grid import Outcome
from kdbench.engine.job import Job
from kdbench.engine.signals import interrupting
from kdbench.errors import UserError
from kdbench.results.store import write_atomic, writing_to
from kdbench.targets import first_line
from kdbench.tuned import check_tuned

VARIABLES = ("KDBENCH_CACHE", "KDBENCH_DATA")
"""Folders that workers on other machines would not know of."""

PATHS = ("paths.results", "paths.work", "dataset.root")
"""Settings that start where the user stands, whatever folder a job is put into."""


@dataclass
class Told:
    """What a job says of itself, filled in as it goes along.

    Attributes:
        number: of the job in its sweep.
        id: the scheduler's name for it.
        overrides: the settings that make it differ from the config's defaults.
        state: ``begun`` is what a killed job leaves.
        errors: sentences.
        said: what the command prints at its end.
        results: the store.
        verbose: all that there is to know about its tables is to be shown.
        cells: ids of its cells.
        outcome: what became of them.
        objective: what a search is to maximise, measured on validation images; None if there is none.
    """

    number: int = 0
    id: str = ""
    overrides: list[str] = field(default_factory=list)
    state: Literal["begun", "interrupted", "ended"] = "begun"
    errors: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    results: str = ""
    verbose: bool = False
    cells: list[str] = field(default_factory=list)
    outcome: Outcome = field(default_factory=Outcome)
    objective: float | None = None


def leave(told: Told, folder: Path, token: str) -> None:
    """Write what a job tells into the sweep's folder, whole or not at all; a requeued job writes again.

    Args:
        token: of the command that asked for the sweep: another command's sweep may have the same folder.

    Raises:
        UserError: the folder cannot be written.
    """
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / f"{told.number}.{token}.outcome.json", json.dumps(asdict(told)), overwrite=True)


def left(folder: Path, token: str) -> list[Told]:
    """What the jobs of a sweep told, in their order."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob(f"*.{token}.outcome.json")]
    told = [Told(**{**each, "outcome": Outcome(**each["outcome"])}) for each in found]
    return sorted(told, key=lambda each: each.number)


def is_search(hydra: Any) -> bool:
    """Whether a sweeper chooses the jobs by what earlier ones returned."""
    return hydra.mode == RunMode.MULTIRUN and not str(hydra.sweeper._target_).endswith(".BasicSweeper")


def searching() -> bool:
    """Whether this job's return value is a search's objective."""
    return is_search(HydraConfig.get())


def check_searchable(dataset: Dataset, settings: Mapping[str, Any]) -> None:
    """Raises `UserError` where a search would have nothing to judge a job by; `settings` are those of the data set."""
    if dataset.val is None and "val" not in settings:
        raise UserError(
            f"{dataset.spec.name} cannot be searched on: it has no split beside the one that it is tested on, and a "
            "search must not look at that."
        )
    if dataset.val is None:
        raise UserError(
            "a search must not look at the test images, and there are no others to judge by: hold some of the training "
            "images out, as in dataset.val=500."
        )


@dataclass
class Work:
    """What each job of a command does; in the process of a worker, this object is a copy.

    Attributes:
        task: does one job, and fills in what it tells.
        here: where the user stands.
        environ: variables of the user's shell.
        token: of this command.
        told: what the only job said, where it is no sweep.
        bug: what that job raised.
        remote: this is a worker's copy.
    """

    task: Callable[[Job, Told], None]
    here: str = field(default_factory=os.getcwd)
    environ: dict[str, str] = field(default_factory=lambda: dict(_variables()))
    token: str = field(default_factory=lambda: secrets.token_hex(4))
    told: list[Told] = field(default_factory=list)
    bug: Exception | None = None
    remote: bool = False

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state | {"remote": True}

    def __call__(self, cfg: DictConfig) -> float | None:
        hydra = HydraConfig.get()
        told = Told(overrides=list(hydra.overrides.task))
        if hydra.mode != RunMode.MULTIRUN:
            self.told.append(told)
            self.bug = self._do(cfg, told)
            return None
        folder = Path(hydra.sweep.dir)
        told.number, told.id = hydra.job.num, str(hydra.job.id)
        leave(told, folder, self.token)
        try:
            bug = self._do(cfg, told)
            if bug:  # not raised: that would hide what became of the other jobs
                log = folder / f"{told.number}.traceback.log"
                with writing_to(folder):
                    log.write_text("".join(traceback.format_exception(bug)), encoding="utf-8")
                told.errors.append(f"job {told.number}: {type(bug).__name__}: {first_line(bug)} (traceback in {log}).")
        finally:
            leave(told, folder, self.token)
        return told.objective

    def _do(self, cfg: DictConfig, told: Told) -> Exception | None:
        """Do the task; what it raised that is nobody's mistake but ours."""
        told.state = "interrupted"
        bug = None
        try:
            with self._standing(cfg), interrupting() as raised, terminable() if self.remote else nullcontext():
                leave_the_chosen(cfg, HydraConfig.get())
                check_tuned(cfg, [Path(each.path) for each in HydraConfig.get().runtime.config_sources])
                self.task(Job.of(cfg), told)
        except KeyboardInterrupt:
            if self.remote and raised and isinstance(raised[0], Exception):
                return None  # a scheduler that would start the job again leaves the process; this one wants an answer
            raise
        except UserError as error:
            told.errors.append(str(error))
        except Exception as error:
            bug = error
        told.state = "ended"
        return bug

    @contextmanager
    def _standing(self, cfg: DictConfig) -> Iterator[None]:
        """Where the user stands, with what the user's shell knows, in whatever process and folder this is."""
        if self.here not in sys.path:
            sys.path.append(self.here)  # a user's method may lie there
        if HydraConfig.get().job.chdir:
            for key in PATHS:
                value = OmegaConf.select(cfg, key)
                if isinstance(value, str) and not value.startswith("~"):
                    OmegaConf.update(cfg, key, os.path.join(self.here, value))
        elif os.getcwd() != self.here:
            try:
                os.chdir(self.here)
            except OSError as error:
                raise UserError(
                    f"the folder {self.here}, where the command was given, cannot be entered on {socket.gethostname()} "
                    f"({error.strerror}): workers must share it."
                ) from None
        with env_override(self.environ):
            yield


def _variables() -> Iterator[tuple[str, str]]:
    for name in VARIABLES:
        if value := os.environ.get(name):
            yield name, os.path.abspath(os.path.expanduser(value))


def differing(told: list[Told]) -> dict[int, str]:
    """For each job's number the settings by which it differs from the others, in one line."""
    common = set.intersection(*({*each.overrides} for each in told)) if len(told) > 1 else set()
    return {each.number: " ".join(o for o in each.overrides if o not in common) for each in told}
