"""``kdbench tune``: search the ranges of methods, each with as many trials as the control, on validation images alone.

A trial is a cell as any other, in a store of its own, where no table looks. So nothing has to be remembered of a search
but its cells: repeated, the same command proposes the same settings, finds those that are done, and goes on.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.cli.completion import composed
from kdbench.cli.console import fail, out, say
from kdbench.cli.jobs import EXTRAS, Jobs, run_jobs
from kdbench.cli.overrides import folders, value_of
from kdbench.cli.run import make_bench, objective
from kdbench.errors import Interrupted, UserError, nearest

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

    from kdbench.cli.outcomes import Told
    from kdbench.cli.studies import Judged, Study
    from kdbench.data.batch import DataSpec
    from kdbench.engine.job import Job
    from kdbench.engine.run import Bench
    from kdbench.results.record import Record

OPTUNA = "hydra/sweeper=optuna"
SEED = 0
"""Of whatever is drawn."""
ROUNDS = 5
"""How often Optuna is asked for more proposals, in place of those that were there before."""


@dataclass(frozen=True)
class Options:
    """What is tune's own among the arguments; `control` is ``auto`` for that of the data's task."""

    trials: int = 20
    control: str | None = "auto"
    write: Path | None = None


@dataclass
class Arguments:
    """The arguments by who reads them.

    Attributes:
        own: tune's.
        ranges: of methods' settings, by whole key.
        fixed: what holds for all jobs, flags included.
        launcher, sweeper: settings of Hydra's.
    """

    own: dict[str, Any] = field(default_factory=dict)
    ranges: dict[str, str] = field(default_factory=dict)
    fixed: list[str] = field(default_factory=list)
    launcher: list[str] = field(default_factory=list)
    sweeper: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, args: Sequence[str]) -> Arguments:
        """Raises `UserError` for what decides about the sweep, and for a range of something else than a method."""
        read = cls()
        for arg in args:
            key, equals, value = arg.partition("=")
            name = key.lstrip("+~")
            if arg in ("-m", "--multirun") or name in ("tour", "reproduction", "hydra.mode"):
                raise UserError(f"kdbench tune is a sweep of its own: leave out {arg}.")
            if name in ("hydra/sweeper", *(f"hydra.sweeper.{it}" for it in ("n_trials", "storage", "study_name"))):
                raise UserError(f"{arg} is for kdbench tune to say: leave it out (trials=N says how many).")
            if name in Options.__dataclass_fields__ and equals:
                read.own[name] = value_of(arg)
            elif name == "cluster" or re.match(r"hydra[./]launcher\b", name):
                read.launcher.append(arg)
            elif re.match(r"hydra[./]sweeper\b", name):
                read.sweeper.append(arg)
            elif arg.startswith("-") or not equals or not _parsed(arg).is_sweep_override():
                read.fixed.append(arg)
            elif re.fullmatch(r"method\.[^.]+\..+", name):
                read.ranges[name] = value
            else:
                instead = f"write '{name}=[{value}]'" if name in ("seed", "method") else "give one"
                raise UserError(f"{arg} is more than one value, and only settings of methods are searched: {instead}.")
        return read

    @property
    def options(self) -> Options:
        """Raises `UserError` for what is none."""
        trials, control, write = (self.own.get(key, getattr(Options, key)) for key in ("trials", "control", "write"))
        if not isinstance(trials, int) or isinstance(trials, bool) or trials < 2:
            raise UserError(f"trials={trials}: give a whole number from 2, as in trials=20; the first is the default.")
        if control is not None and (not isinstance(control, str) or not control):
            raise UserError(f"control={control}: name one method, as in control=kd, or null for none.")
        if write is not None and (not isinstance(write, str) or not write):
            raise UserError(f"write={write}: name a folder, as in write=myconf.")
        return Options(trials, control, Path(write).expanduser() if write else None)


def add_to(commands: Any) -> None:
    composed(commands.add_parser("tune", help="search for good settings on validation images"))


def command(args: Sequence[str]) -> int:
    """Do all studies that `args` ask for; exit code.

    Raises:
        Interrupted: Ctrl-C or a signal; the trials until then are kept.
        UserError: what is asked for cannot be done.
    """
    read = Arguments.of(args)
    options = read.options
    planned = plan(read.fixed)
    if isinstance(planned, int):
        return planned

    from kdbench.cli.studies import Judged, Study, show, write_pair, write_trials

    data = data_of(planned)
    control = control_for(data) if options.control == "auto" else options.control
    if control and control not in planned.method:
        read.fixed.append(f"+method@method.{control}={control}")
        planned = plan(read.fixed)
        if isinstance(planned, int):
            return planned
    judged = Judged(planned, data)
    names = dict.fromkeys([*filter(None, [control]), *planned.method])
    studies = [Study(name, ranges_of(name, planned, read)) for name in names]
    check(judged, studies, options, args)
    errors = []
    for study in studies:
        errors += run_study(study, judged, options.trials, read)
        if study.trials:
            write_trials(judged, study)
    done = [study for study in studies if study.trials and study.best.merit is not None]
    if done:
        show(judged, done)
        say(f"Each with at most {options.trials} settings, none of them twice. All trials: {judged.folder}")
    if done and options.write:
        file = write_pair(judged, done, options.write)
        tuned = ",".join(study.method for study in done)
        say(f"{file}: kdbench run --config-dir {options.write} pair={file.stem} 'method=[{tuned}]'")
    for message in dict.fromkeys(errors):
        fail(message)
    return 1 if errors else 0


# ---- what is searched ----------------------------------------------------------------------------------------------


def plan(fixed: Sequence[str]) -> Job | int:
    """The job of which all trials are variants; an exit code where there is none, as after ``--cfg job``."""
    found: list[Job] = []
    jobs = run_jobs("tune", lambda job, told: found.append(job), fixed)
    for message in jobs.errors:
        fail(message)
    return found[0] if found else int(bool(jobs.errors))


def data_of(job: Job) -> DataSpec:
    """Raises `UserError` if the data have no validation split."""
    from kdbench.cli.outcomes import check_searchable
    from kdbench.data.sources import source_of

    data = source_of(job.dataset).build()
    check_searchable(data, job.dataset)
    return data.spec


def control_for(data: DataSpec) -> str | None:
    """Of the controls that methods are compared with, KD or else from scratch, the one made for the data's task."""
    from kdbench.registry import methods
    from kdbench.report.settings import CONTROLS

    fit = [entry for entry in methods() if data.task in entry.tasks]
    for role in reversed(CONTROLS):
        if own := [entry for entry in fit if entry.cls.control == role]:
            return min(own, key=lambda entry: len(entry.tasks)).name
    return None


