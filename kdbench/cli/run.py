"""``kdbench run``: train the cells of a grid, and show the tables that they stand in."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.cli.console import fail, out, say
from kdbench.cli.jobs import run_jobs
from kdbench.errors import UserError

if TYPE_CHECKING:
    from kdbench.engine.cell import Job
    from kdbench.engine.grid import Outcome
    from kdbench.engine.run import Bench


def add_to(commands: Any) -> None:
    commands.add_parser(
        "run", help="train cells: kdbench run method=dkd pair=resnet56-resnet20 seed=0 (--help for all)"
    )


@dataclass(frozen=True)
class Done:
    """A grid that ran: its store, the ids of its cells, and what became of them."""

    results: Path
    cells: frozenset[str]
    outcome: Outcome


def command(args: Sequence[str]) -> int:
    """Train what Hydra composes from `args`; exit code."""
    done: list[Done] = []
    errors = run_jobs("run", lambda job: done.append(run(job)), args)
    errors += conclude(done)
    for message in dict.fromkeys(errors):
        fail(message)
    return 1 if errors or not all(each.outcome.ok for each in done) else 0


def run(job: Job) -> Done:
    from kdbench.engine.cell import cells_of
    from kdbench.engine.grid import run_grid

    cells = cells_of(job)
    outcome = run_grid(cells, make_bench(job), out, force=job.force)
    return Done(Path(job.paths.results), frozenset(cell.id for cell in cells), outcome)


def make_bench(job: Job) -> Bench:
    from kdbench.engine.run import Bench
    from kdbench.results.store import Store

    return Bench(
        store=Store(job.paths.results),
        work=Path(job.paths.work),
        trainer=job.trainer,
        logger=job.logger,
        data_root=job.dataset.get("root"),
        checkpoint_seconds=job.checkpoint_seconds,
        engine=job.engine,
        max_students=job.cohort.max_students,
    )


def conclude(done: Sequence[Done]) -> list[str]:
    """Regenerate the tables of each store, show those that the cells stand in, and sum up; returns errors."""
    cells: dict[Path, set[str]] = defaultdict(set)
    for each in done:
        cells[each.results] |= each.cells
    errors = []
    for results, ids in cells.items():
        try:
            print_tables(results, ids)
        except UserError as error:
            errors.append(str(error))
    if not done:
        return []
    outcomes = [each.outcome for each in done]
    outcome = sum(outcomes[1:], start=outcomes[0])
    say(outcome.summary())
    return [error for error in errors if not any(error in line for line in outcome.failed)]


def print_tables(results: Path, cells: set[str]) -> None:
    """Regenerate the store's tables, and show those that the cells stand in."""
    from kdbench.registry import methods
    from kdbench.report import build_tables, render, render_terminal, write
    from kdbench.results.claims import load_claims
    from kdbench.results.labels import load_labels
    from kdbench.results.store import Store

    records, known, labels = Store(results).load(), methods(), load_labels(results)
    shown = [table for table in build_tables(records, known, labels) if cells & table.cells]
    if shown:
        write(results, render(records, claims=load_claims(results), methods=known, labels=labels))
        say(render_terminal(shown))
        say(f"tables: {results / 'tables'}\nleaderboard: {results / 'leaderboard.html'}")
