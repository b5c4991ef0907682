"""Run a grid of cells: skip what is done, resume what was begun, leave out what does not fit, survive what fails."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from kdbench.engine.cell import Cell
from kdbench.engine.run import Bench, Busy
from kdbench.errors import DoesNotFit, UserError


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
    outcome = Outcome()
    todo = []
    for cell in cells:
        record = None if force else bench.finished(cell)
        if record is None:
            todo.append(cell)
        elif record.status == "diverged":
            outcome.diverged.append(f"{cell} ({record.reason}); lower its learning rate or weights")
        else:
            outcome.skipped.append(str(cell))
    if not todo:
        return outcome

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, refresh_per_second=2, disable=not console.is_terminal) as progress:
        bar = progress.add_task("", total=sum(cell.protocol.epochs for cell in todo))
        ends = 0.0

        def on_start(name: str, epochs: int) -> None:
            progress.update(bar, description=escape(name))
            if name.startswith("teacher "):  # not in the plan until now
                task = progress.tasks[0]
                progress.update(bar, total=(task.total or 0) + epochs)
            if not console.is_terminal:
                console.print(f"training {name}", markup=False, highlight=False)

        bench.on_start, bench.on_epoch = on_start, lambda: progress.advance(bar)
        queue = [(cell, False) for cell in todo]
        while queue:
            cell, wait = queue.pop(0)
            ends = progress.tasks[0].completed + cell.protocol.epochs
            try:
                record = bench.run(cell, force=force, wait=wait)
            except Busy:
                queue.append((cell, True))
                continue
            except DoesNotFit as error:
                outcome.pruned.append(f"{cell}: {error}")
            except UserError as error:
                outcome.failed.append(f"{cell}: {error}")
            except Exception as error:  # one failed cell never stops a sweep
                log = bench.work / "cells" / f"{cell.id}.error.log"
                log.write_text(traceback.format_exc())
                first = (str(error) or type(error).__name__).splitlines()[0]
                outcome.failed.append(f"{cell}: {type(error).__name__}: {first} (traceback in {log})")
            else:
                if record.status == "diverged":
                    outcome.diverged.append(f"{cell} ({record.reason}); lower its learning rate or weights")
                else:
                    outcome.ran.append(str(cell))
            progress.update(bar, completed=max(ends, progress.tasks[0].completed))
    return outcome