def ranges_of(name: str, job: Job, read: Arguments) -> dict[str, str]:
    """Where to look for settings of a method: where the command says, else where its YAML does and no value is given.

    Raises:
        UserError: what the YAML says is no range, or one of no setting.
    """
    from hydra.errors import HydraException

    from kdbench.results.record import flatten

    settings = flatten({key: value for key, value in job.method[name].items() if key != "search"})
    prefix = f"method.{name}."
    ranges = {key.removeprefix(prefix): span for key, span in read.ranges.items() if key.startswith(prefix)}
    given = [arg.partition("=")[0].lstrip("+~") for arg in read.fixed]
    for key, span in ({} if ranges else job.method[name].get("search") or {}).items():
        if not any(f"{prefix}{key}.".startswith(f"{other}.") for other in given if other != "method"):
            ranges[key] = str(span)
    for key, span in ranges.items():
        if key not in settings:
            raise UserError(f"there is no setting '{prefix}{key}' to search for: {nearest(key, list(settings))}")
        try:
            override = _parsed(f"{key}={span}")
        except HydraException:
            override = None
        if override is None or not override.is_sweep_override():
            raise UserError(f"{prefix}search.{key}: '{span}' is no range: write one, as in choice(1,2,4).")
        ranges[key] = _like(override, span, settings[key])
    return ranges


def _parsed(override: str) -> Override:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(override)


