"""Sweeps as the process sees them that was asked for one: what is planned, what is searched for, who did not answer."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, open_dict, read_write

from kdbench.cli import slurm
from kdbench.cli.console import say
from kdbench.cli.outcomes import Told, check_searchable, differing, is_search
from kdbench.cli.tours import prepare_tour
from kdbench.data.sources import source_of
from kdbench.errors import UserError
from kdbench.results.store import writing_to


@dataclass(frozen=True)
class Sweep:
    """A sweep as its command planned it.

    Attributes:
        folder: absolute.
        launcher: its name, as in ``hydra/launcher=NAME``.
        planned: each job's overrides; None where a search decides as it goes along.
    """

    folder: Path
    launcher: str
    planned: list[list[str]] | None

    def unheard(self, told: Sequence[Told], gave_up: bool) -> Iterator[str]:
        """A sentence for each job that did not come to its end.

        Args:
            gave_up: the launcher did, so that jobs may still wait or run.
        """
        if not told and not self.planned:
            yield f"no job left a word: {self.folder} must be the same folder for all workers."
        begun = {each.number: each for each in told}
        planned = list(enumerate(self.planned)) if self.planned is not None else []
        jobs = begun | {n: Told(n, overrides=overrides) for n, overrides in planned if n not in begun}
        names = differing(list(jobs.values()))
        for number, job in sorted(jobs.items()):
            name = f"job {number}" + (f" ({names[number]})" if names[number] else "")
            log = next(self.folder.glob(f".submitit/{job.id}/*.err"), None) if job.id else None
            where = f" (its log: {log})" if log else ""
            if number not in begun:
                if gave_up:
                    yield f"{name} was not begun, or still waits in a queue: repeat the command to go on."
                else:
                    yield f"{name} left no word: {self.folder} must be the same folder for all workers."
            elif job.state == "interrupted":
                yield f"{name} was interrupted{where}: repeat the command to go on."
            elif job.state == "begun" and gave_up:
                yield f"{name} did not end{where}: it was killed, or still runs; repeat the command to go on."
            elif job.state == "begun":
                yield f"{name} was killed, or its machine failed{where}: repeat the command to go on."

    def queued(self) -> str | None:
        """What to do about jobs that go on although their command was interrupted."""
        if not self.launcher.endswith("slurm"):
            return None
        ids = sorted({path.name.partition("_")[0] for path in self.folder.glob(".submitit/[0-9]*")})
        return f"jobs that Slurm has go on: scancel {' '.join(ids)} ends them." if ids else None

    def why(self, error: Exception, told: Sequence[Told]) -> str:
        """One sentence for what a launcher or sweeper raised; all of its text goes into a file."""
        if isinstance(error, UserError):
            return str(error)
        where = Path(error.filename or "") if isinstance(error, OSError) else Path()
        if where.is_relative_to(self.folder) or (where.is_absolute() and self.folder.is_relative_to(where)):
            try:
                with writing_to(self.folder):
                    raise error
            except UserError as plain:
                return str(plain)
        if self.planned is None and told and all(each.state == "ended" and each.objective is None for each in told):
            return "the search found nothing, for none of its jobs came to a value."
        text = str(getattr(error, "cause", None) or error).strip()
        lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
        first = next((line for line in lines if not re.match(r"Traceback|ray::|-+$", line)), lines[0])
        if ended := re.search(r"^Job (\S+) .*?\(state: ([^)]+)\)", text, re.DOTALL):  # submitit's, over several lines
            first = f"job {ended[1]} has ended without a result, its state is {ended[2]}"
        log = self.folder / "launcher.log"
        with suppress(OSError):
            log.write_text(str(error), encoding="utf-8")
        more = f" (all of it in {log})" if len(lines) > 1 else ""
        return f"hydra/launcher={self.launcher} gave up: {type(error).__name__}: {first.rstrip('.:')}{more}."


SWEEPS: list[Sweep] = []
"""Those that this process began: Hydra makes the callback, and keeps it to itself."""


class Stop(BaseException):
    """What a callback raised: of an `Exception`, Hydra would make a warning."""


class Sweeps(Callback):
    """Hydra's word, in the process that was asked for a sweep, that one begins; named in run.yaml."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            self.begin(config)
        except Exception as error:
            raise Stop from error

    def begin(self, config: DictConfig) -> None:
        hydra = config.hydra
        folder = Path(hydra.runtime.cwd, hydra.sweep.dir)
        check_gpus(hydra)
        for sentence in prepare_tour(config):
            say(sentence)
        with read_write(hydra), open_dict(hydra):
            # one folder for all workers, wherever they stand; each composes its config anew
            hydra.sweep.dir = str(folder)
            hydra.overrides.hydra.append(f"hydra.sweep.dir={QuotedString(str(folder), Quote.single).with_quotes()}")
            if is_search(hydra):
                logging.getLogger("hydra_plugins").setLevel(logging.CRITICAL)  # what fails is told by the jobs
                if "optuna" in hydra.sweeper._target_:
                    import_module("optuna").logging.set_verbosity(logging.WARNING)
                prepare_search(config)
        SWEEPS.append(Sweep(folder, str(hydra.runtime.choices["hydra/launcher"]), _planned(hydra)))
        if str(hydra.launcher._target_).endswith(".SlurmLauncher"):
            slurm.watch()


