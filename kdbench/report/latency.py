"""The figures of ``kdbench latency`` beside what is counted of the same networks: a sheet, and a terminal's table."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdbench.report.sheet import Block, Cell, Column, Grid, Sheet, Work, count
from kdbench.report.words import network_name
from kdbench.results.latency import WAYS, Latency, Timing, Way
from kdbench.results.record import Record
from kdbench.text import many

PATH = "latency"
TITLE = "Latency and throughput"
SHOWN = ((1, "ms"), (64, "inputs/s"))
"""One answer as soon as it can be had, and many: the batches whose time, or inputs per second, the tables show."""
FACTS = (
    "From a batch in the device's memory to its logits, normalisation included, in float32, with random weights: time "
    "belongs to an architecture, a shape of input and a device. Median (quartiles).",
    "eager: as kdbench.load_student gives it. channels-last: the same in that memory format. onnx: as kdbench student "
    "export writes it, in ONNX Runtime. Nothing is compiled or rounded.",
    "A machine that does other work is slow, most of all with several threads: its load stands below each table.",
)
"""What a reader must know, above the tables."""


@dataclass
class Subject:
    """A network, or what a method deploys in its place.

    Attributes:
        shape: (C, H, W) or (n,) where it was measured somewhere; its records do not say.
        outputs: the same.
        data: names of the data sets that students of the store were trained on.
        times: what was measured, by device and way.
    """

    network: str
    parameters: int
    macs: int
    shape: tuple[int, ...] | None = None
    outputs: int | None = None
    data: set[str] = field(default_factory=set)
    times: dict[tuple[str, Way], Latency] = field(default_factory=dict)

    @property
    def order(self) -> tuple[Any, ...]:
        return self.macs, self.parameters, self.network, self.shape or ()

    @property
    def input(self) -> str:
        return "×".join(map(str, self.shape)) if self.shape else "-"


def subjects_of(latencies: Iterable[Latency], records: Iterable[Record]) -> list[Subject]:
    """What was measured, and all that the records' methods deploy; the smallest first.

    A student is what was measured of the same name, where that has as many parameters and MACs: a method may deploy
    more than a network of the student's architecture.
    """
    measured: dict[Any, Subject] = {}
    for each in latencies:
        known = (each.network, each.parameters, each.macs, each.shape, each.outputs)
        measured.setdefault(known, Subject(*known)).times[each.host.device, each.way] = each
    found: dict[Any, list[Subject]] = {}
    for subject in measured.values():
        found.setdefault((subject.network, subject.parameters, subject.macs), []).append(subject)
    for record in records:
        student = record.cell.student, record.cost.student_params, record.cost.student_macs
        for subject in found.setdefault(student, [Subject(*student)]):
            subject.data.add(record.cell.dataset)
    return sorted((subject for several in found.values() for subject in several), key=lambda subject: subject.order)


def latency_sheet(latencies: Sequence[Latency], records: Iterable[Record]) -> Sheet | None:
    """All networks of a store on every device that something was measured on; None where nothing was."""
    if not latencies:
        return None
    subjects, devices = subjects_of(latencies, records), sorted({each.host.device for each in latencies})
    trust = (
        f"timed by kdbench latency with torch.utils.benchmark, {many(len(latencies), 'figure')} of "
        f"{many(len(devices), 'device')}; a dash was not measured"
    )
    values = [row for subject in subjects for row in _values(subject)]
    return Sheet(
        path=PATH,
        title=TITLE,
        facts=FACTS,
        grids=[_grid(subjects, device, batch, unit) for device in devices for batch, unit in SHOWN],
        trust=trust,
        values=[{**row, "trust": trust} for row in values],
    )


def rows(latencies: Sequence[Latency], device: str) -> list[list[str]]:
    """What was measured on a device, one line for each way, in the columns of `HEADS`."""
    return [
        [
            subject.network,
            subject.input,
            f"{subject.parameters:,}",
            f"{subject.macs:,}",
            name(way, threads),
            *(_shown(subject, device, way, threads, batch, unit).text for batch, unit in SHOWN),
        ]
        for subject in subjects_of(latencies, ())
        for way, threads in _ways([subject], device)
    ]


HEADS = ("network", "input", "parameters", "MACs", "way", *(f"{unit}, batch of {batch}" for batch, unit in SHOWN))


def name(way: Way, threads: int | None) -> str:
    return f"{way}, {many(threads, 'thread')}" if threads else way


def versions(latencies: Iterable[Latency], device: str) -> list[str]:
    """When, where and with what it was measured on a device: one line for each combination."""
    found: dict[str, list[Latency]] = {}
    for each in latencies:
        if each.host.device == device:
            host = each.host
            commit = f" ({host.commit[:10]})" if host.commit else ""
            libraries = ", ".join(
                f"{library} {version}{commit if library == 'kdbench' else ''}"
                for library, version in sorted(host.versions.items())
            )
            found.setdefault(f"with {libraries}, {host.platform}", []).append(each)
    lines = []
    for text, several in sorted(found.items()):
        days = sorted({f"{each.created:%Y-%m-%d}" for each in several})
        loads = [each.host.load for each in several if each.host.load is not None]
        load = f"; load average up to {max(loads):.2f} on {several[0].host.processors} processors" if loads else ""
        used = ", ".join(way for way in WAYS if any(each.way == way for each in several))
        lines.append(f"Measured {' to '.join(sorted({days[0], days[-1]}))} {text} ({used}){load}.")
    return lines


def _ways(subjects: Iterable[Subject], device: str) -> list[tuple[Way, int | None]]:
    """In which ways, and with how many threads, something was measured on a device."""
    found = {
        (way, timing.threads)
        for subject in subjects
        for (where, way), each in subject.times.items()
        if where == device
        for timing in each.timings
    }
    return sorted(found, key=lambda each: (WAYS.index(each[0]), each[1] or 0))


def _grid(subjects: Sequence[Subject], device: str, batch: int, unit: str) -> Grid:
    what = "Latency of one input, ms" if unit == "ms" else f"Throughput in batches of {batch}, inputs/s"
    ways = _ways(subjects, device)
    columns = [
        Column("network", "Network", words=True),
        Column("input", "Input", words=True),
        Column("data", "Data of its students", ("Data",), words=True),
        Column("parameters", "Parameters"),
        Column("macs", "MACs"),
        *(Column(name(*way), name(*way), tuple(name(*way).split(", "))) for way in ways),
    ]
    lines = [
        [
            Cell(subject.network, work=Work(network_name(subject.network), None)),
            Cell(subject.input),
            Cell(", ".join(sorted(subject.data)) or "-"),
            count(subject.parameters),
            count(subject.macs),
            *(_shown(subject, device, *way, batch, unit) for way in ways),
        ]
        for subject in subjects
    ]
    latencies = [each for subject in subjects for each in subject.times.values()]
    return Grid(
        heading=f"{device}: {what[:1].lower()}{what[1:]}",
        columns=columns,
        blocks=[Block("", lines)],
        notes=versions(latencies, device),
        caption=f"{what}, on {device}, median.",
        key=f"{device} {unit}",
    )


def _shown(subject: Subject, device: str, way: Way, threads: int | None, batch: int, unit: str) -> Cell:
    each = subject.times.get((device, way))
    for timing in each.timings if each else ():
        if (timing.batch, timing.threads) == (batch, threads):
            value = timing.ms if unit == "ms" else timing.throughput
            median, low, high = map(_number, (value.median, value.low, value.high))
            return Cell(f"{median} ({low} to {high})", number=(median, "", ""))
    return Cell("-")


def _number(value: float) -> str:
    """With three significant digits, or all before the point."""
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def _values(subject: Subject) -> Iterator[dict[str, Any]]:
    """A row for each timing; one without figures where nothing was measured."""
    measured: list[tuple[Latency | None, Timing | None]] = [
        (each, timing) for _, each in sorted(subject.times.items()) for timing in each.timings
    ]
    about = {
        "network": subject.network,
        "input": "x".join(map(str, subject.shape or ())),
        "outputs": subject.outputs,
        "data": " ".join(sorted(subject.data)),
        "parameters": subject.parameters,
        "macs": subject.macs,
    }
    for each, timing in measured or [(None, None)]:
        yield about | _timed(each, timing)


def _timed(each: Latency | None, timing: Timing | None) -> dict[str, Any]:
    ms, host = timing and timing.ms, each and each.host
    return {
        "device": host and host.device,
        "way": each and each.way,
        "threads": timing and timing.threads,
        "batch": timing and timing.batch,
        "ms": ms and ms.median,
        "ms_low": ms and ms.low,
        "ms_high": ms and ms.high,
        "inputs_per_second": timing and timing.throughput.median,
        "load": host and host.load,
        "measured": each and f"{each.created:%Y-%m-%dT%H:%M:%SZ}",
        "versions": host and " ".join(f"{library}={version}" for library, version in sorted(host.versions.items())),
    }