def _like(override: Override, span: str, default: Any) -> str:
    """A range, its choices as floats where the default is one: 4 and 4.0 are one setting, but would be two cells."""
    if not override.is_choice_sweep() or not isinstance(default, float):
        return span
    return f"choice({','.join(repr(float(v)) if type(v) is int else str(v) for v in _encoded(override))})"


def _encoded(override: Override) -> list[Any]:
    """The values of choices, texts as they are written on a command line."""
    from hydra.core.override_parser.types import Transformer

    return [*override.sweep_iterator(transformer=Transformer.encode)]


def value_at(settings: Mapping[str, Any], key: str) -> Any:
    """A setting by its dotted key; None where there is none."""
    from kdbench.results.record import flatten

    return flatten(settings).get(key)


def size(study: Study) -> float:
    """How many settings there are within the ranges of a study."""
    spans = [_parsed(f"{key}={span}") for key, span in study.ranges.items()]
    return math.prod(math.inf if span.is_interval_sweep() else len([*span.sweep_iterator()]) for span in spans)


def is_drawn(study: Study, trials: int) -> bool:
    """Whether Optuna is not needed: there are no more settings than `trials`, or they are choices for one key."""
    return size(study) <= trials or (len(study.ranges) == 1 and math.isfinite(size(study)))


def drawn(study: Study, trials: int) -> dict[str, str]:
    """Ranges of which all settings are to be tried; the first trial, with the default, is among `trials`."""
    if size(study) <= trials:
        return dict(study.ranges)
    ((key, span),) = study.ranges.items()
    choices = [str(value) for value in _encoded(_parsed(f"{key}={span}"))]
    random.Random(SEED).shuffle(choices)  # with more trials come more of them, not others
    others = [value for value in choices if value_of(f"{key}={value}") != study.trials[0].settings[key]]
    return {key: f"choice({','.join(others[: trials - 1])})"}


def check(judged: Judged, studies: Sequence[Study], options: Options, args: Sequence[str]) -> None:
    """Raises `UserError`, before anything trains, for what would fail in the end."""
    from kdbench.tuned import looked_up, method_file

    methods = judged.job.method
    if not any(study.ranges for study in studies):
        raise UserError(
            f"there is nothing to search for: what {' and '.join(methods)} have under `search`, if anything, is given; "
            "name a range, as in 'method.NAME.KEY=choice(1,2,4)'."
        )
    needed = not all(is_drawn(study, options.trials) for study in studies)
    if needed and not find_spec("hydra_plugins.hydra_optuna_sweeper"):
        raise UserError(f"Optuna is not installed: pip install 'kdbench[{EXTRAS[OPTUNA]}]' brings it.")
    if not options.write:
        return
    if (file := judged.tuned_pair(options.write)).exists():
        raise UserError(f"{file} is there already: name another folder, or remove it.")
    for study in studies:
        yaml = method_file(study.method, folders(args))
        known = looked_up(yaml) if yaml else []
        for key in study.ranges:
            if key not in known:
                default = value_at(methods[study.method], key)
                raise UserError(
                    f"{yaml or study.method} would not take up a tuned {key}: write {key.rpartition('.')[2]}: "
                    f"${{tuned:{default}}} there, or leave out write={options.write}."
                )


# ---- trials --------------------------------------------------------------------------------------------------------


