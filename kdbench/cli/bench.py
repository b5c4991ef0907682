"""``kdbench bench``: how long training steps take on this machine."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kdbench.cli.completion import PAIRS
from kdbench.cli.console import say
from kdbench.cli.helps import described
from kdbench.errors import UserError


def add_to(commands: Any) -> None:
    bench = commands.add_parser("bench", help="time a training step beside a plain reference loop, on this machine")
    pair = bench.add_argument("--pair", help="teacher and student, as in resnet56-resnet20")
    pair.completer = PAIRS
    bench.add_argument("--methods", metavar="A,B,...", help="the cohort")
    bench.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="large images to be streamed, as train/CLASS and test/CLASS; some hundred",
    )
    bench.add_argument("--size", metavar="N", help="to which these are cropped: 224, if it is not given")
    bench.add_argument("--rounds", metavar="N", help="turns of every way to train")
    bench.add_argument("--steps", metavar="N", help="timed steps per turn")
    bench.add_argument("--quick", action="store_true", help="2 rounds of 3 steps, nothing compiled, no memory")
    bench.add_argument("--json", action="store_true", help="print all figures, for programs")
    bench.add_argument(
        "--out", type=Path, metavar="FILE.json", help="keep the figures there; FILE.md shows all of them"
    )
    described(
        bench,
        {
            "kdbench bench --quick": "a look, in half a minute",
            "kdbench bench --pair resnet56-resnet20 --methods kd,dkd": "a pair and cohort of yours",
            "kdbench bench --images photos": "4 students behind one teacher, images read from their files",
            "kdbench bench --out results/benchmarks.json": "all of it, kept",
        },
    )
    bench.set_defaults(command=run_bench)


def run_bench(options: argparse.Namespace) -> int:
    if options.out and options.out.suffix != ".json":
        raise UserError(f"--out {options.out} is no .json file: name one, as in results/benchmarks.json.")
    if options.out and options.quick:
        raise UserError("figures of --quick are for a look, not for keeping: drop --quick or --out.")
    given = {name: _count(name, getattr(options, name)) for name in ("rounds", "steps", "size")}
    if given["size"] and options.images is None:
        raise UserError("--size is of large images: name their folder, as in --images photos, or leave it out.")

    from rich.console import Console

    from kdbench.bench.measure import measure
    from kdbench.bench.setting import make_setting, prepared
    from kdbench.report.benchmarks import check_writable, publish, terminal
    from kdbench.results import figures

    names = None if options.methods is None else [name for name in options.methods.split(",") if name]
    if options.out:  # fail now rather than when all is measured
        figures.load(options.out)
        check_writable(options.out)
    with prepared(options.images) as images:
        setting, defaults = make_setting(options.pair, names, images, given["size"])
        usual = {"rounds": 2, "steps": 3} if options.quick else defaults
        rounds, steps = (given[name] or usual[name] for name in ("rounds", "steps"))
        console = Console(stderr=True)
        with console.status("bench") as status:
            say_what = status.update if console.is_terminal else console.print
            found = measure(setting, rounds, steps, options.quick, say_what)
    if options.out:
        publish(options.out, figures.save(options.out, found))
    if options.json:
        print(figures.dump([found]), end="")
    else:
        say(terminal(found))
    return 0


def _count(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise UserError(f"--{name} {text} is not a whole number from 1: choose one, as in --{name} 5.")
    return int(text)
