"""Run a grid of cells: skip what is done, resume what was begun, leave out what does not fit, survive what fails."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console

from kdbench.engine.cell import Cell
from kdbench.engine.cohort import Spoiled
from kdbench.engine.locks import BusyError
from kdbench.engine.progress import sayer, watched
from kdbench.engine.run import Bench
from kdbench.errors import DoesNotFit, UserError, out_of_memory
from kdbench.files import write_atomic
from kdbench.results.record import Record, cell_id
from kdbench.targets import first_line


@dataclass
class Outcome:
    """What became of a grid, as sentences about cells."""

    ran: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    pruned: list[str] = field(default_factory=list)
    diverged: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    unkept: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Nothing failed or diverged, and at least one cell fitted."""
        return not self.failed and not self.diverged and bool(self.ran or self.skipped)

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(**{name: value + getattr(other, name) for name, value in asdict(self).items()})

    def summary(self) -> str:
        counts = f"{len(self.ran)} trained, {len(self.skipped)} already done"
        lines = [f"{counts}, {len(self.failed) + len(self.diverged)} failed or diverged."]
        lines += [f"left out: {line}" for line in self.pruned]
        lines += [f"diverged: {line}" for line in self.diverged]
        lines += [f"failed: {line}" for line in self.failed]
        lines += [f"no student kept: {line}" for line in self.unkept]
        return "\n".join(lines)


def line(record: Record) -> str:
    """A finished cell in one line."""
    cell, metrics = record.cell, record.metrics
    reached = record.measure.sentence(metrics.last) if metrics else "diverged"
    return f"{cell.method} {cell.pair} {cell.dataset} seed {cell.seed}: {reached}, {record.cost.train_seconds:.0f} s"


def run_grid(
    cells: Sequence[Cell],
    bench: Bench,
    console: Console,
    *,
    force: bool | Literal["replace"] = False,
    outcome: Outcome | None = None,
    tell: Callable[[Record], str] = line,
) -> Outcome:
    """Run every cell that has no record; one progress bar, in epochs, for all of it.

    A cell that another process is training is left to the end, and then waited for.

    Args:
        force: train finished cells again; ``replace``: also those whose records git tracks.
        outcome: filled in as cells end, and returned: what is known of them also after an interruption.
        tell: what to say of a finished cell.

    Raises:
        Interrupted: Ctrl-C; all records written so far stay, the running cell can be resumed.
        UserError: nothing can be run at all (no data, an unwritable store, a record that is not to be replaced).
    """
    if force and force != "replace":
        bench.store.check_replaceable([cell.id for cell in cells])
    bench.say = sayer(console)
    bench.sweep()
    if not bench.store.folder.is_dir():  # else it need not be writable, if all is done
        bench.store.check_writable()
    for config in {cell_id(dict(c.dataset)): c.dataset for c in cells}.values():
        bench.dataset(config)
    outcome = outcome or Outcome()
    todo = []
    for cell in cells:
        try:
            record = None if force else bench.finished(cell)
        except UserError as error:
            account(cell, error, outcome, bench)
            continue
        if record is None:
            todo.append(cell)
        else:
            bench.settle(cell, record)
            account(cell, record, outcome, bench)
            if bench.keep_students and record.metrics and not bench.students.path(cell.id):
                outcome.unkept.append(
                    f"{cell} was trained without: kdbench reproduce {cell.id} trains it again in a store of its own, "
                    "force=true here"
                )
    if not todo:
        return outcome
    plan = cohorts(todo, bench)
    bench.check(plan)

    with watched(bench, console, todo) as watch:
        queue = [(cohort, False) for cohort in plan]
        while queue:
            cohort, wait = queue.pop(0)
            began = watch.completed
            done = bench.run(cohort, force=bool(force), wait=wait)
            again = [cell for cell in cohort if cell.id not in done]
            if again:  # one of them spoilt the step of the others
                queue.insert(0, (again, False))
            starved = [cell for cell in cohort if len(cohort) > 1 and _starved(done.get(cell.id))]
            for cell in starved:
                done.pop(cell.id)  # an error's traceback holds on to what found no room
            if starved:
                gc.collect()  # as networks and their trainer hold on to each other
                most = len(cohort) // 2
                bench.say(
                    f"there was not enough memory for {len(cohort)} in lockstep: now at most {most} "
                    "(cohort.max_students=N decides)."
                )
                queue[:0] = [(starved[k : k + most], False) for k in range(0, len(starved), most)]
            busy = [cell for cell in cohort if isinstance(done.get(cell.id), BusyError)]
            for cell in busy:
                done.pop(cell.id)
            if busy:
                queue.append((busy, True))
            over = [cell for cell in cohort if cell.id in done]  # the others are in the queue again
            for cell in over:
                result = done[cell.id]
                account(cell, result, outcome, bench)
                if isinstance(result, Record) and str(cell) in outcome.ran:
                    bench.say(tell(result))
            watch.reach(began + sum(cell.protocol.epochs for cell in over))
    return outcome


