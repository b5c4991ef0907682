"""``kdbench run``: train the cells of a grid, and show the tables that they stand in."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from kdbench.cli.completion import composed
from kdbench.cli.console import fail, out, say
from kdbench.cli.jobs import Jobs, run_jobs
from kdbench.errors import Interrupted, UserError

if TYPE_CHECKING:
    from kdbench.cli.outcomes import Told
    from kdbench.engine.job import Job
    from kdbench.engine.run import Bench
    from kdbench.results.record import Record


TRIAL_BATCHES, TRIAL_EPOCHS = 2, 4
"""Of a debug run, epochs where data come whole: enough for a method's stages, and for a last batch beside a first."""
TRIAL_STAGES = 2
"""Epochs of each experience, where there are several."""


def add_to(commands: Any) -> None:
    parser = commands.add_parser("run", help="train the cells of a grid, then show the tables that they stand in")
    composed(parser)


def command(args: Sequence[str]) -> int:
    """Train what Hydra composes from `args`; exit code.

    Raises:
        Interrupted: Ctrl-C or a signal; what became of the cells until then was said.
    """
    jobs = run_jobs("run", run, args)
    errors = jobs.errors + conclude(jobs)
    for message in dict.fromkeys(errors):
        fail(message)
    if jobs.interrupted:
        raise Interrupted
    return 1 if errors or not all(each.outcome.ok for each in jobs.told if each.cells) else 0


def run(job: Job, told: Told) -> None:
    """Train the cells of a job, and tell what becomes of them."""
    from kdbench.cli.outcomes import check_searchable, searching
    from kdbench.engine.cell import cells_of, dataset_of
    from kdbench.engine.grid import run_grid

    if job.debug:
        trial(job, told)
        return
    cells = cells_of(job)
    bench = make_bench(job)
    search = searching()
    if search:
        data = bench.dataset(dataset_of(job))
        check_searchable(data, job.dataset)
    told.results, told.cells, told.verbose = job.paths.results, [cell.id for cell in cells], job.verbose
    run_grid(cells, bench, out, force=job.force, outcome=told.outcome)
    if search and not told.outcome.failed:
        records = [record for cell in cells if (record := bench.store.get(cell.id))]
        told.objective = objective(records)


def objective(records: Sequence[Record]) -> float | None:
    """What a search is to maximise: the mean over records of the last validation measure, its negative if low is good.

    Nothing is worse than cells of which one diverged: that is 0 of 100, or where there is no such scale -infinity.

    Returns:
        None where there is no record.
    """
    last = []
    for record in records:
        measure = record.measure
        if record.status == "diverged":
            return 0.0 if measure.unit == "%" and measure.higher else -math.inf
        known = [value for value in record.curves[f"val/{measure.name}"] if value is not None]
        last.append(measure.merit(known[-1]))
    return sum(last) / len(last) if last else None


def trial(job: Job, told: Told) -> None:
    """A grid in a few batches and epochs, in a folder that goes with it; tells what failed, with its traceback."""
    from rich.console import Console

    from kdbench.engine.cell import cells_of, dataset_of, known_to
    from kdbench.engine.grid import run_grid
    from kdbench.protocol import Protocol
    from kdbench.teaching.recipe import further

    protocol, known = Protocol.of(job.protocol), known_to(job)
    with TemporaryDirectory(prefix="kdbench-debug-") as folder:
        root = Path(folder)
        paths = job.paths.model_copy(update={"results": str(root / "results"), "work": str(root / "work")})
        short = job.model_copy(
            update={
                "debug": None,
                "keep": None,
                "logger": None,
                "teacher": job.teacher.shortened(known),
                "teachers": [each.shortened(known).model_dump() for each in further(job.teacher, job.teachers)],
                "engine": job.engine.model_copy(update={"compile": False, "view_cache": False}),
                "paths": paths,
            }
        )
        bench = make_bench(short, cache=root / "cache", images=TRIAL_BATCHES * protocol.batch_size)
        experiences = len(bench.dataset(dataset_of(job)).experiences)
        epochs = min(max(TRIAL_EPOCHS, TRIAL_STAGES * experiences), protocol.epochs)
        cells = cells_of(short.model_copy(update={"protocol": {**job.protocol, "epochs": epochs}}))
        # of the folder that goes: cells as short as these may stand in the user's own tables
        told.results, told.cells = paths.results, [cell.id for cell in cells]
        # without a bar, which would draw over a debugger's prompt
        run_grid(cells, bench, Console(force_terminal=False), outcome=told.outcome)
        for log in sorted(root.rglob("*.error.log")):
            say(log.read_text(encoding="utf-8"))
    say(f"debug run: at most {TRIAL_BATCHES} batches and {epochs} epochs of each; nothing was stored.")


def make_bench(job: Job, **more: Any) -> Bench:
    from kdbench.engine.run import Bench
    from kdbench.results.store import Store

    if job.debug:
        raise UserError(f"debug={job.debug} is for kdbench run alone: leave it out.")
    return Bench(
        store=Store(job.paths.results),
        work=Path(job.paths.work),
        trainer=job.trainer.model_dump(exclude_unset=True),
        logger=job.logger,
        data_root=job.dataset.get("root"),
        checkpoint_seconds=job.checkpoint_seconds,
        engine=job.engine,
        max_students=job.cohort.max_students,
        keep_students=job.keep == "student",
        **more,
    )


def conclude(jobs: Jobs) -> list[str]:
    """Regenerate the tables of each store, show those that the cells stand in, and sum up; returns errors.

    After an interruption only the last.
    """
    from kdbench.cli.outcomes import differing
    from kdbench.engine.grid import Outcome

    done = [each for each in jobs.told if each.cells and not (each.errors and each.outcome == Outcome())]
    cells: dict[Path, set[str]] = defaultdict(set)
    for each in done:
        if each.outcome.ran or each.outcome.skipped or each.outcome.diverged:  # else there is nothing to show
            cells[Path(each.results)] |= {*each.cells}
    errors, warnings = [], []
    verbose = any(each.verbose for each in done)
    for results, ids in cells.items() if not jobs.interrupted else ():
        try:
            warnings += print_tables(results, ids, verbose)
        except UserError as error:
            errors.append(str(error))
    if not done:
        return []
    outcomes = [each.outcome for each in done]
    outcome = sum(outcomes[1:], start=outcomes[0])
    say("\n".join([outcome.summary(), *warnings]))
    values = {each.number: each.objective for each in done if each.objective is not None}
    if values:
        best = max(values, key=values.__getitem__)
        say(f"best on the validation images, {values[best]:.2f}: job {best} ({differing(jobs.told)[best]})")
    return [error for error in errors if not any(error in line for line in outcome.failed)]


def print_tables(results: Path, cells: set[str], verbose: bool) -> list[str]:
    """Regenerate the store's tables, and show those that the cells stand in; returns what is odd about them."""
    from kdbench.registry import methods
    from kdbench.report import build_tables, generate, render_terminal, write
    from kdbench.results.labels import load_labels
    from kdbench.results.store import Store

    records, known, labels = Store(results).load(), methods(), load_labels(results)
    shown = [table for table in build_tables(records, known, labels) if cells & table.cells]
    if shown:
        write(results, generate(results, methods=known, records=records))
        say(render_terminal(shown, None if verbose else results / "tables"))
        say(f"tables: {results / 'tables'}\nleaderboard: {results / 'leaderboard.html'}")
    return [f"{table.title}: the teacher is {table.weak}." for table in shown if table.weak]
