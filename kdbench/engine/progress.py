"""What is seen of a training: on a terminal a bar with a line below it, in a file or pipe a line now and then.

Both are told at the ends of epochs, of numbers that the curves hold by then: nothing of this waits for a device.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

from kdbench.engine.cell import Cell, title_of
from kdbench.engine.cohort import Member
from kdbench.engine.run import Bench
from kdbench.text import print_whole

EVERY = 60.0
"""Seconds between two lines in a file or pipe, at least."""
PERCENT_DIGITS = 1
"""Of shares while they move; what a table says has more."""


class Watch:
    """The epochs of cells: how many there are, how many are over, and when the rest will be.

    Args:
        cells: the plan; others that are trained, as teachers are, join it when they begin.
        console: where to tell it.
    """

    def __init__(self, cells: Sequence[Cell], console: Console) -> None:
        self._console = console
        self._seeds = list(dict.fromkeys(cell.seed for cell in cells))
        self.total = sum(cell.protocol.epochs for cell in cells)
        self.completed = 0
        self.title = "preparing"
        self.news = ""
        self._told = self._since = self._last = time.monotonic()
        self._trained = 0  # since the last beginning
        self._seconds: float | None = None  # of an epoch of one cell

    def start(self, cells: Sequence[Cell], behind: int, planned: bool) -> None:
        """Cells begin to train together, each with so many epochs behind it already."""
        if not planned:
            self.total += sum(cell.protocol.epochs for cell in cells)
        self.completed += behind * len(cells)
        self.title, self.news = self._short(cells, planned), ""
        self._told = self._since = self._last = time.monotonic()
        self._trained = 0
        if not self._console.is_terminal:
            print_whole(self._console, f"training {title_of(cells)}")

    def passed(self, members: Sequence[Member], epochs: int) -> None:
        """Each of these has finished so many more epochs."""
        if not members:  # all of them diverged
            return
        self._last = time.monotonic()
        self._trained += epochs * len(members)
        self.completed += epochs * len(members)
        self._seconds = (self._last - self._since) / self._trained
        self.news = news(members)
        if not self._console.is_terminal and self._last - self._told >= EVERY:
            self._told = self._last
            print_whole(self._console, f"{self.news} ETA {clock(self.left)}")

    def reach(self, completed: int) -> None:
        """So many epochs at least are over, trained or not: cells diverge, fail, or are another process's."""
        self.completed = max(self.completed, completed)

    @property
    def left(self) -> float | None:
        """Seconds until all is done, by the pace of what trains now; None before its first epoch of all."""
        if self._seconds is None:
            return None
        ahead = (self.total - self.completed) * self._seconds
        return max(ahead - (time.monotonic() - self._last), 0.0)

    def _short(self, cells: Sequence[Cell], planned: bool) -> str:
        """As `title_of`, for a bar."""
        first = cells[0]
        names = list(dict.fromkeys(cell.name for cell in cells))
        who = names[0] if len(names) == 1 else f"{len(names)} methods"
        seed = str(first.seed)
        if not planned:
            who = f"{who} {first.student}"
        elif len(self._seeds) > 1:
            seed = f"{self._seeds.index(first.seed) + 1}/{len(self._seeds)}"
        return f"{who}, {first.config['dataset']['name']}, seed {seed}"


def news(members: Sequence[Member]) -> str:
    """Where these stand, in one line: the epoch, the loss of the last one, and what was last measured of them.

    Where there is a validation split that is what is shown.
    """
    first = members[0].method
    parts = [f"epoch {first.epoch}/{first.protocol.epochs}"]
    losses = sorted(member.loss for member in members if member.loss is not None)
    if losses:
        parts.append(f"loss {_span([f'{loss:.3g}' for loss in losses])}")
    measure = first.task.primary
    for split in ("val", "test"):
        last = [curve for member in members if (curve := _known(member.curves.get(f"{split}/{measure.name}", [])))]
        if last:
            digits = PERCENT_DIGITS if measure.unit == "%" else measure.digits(curve[-1] for curve in last)
            low, *_, high = sorted(curve[-1] for curve in last * 2)
            reached = _span([measure.text(value, digits).removesuffix(measure.unit).strip() for value in (low, high)])
            name = f"{split} {measure.label}" if split == "val" else measure.label
            parts.append(f"{name} {reached} {measure.unit}".rstrip())
            break
    return " ".join(parts)


def _known(curve: Sequence[float | None]) -> list[float]:
    return [value for value in curve if value is not None]


def _span(ordered: Sequence[str]) -> str:
    """The first and the last of some numbers, or both in one."""
    return ordered[0] if ordered[0] == ordered[-1] else f"{ordered[0]} to {ordered[-1]}"


def clock(seconds: float | None) -> str:
    """Hours, minutes and seconds, as 1:10:00."""
    if seconds is None:
        return "-:--:--"
    minutes, second = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{second:02}"


class _Told(ProgressColumn):
    """What a function says, whatever the task."""

    def __init__(self, say: Callable[[], Text], column: Column) -> None:
        super().__init__(column)
        self._say = say

    def render(self, task: Task) -> Text:
        return self._say()


class _Bar(Progress):
    """A bar, and below it the news. Where it is narrow its title is cut, and none of its numbers."""

    def __init__(self, watch: Watch, console: Console) -> None:
        self._watch = watch
        super().__init__(
            # only a column that may wrap gives way
            _Told(lambda: Text(watch.title, no_wrap=True, overflow="ellipsis"), Column(no_wrap=False)),
            BarColumn(bar_width=max(10, min(40, console.width - 70)), table_column=Column(no_wrap=True)),
            _Told(lambda: Text(f"{watch.completed}/{watch.total} epochs", "progress.download"), Column(no_wrap=True)),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            _Told(lambda: Text(f"ETA {clock(watch.left)}", "progress.remaining"), Column(no_wrap=True, min_width=12)),
            console=console,
            refresh_per_second=2,
            disable=not console.is_terminal,
            transient=True,
        )

    def get_renderables(self) -> Iterator[RenderableType]:
        for task in self.tasks:
            task.total, task.completed = self._watch.total, self._watch.completed
        yield from super().get_renderables()
        if self._watch.news:
            yield Text(self._watch.news, style="dim", no_wrap=True, overflow="ellipsis")


def sayer(console: Console) -> Callable[[str], None]:
    """Prints sentences as they are, none of them cut."""
    return lambda sentence: print_whole(console, sentence)


@contextmanager
def watched(bench: Bench, console: Console, cells: Sequence[Cell] = ()) -> Iterator[Watch]:
    """One watch over all that the bench trains meanwhile: the plan's `cells`, and teachers that they need."""
    watch = Watch(cells, console)
    with _Bar(watch, console) as bar:
        bar.add_task("", total=None)
        bench.on_start, bench.on_epoch, bench.say = watch.start, watch.passed, sayer(console)
        yield watch