def cohorts(cells: Sequence[Cell], bench: Bench) -> list[list[Cell]]:
    """Cells grouped to train in lockstep, in the order in which the first of each group stands in the grid.

    Together are those that share data set, protocol and seed, and the teacher where they have one; as many as
    ``cohort.max_students`` says, or as memory holds.
    """
    groups: list[list[Cell]] = []
    for cell in cells:
        group = next((group for group in groups if _fits(cell, group)), None)
        if group is None:
            groups.append([cell])
        else:
            group.append(cell)
    parts: list[list[Cell]] = []
    for group in groups:
        count = -(-len(group) // bench.cohort_size(group[0]))
        # parts of nearly equal size
        parts += [group[len(group) * k // count : len(group) * (k + 1) // count] for k in range(count)]
    return parts


def _fits(cell: Cell, group: Sequence[Cell]) -> bool:
    first = group[0]
    teacher = next((other.teacher for other in group if other.teacher), None)
    return all(cell.config[key] == first.config[key] for key in ("dataset", "protocol", "seed")) and (
        not cell.teacher or not teacher or cell.teacher == teacher
    )


def _starved(result: Record | Exception | None) -> bool:
    """Whether a cell ended for want of memory."""
    return isinstance(result, Exception) and not isinstance(result, UserError) and out_of_memory(result)


def account(cell: Cell, result: Record | Exception, outcome: Outcome, bench: Bench) -> None:
    """Enter what became of a cell."""
    if isinstance(result, DoesNotFit):
        outcome.pruned.append(f"{cell}: {result}")
    elif isinstance(result, (UserError, Spoiled)):
        outcome.failed.append(f"{cell}: {result}")
    elif isinstance(result, Exception) and out_of_memory(result):
        mend = "free some, or lower protocol.batch_size, cohort.max_students or what the method is given"
        outcome.failed.append(f"{cell}: there is not enough memory: {mend}")
    elif isinstance(result, Exception):  # one failed cell never stops a sweep
        what = f"{cell}: {type(result).__name__}: {first_line(result)}"
        log = write_log(bench, cell, result)
        outcome.failed.append(f"{what} (traceback in {log})" if log else f"{what} (no room for its traceback)")
    elif result.status == "diverged":
        outcome.diverged.append(f"{cell} ({result.reason})")
    elif cell.id not in bench.written:  # an earlier run finished it, or another process meanwhile
        outcome.skipped.append(str(cell))
    else:
        outcome.ran.append(str(cell))


def write_log(bench: Bench, cell: Cell, error: Exception) -> Path | None:
    """The traceback of an exception, in a file; None if that could not be written."""
    log = bench.work / "cells" / f"{cell.id}.error.log"
    try:  # the disk may be what failed
        log.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(traceback.format_exception(error))
        write_atomic(log, text.encode(errors="backslashreplace"), overwrite=True)
    except OSError:
        return None
    return log
