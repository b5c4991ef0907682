"""``kdbench report`` and ``kdbench compare``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from kdbench.cli.completion import METHODS
from kdbench.cli.console import fail, say
from kdbench.cli.helps import described


def add_to(commands: Any) -> None:
    report = commands.add_parser("report", help="regenerate the tables from the store")
    report.add_argument(
        "--results", type=Path, default=Path("results"), metavar="DIR", help="the store (default results)"
    )
    report.add_argument("--out", type=Path, metavar="DIR", help="write under DIR (default: the store itself)")
    report.add_argument("--filter", default="", metavar="KEY=VALUE,...", help="as in dataset=cifar100,protocol=lite")
    report.add_argument("--format", default=None, metavar="FORMAT,...", help="of md, csv, tex, html (default: all)")
    report.add_argument(
        "--columns",
        metavar="NAME,...",
        help="of tables in md and tex, as in method,score,delta_scratch,delta_kd,gap (default: what there is room for)",
    )
    report.add_argument(
        "--width", choices=("column", "text"), default="column", help="of tables in tex (default: column)"
    )
    report.add_argument(
        "--reference",
        action="append",
        default=[],
        metavar="SETTING",
        help="compare with this setting of a control, as in kd:temperature=4 (default: the shipped one)",
    )
    report.add_argument(
        "--config-dir", action="append", default=[], metavar="DIR", help="also the methods of this folder"
    )
    report.add_argument("--check", action="store_true", help="write nothing; fail where a file is not up to date")
    report.add_argument("--wandb", metavar="PROJECT", help="publish to this wandb project too")
    described(
        report,
        {
            "kdbench report": "tables and leaderboard, anew",
            "kdbench report --check": "are they what the records say?",
            "kdbench report --filter dataset=cifar100 --format tex --out paper": "for a paper",
        },
    )
    report.set_defaults(command=make_report)

    compare = commands.add_parser("compare", help="two methods, paired by seed and by example")
    a = compare.add_argument("a", metavar="A", help="a method, or one setting of it as in kd:temperature=4")
    b = compare.add_argument("b", metavar="B", help="another")
    a.completer = b.completer = METHODS
    compare.add_argument(
        "--results", type=Path, default=Path("results"), metavar="DIR", help="the store (default results)"
    )
    described(
        compare,
        {
            "kdbench compare kd dkd": "two methods in every table that has both",
            "kdbench compare kd:temperature=1 kd:temperature=4": "two settings of one",
        },
    )
    compare.set_defaults(command=compare_methods)


def make_report(options: argparse.Namespace) -> int:
    from kdbench.registry import methods
    from kdbench.report import FORMATS, Look, check, generate, report

    look = Look(options.columns.split(",") if options.columns is not None else None, options.width)
    filters = dict(item.partition("=")[::2] for item in options.filter.split(",") if item)
    formats = options.format.split(",") if options.format else FORMATS
    folder, known = options.out or options.results, methods(options.config_dir)
    if options.check:
        stale = check(folder, generate(options.results, filters, formats, known, options.reference, look))
        for line in stale:
            say(line)
        return fail(f"{len(stale)} file(s) do not follow from the store: run kdbench report.") if stale else 0
    written = report(options.results, folder, filters, formats, known, options.reference, look)
    for path in written:
        say(str(path))
    if options.wandb:
        from kdbench.report.publish import publish

        texts = {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in written}
        say(f"wandb: {publish(texts, options.wandb, Path('runs'))}")
    return 0


def compare_methods(options: argparse.Namespace) -> int:
    from kdbench.registry import methods
    from kdbench.report import compare, load_records

    say(compare(load_records(options.results), options.a, options.b, methods()))
    return 0