def run_study(study: Study, judged: Judged, trials: int, read: Arguments) -> list[str]:
    """Fill in a study's trials; returns what went wrong, as sentences.

    Raises:
        Interrupted: someone put an end to it.
    """
    name, ranges, methods = study.method, study.ranges, judged.job.method
    spread = [*read.launcher, "-m"] if read.launcher else []
    default = run_jobs("tune", partial(attempt, method=name), [*read.fixed, *spread])
    errors = enter(study, default, {key: value_at(methods[name], key) for key in ranges})
    if errors or not ranges:
        return errors
    whole = is_drawn(study, trials)
    spans = drawn(study, trials) if whole else ranges
    search = [*read.fixed, *(f"method.{name}.{key}={span}" for key, span in spans.items()), *read.launcher, "-m"]
    task = partial(attempt, method=name, first=1)
    if whole:
        return enter(study, run_jobs("tune", task, search))
    search += [OPTUNA, *read.sweeper, *(f"~method.{other}.search" for other in methods if "search" in methods[other])]
    if not any("n_jobs" in arg for arg in read.sweeper):
        search.append("hydra.sweeper.n_jobs=1")
    if not any("sampler" in arg for arg in read.sweeper):
        search.append(f"hydra.sweeper.sampler.seed={SEED}")
    proposals = trials - 1
    for _ in range(ROUNDS):  # from the first proposal on, for what is done costs nothing
        errors = enter(study, run_jobs("tune", task, [*search, f"hydra.sweeper.n_trials={proposals}"]))
        missing = trials - len(study.trials)
        if errors or missing <= 0:
            break
        proposals += missing
    return errors


def attempt(job: Job, told: Told, *, method: str, first: int = 0) -> None:
    """One trial: the cells of one method, of all seeds, in the trials' own store.

    Args:
        first: number of the first trial of the sweep that this is of.
    """
    from kdbench.cli.studies import FOLDER, shown
    from kdbench.engine.cell import cells_of
    from kdbench.engine.grid import run_grid

    folder = str(Path(job.paths.work, FOLDER))
    paths = job.paths.model_copy(update={"results": folder, "work": folder})
    own = job.model_copy(update={"method": {method: job.method[method]}, "paths": paths, "keep": None})
    cells, bench = cells_of(own), make_bench(own)
    lend(job, bench)
    told.results, told.cells = folder, [cell.id for cell in cells]
    values, number = shown(searched(told, method)) if first else "default", first + told.number

    def tell(record: Record) -> str:
        return f"{method}, trial {number} ({values}), seed {record.cell.seed}: {reached(record)}"

    run_grid(cells, bench, out, force=job.force, outcome=told.outcome, tell=tell)
    records = [record for cell in cells if (record := bench.store.get(cell.id))]
    if len(records) == len(cells) and not told.outcome.failed:
        told.objective = objective(records)


def lend(job: Job, bench: Bench) -> None:
    """Let trials find the teachers that lie beside the user's records."""
    from kdbench.engine.cell import teachers_of
    from kdbench.teaching.teachers import Teachers

    theirs = Teachers(Path(job.paths.results))
    for recipe, _ in teachers_of(job):
        if found := theirs.find(recipe, bench.dataset(recipe["dataset"])):
            bench.teachers.keep(found)


def searched(told: Told, method: str) -> dict[str, Any]:
    """What a job's overrides say of a method, by dotted key."""
    prefix = f"method.{method}."
    return {o.partition("=")[0].removeprefix(prefix): value_of(o) for o in told.overrides if o.startswith(prefix)}


def reached(record: Record) -> str:
    """What a cell reached on validation images, in words."""
    merit = objective([record])
    if record.status == "diverged" or merit is None:
        return "diverged"
    return f"{record.measure.sentence(record.measure.merit(merit))} on validation {record.measure.examples}"


def enter(study: Study, jobs: Jobs, default: Mapping[str, Any] | None = None) -> list[str]:
    """Enter what became of jobs among the trials of a study, each setting once; returns what went wrong, as sentences.

    Args:
        default: settings of the first trial, which are not among its overrides.

    Raises:
        Interrupted: someone put an end to it.
    """
    from kdbench.cli.studies import Trial

    known = {trial.cells for trial in study.trials}
    for told in jobs.told:
        cells = tuple(told.cells)
        if cells and cells not in known:
            known.add(cells)
            values = searched(told, study.method)
            settings = {key: values.get(key) for key in study.ranges} if default is None else default
            number = told.number + (default is None)
            study.trials.append(Trial(number, settings, cells, told.objective, bool(told.outcome.diverged)))
    if jobs.interrupted:
        raise Interrupted
    return [*jobs.errors, *(line for told in jobs.told for line in (*told.outcome.failed, *told.outcome.pruned))]