def check_gpus(hydra: DictConfig) -> None:
    """Raises `UserError` where Ray would wait for ever for GPUs that this machine has not."""
    ray = hydra.launcher.get("ray") or {}
    init, remote = (ray.get(part) or {} for part in ("init", "remote"))
    wanted = remote.get("num_gpus")
    if wanted and init.get("num_gpus") is None and init.get("address") in (None, "local"):
        import torch

        if wanted > (there := torch.cuda.device_count()):
            raise UserError(
                f"hydra.launcher.ray.remote.num_gpus={wanted} is what each job is to have, and PyTorch sees {there} "
                "GPUs here: ask for fewer, or take the processors with cluster=joblib."
            )


def prepare_search(config: DictConfig) -> None:
    """Have a search look at the ranges under `search` in the methods' YAML, where the user said nothing of them.

    What is fixed is moved to where every job's config starts from: a sweeper would hand it on without its quotes.
    """
    hydra = config.hydra
    given = _parsed(list(hydra.overrides.task))
    spans = [override for override in given if override.is_sweep_override()]
    ranges = [str(override.input_line) for override in spans]
    known = [*(override.key_or_group for override in given), *map(str, hydra.sweeper.get("params") or {})]
    swept = {override.key_or_group for override in spans}
    if not any(key == "experiment" or key.startswith("dataset") for key in swept):
        check_searchable(source_of(config.dataset).build(), config.dataset)  # before jobs wait in a queue
    if not {"method", "experiment"} & swept:
        for name, method in config.method.items():
            for key, span in (method.get("search") or {}).items():
                setting = f"method.{name}.{key}"
                if not any(f"{setting}.".startswith(f"{other}.") for other in known if other != "method"):
                    ranges.append(f"{setting}={span}")
    hydra.overrides.hydra += [str(override.input_line) for override in given if not override.is_sweep_override()]
    hydra.overrides.task = ranges
    if "direction" in hydra.sweeper and not any("hydra.sweeper.direction" in each for each in hydra.overrides.hydra):
        hydra.sweeper.direction = "maximize"  # Optuna's own default would look for the worst


def _planned(hydra: DictConfig) -> list[list[str]] | None:
    if is_search(hydra):
        return None
    params = [f"{key}={value}" for key, value in (hydra.sweeper.params or {}).items()]
    with suppress(Exception):  # what is wrong with the overrides is Hydra's to say
        (jobs,) = BasicSweeper.split_arguments(_parsed([*params, *hydra.overrides.task]), None)
        return [list(job) for job in jobs]
    return []


def _parsed(overrides: list[str]) -> list[Override]:
    return OverridesParser.create(config_loader=GlobalHydra.instance().config_loader()).parse_overrides(overrides)
