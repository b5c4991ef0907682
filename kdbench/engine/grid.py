"""Run a grid of cells: skip what is done, resume what was begun, leave out what does not fit, survive what fails."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from kdbench.engine.cell import Cell, first_line
from kdbench.engine.run import Bench, BusyError
from kdbench.errors import DoesNotFit, UserError
from kdbench.results.record import Record, cell_id


@dataclass
class Outcome:
    """What became of a grid, as sentences about cells."""

    ran: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    pruned: list[str] = field(default_factory=list)
    diverged: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

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
        return "\n".join(lines)


def run_grid(cells: Sequence[Cell], bench: Bench, console: Console, *, force: bool = False) -> Outcome:
    """Run every cell that has no record; one progress bar, in epochs, for all of it.

    A cell that another process is training is left to the end, and then waited for.

    Raises:
        Interrupted: Ctrl-C; all records written so far stay, the running cell can be resumed.
        UserError: nothing can be run at all (no data, an unwritable store).
    """
    bench.store.check_writable()
    for config in {cell_id(dict(c.config["dataset"])): c.config["dataset"] for c in cells}.values():
        bench.dataset(config)
    outcome = Outcome()
    todo = []
    for cell in cells:
        try:
            record = None if force else bench.finished(cell)
        except UserError as error:
            outcome.failed.append(f"{cell}: {error}")
            continue
        if record is None:
            todo.append(cell)
        elif record.status == "diverged":
            outcome.diverged.append(f"{cell} ({record.reason}); lower its learning rate or weights")
        else:
            outcome.skipped.append(str(cell))
    if not todo:
        return outcome
    bench.check()

    with watched(bench, console, sum(cell.protocol.epochs for cell in todo)) as (progress, begun):
        queue = [(cell, False) for cell in todo]
        while queue:
            cell, wait = queue.pop(0)
            ends = progress.tasks[0].completed + cell.protocol.epochs
            try:
                record = bench.run(cell, force=force, wait=wait)
            except BusyError:
                queue.append((cell, True))
                continue
            except DoesNotFit as error:
                outcome.pruned.append(f"{cell}: {error}")
            except UserError as error:
                outcome.failed.append(f"{cell}: {error}")
            except Exception as error:  # one failed cell never stops a sweep
                what = f"{cell}: {type(error).__name__}: {first_line(error)}"
                outcome.failed.append(f"{what} (traceback in {write_log(bench, cell)})")
            else:
                if record.status == "diverged":
                    outcome.diverged.append(f"{cell} ({record.reason}); lower its learning rate or weights")
                elif str(cell) not in begun:  # another process finished it while this one waited
                    outcome.skipped.append(str(cell))
                else:
                    outcome.ran.append(str(cell))
                    console.print(result(record), markup=False, highlight=False, soft_wrap=True)
            progress.update(progress.tasks[0].id, completed=max(ends, progress.tasks[0].completed))
    return outcome


@contextmanager
def watched(bench: Bench, console: Console, epochs: int) -> Iterator[tuple[Progress, set[str]]]:
    """One progress bar over `epochs` for whatever the bench trains meanwhile; in a file or pipe, a line for each start.

    Also yields the names of what was begun.
    """
    columns = (
        TextColumn("{task.description}", table_column=Column(overflow="ellipsis", no_wrap=True)),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    begun: set[str] = set()
    with Progress(*columns, console=console, refresh_per_second=2, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=epochs)

        def on_start(name: str, more: int) -> None:
            begun.add(name)
            progress.update(bar, description=escape(name))
            if name.startswith("teacher "):  # not in the plan until now
                progress.update(bar, total=(progress.tasks[0].total or 0) + more)
            if not console.is_terminal:
                console.print(f"training {name}", markup=False, highlight=False, soft_wrap=True)

        bench.on_start, bench.on_epoch = on_start, lambda: progress.advance(bar)
        yield progress, begun


def result(record: Record) -> str:
    cell, metrics = record.cell, record.metrics
    accuracy = f"{metrics.last:.2f} %" if metrics else "diverged"
    return f"{cell.method} {cell.pair} {cell.dataset} seed {cell.seed}: {accuracy}, {record.cost.train_seconds:.0f} s"


def write_log(bench: Bench, cell: Cell) -> Path:
    """The traceback of the exception at hand, in a file."""
    log = bench.work / "cells" / f"{cell.id}.error.log"
    with suppress(OSError):  # the disk may be what failed
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(traceback.format_exc())
    return log
