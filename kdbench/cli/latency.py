"""``kdbench latency``: how long deployed students take to answer on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kdbench.cli.completion import PAIRS, data_sets
from kdbench.cli.console import say, show_table
from kdbench.cli.helps import described
from kdbench.errors import UserError


def add_to(commands: Any) -> None:
    latency = commands.add_parser(
        "latency",
        help="time the answers of deployed networks, on this machine",
        description="Latency and throughput of networks as they are deployed, from pixels to logits, in float32: one "
        "input and 64 at a time; as PyTorch runs them, in channels-last memory, and as ONNX (with the extra `export`); "
        "on the processor with one thread and with all, and on a GPU where there is one.",
    )
    latency.add_argument("--networks", metavar="A,B,...", help="by name")
    pair = latency.add_argument("--pair", help="teacher and student, as in resnet56-resnet20 (default: as for bench)")
    pair.completer = PAIRS
    data = latency.add_argument("--dataset", metavar="NAME", help="whose inputs and classes they are for")
    data.completer = data_sets
    latency.add_argument(
        "--results", type=Path, metavar="DIR", help="keep the figures in this store; of its students, if none is named"
    )
    latency.add_argument("--device", choices=("cpu", "cuda"), help="there alone (default: wherever it can be)")
    latency.add_argument("--seconds", metavar="S", help="repeat each for at least so long (default 0.5)")
    latency.add_argument("--json", action="store_true", help="print all figures, for programs")
    described(
        latency,
        {
            "kdbench latency --pair resnet56-resnet20": "what a smaller student is worth here",
            "kdbench latency --networks resnet8,vgg8 --dataset mnist": "any networks of the zoo",
            "kdbench latency --results results": "all students of a store, for its tables",
        },
    )
    latency.set_defaults(command=run_latency)


def run_latency(options: argparse.Namespace) -> int:
    seconds = _seconds(options.seconds)
    names = [name for name in options.networks.split(",") if name] if options.networks is not None else None
    if names is not None and options.pair is not None:
        raise UserError("--networks and --pair both name networks: drop one of them.")
    if names == []:
        raise UserError("no network was chosen: name one or more, as in --networks resnet20,resnet8.")

    from rich.console import Console

    from kdbench.bench import latency as bench
    from kdbench.report import latency as report
    from kdbench.results import latency

    devices = bench.devices(options.device)
    path = options.results / latency.FILE if options.results else None
    if path:
        latency.KEPT.check(path)  # fail now rather than when something is measured
    console = Console(stderr=True)
    notes: list[str] = []
    found: list[latency.Latency] = []
    with console.status("latency") as status:
        say_what = status.update if console.is_terminal else console.print
        if names is None and options.pair is None and options.results:
            subjects = bench.students(options.results, options.dataset, notes.append)
        else:
            subjects = bench.chosen(names, options.pair, options.dataset)
        for subject in subjects:
            for device in devices:
                measured = bench.measure(subject, device, seconds or bench.SECONDS, say_what, notes.append)
                found += measured
                if path:
                    latency.KEPT.save(path, measured)
    for text in notes:
        console.print(f"left out: {text}", markup=False, highlight=False, soft_wrap=True)
    if options.json:
        print(latency.KEPT.dump(found), end="")
    else:
        for place in sorted({each.host.device for each in found}):
            say(place)
            show_table(report.HEADS, report.rows(found, place), spare=("parameters", "MACs", "input"))
    if path and found:
        console.print(f"kept in {path}; kdbench report shows them", markup=False, highlight=False, soft_wrap=True)
    return 0


def _seconds(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 3600:
        raise UserError(f"--seconds {text} is not a time from 0 to 3600 s: choose one, as in --seconds 0.5.")
    return seconds
