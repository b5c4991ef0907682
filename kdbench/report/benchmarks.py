"""The figures of ``kdbench bench``, as Markdown and on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Group
from rich.table import Column, Table
from rich.text import Text

from kdbench.errors import UserError
from kdbench.files import probe, remove_leftovers, write_atomic, writing_to
from kdbench.report.markdown import MARKER, escape, line
from kdbench.results.figures import Figures, Measured, Spread

HEAD = ("Way", "Path", "Step ms", "× reference", "% of peak", "Set-up s")
WORDS = 2
"""The first columns, which hold words."""


def benchmarks(runs: Sequence[Figures]) -> str:
    """The text of ``benchmarks.md``; the same figures give the same text, whatever their order."""
    lines = [
        MARKER,
        "# Benchmarks",
        "",
        "Milliseconds for one training step, and how many times faster than a plain loop in the manner of public "
        "code: PIL images through torchvision's transforms in DataLoader workers, float32, eager, teacher run live, "
        "loss and accuracy read back in every step, one method at a time. `kdbench bench` measures all of it on one "
        "machine, in turns; ratios are formed within a turn. Median, and the range over the rounds. Set-up (compiling "
        "included) is in no other figure; what one way has compiled the ways below it use again.",
    ]
    for run in sorted(runs, key=lambda run: run.key):
        lines += ["", f"## {escape(run.pair)} on {escape(run.machine.device)}, {threads(run)}", ""]
        lines += [f"- {escape(fact)}" for fact in facts(run)]
        for title, ways in (("Engine", run.engine), ("Reference", run.references)):
            lines += ["", f"### {title}", "", line(HEAD), "|---|---|" + "---:|" * (len(HEAD) - WORDS)]
            lines += [line(map(escape, row(way))) for way in ways]
        profiled = [way for way in run.engine if way.profile]
        if profiled:
            lines += ["", "### Where the time goes", ""]
            lines += [f"- {escape(way.name)}: {escape(profile(way))}." for way in profiled]
    return "\n".join(lines) + "\n"


def terminal(run: Figures) -> Group:
    """The same for one run, for `rich.print`; paths and profiles are for the file."""
    parts: list[Table | Text] = [Text(f"{run.pair} on {run.machine.device}, {threads(run)}", style="bold"), Text("")]
    for title, ways in (("Engine", run.engine), ("Reference", run.references)):
        table = Table(
            *(Column(name, justify="right" if k else "left") for k, name in enumerate((title, *HEAD[WORDS:]))),
        )
        for way in ways:
            name, _, *numbers = row(way)
            table.add_row(*map(Text, (name, *numbers)))
        parts += [table, Text("")]
    return Group(*parts, *(Text(fact, style="dim") for fact in facts(run)))


def check_writable(path: Path) -> None:
    """Whether figures can be kept in `path`, and shown beside it.

    Raises:
        UserError: the folder cannot be written, or a file of the user's is in the way.
    """
    page = path.with_suffix(".md")
    with writing_to(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path.parent)
        probe(path.parent)
        if page.exists() and not page.read_text(encoding="utf-8", errors="replace").startswith(MARKER):
            raise UserError(f"{page} was not written by kdbench: move it away, its name is needed for the benchmarks.")


def publish(path: Path, runs: Sequence[Figures]) -> None:
    """Write `benchmarks` of all figures that the file `path` holds beside it, with the suffix ``.md``.

    Raises:
        UserError: it cannot be written.
    """
    with writing_to(path.parent):
        write_atomic(path.with_suffix(".md"), benchmarks(runs), overwrite=True)


def row(way: Measured) -> list[str]:
    """One way to train, in the columns of `HEAD`."""
    return [
        way.name,
        f"{way.path}; {way.precision}",
        spread(way.step_ms),
        spread(way.ratio) if way.ratio else "-",
        f"{way.peak_percent:.0f}",
        f"{way.warmup_seconds:.0f}",
    ]


def facts(run: Figures) -> list[str]:
    """What else was measured, and how; one a line."""
    machine, loop = run.machine, run.loop
    peaks = ", ".join(
        f"{peak:,.0f} GFLOP/s in {dtype}{f' ({kernel})' if (kernel := machine.peak_kernels.get(dtype)) else ''}"
        for dtype, peak in sorted(machine.peak_gflops.items())
    )
    by = "in the fastest operation of all rounds" if machine.peak_kernels else "by its best matrix product"
    found = [
        f"{run.data}; batches of {run.batch_size}; {run.rounds} rounds of {run.steps} steps"
        + ("; quick: nothing compiled, for a look only" if run.quick else ""),
        f"The machine's peak, {by}: {peaks}",
        *above(run),
    ]
    if loop:
        found.append(
            f"The training loop takes {spread(loop.percent)} % of a step of {loop.student} "
            f"({loop.loop_ms.median:.4g} ms, in a plain loop {loop.plain_ms.median:.4g} ms)"
        )
    if run.memory:
        several = max(len(way.methods) for way in run.engine)
        found.append(
            f"Peak memory: {run.memory.single} alone {run.memory.single_mb:,.0f} MB, cohort of {several} "
            f"{run.memory.cohort_mb:,.0f} MB, {run.memory.ratio:.2f} times as much"
        )
    if machine.load is not None:
        found.append(f"Load average when it began: {machine.load:.2f} on {machine.processors} processors")
    commit = f" ({machine.commit[:10]})" if machine.commit else ""
    found.append(
        f"Measured {run.created:%Y-%m-%d %H:%M} UTC with kdbench {machine.kdbench}{commit}, torch {machine.torch}, "
        f"torchvision {machine.torchvision}, lightning {machine.lightning}, Python {machine.python}, {machine.platform}"
    )
    return found


def above(run: Figures) -> list[str]:
    """What it means that ways to train passed the peak, one sentence; none where none did."""
    names = [way.name for way in (*run.engine, *run.references) if round(way.peak_percent) > 100]
    if not names:
        return []
    return [
        f"Above 100 % of peak ({', '.join(names)}): the peak was measured while the machine did less, as one that is "
        "shared may, or kernels take fewer operations than a convolution is counted with, as Winograd's do; an idle "
        "machine tells which"
    ]


def threads(run: Figures) -> str:
    n = run.machine.threads
    return f"{n} thread{'s' if n > 1 else ''}"


def profile(way: Measured) -> str:
    return ", ".join(f"{share.operator} {share.percent:.1f} %" for share in way.profile)


def spread(value: Spread) -> str:
    """As in ``2.41 (2.3 to 2.55)``, each with three significant digits."""
    median, low, high = (f"{number:.3g}" if abs(number) < 1000 else f"{number:.0f}" for number in _numbers(value))
    return f"{median} ({low} to {high})"


def _numbers(value: Spread) -> tuple[float, float, float]:
    return value.median, value.low, value.high
