"""The program: its commands, and what becomes of errors."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import kdbench
from kdbench.cli import bench, data, methods, report, run, teachers
from kdbench.cli.console import fail
from kdbench.errors import Interrupted, UserError

INTERRUPTED = 130
"""Exit code of a program that Ctrl-C ended (128 + SIGINT)."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 for anything that went wrong, 130 after Ctrl-C."""
    args = list(sys.argv[1:] if argv is None else argv)
    if _takes_methods(args) and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a user's method may lie where the user stands
    try:
        if args[:1] == ["run"]:
            return run.command(args[1:])
        if args[:2] == ["teacher", "train"]:
            return teachers.train(args[2:])
        if args[:2] == ["teacher", "cache"]:
            return teachers.cache(args[2:])
        options = parser().parse_args(args)
        return options.command(options)
    except UserError as error:
        return fail(str(error))
    except (Interrupted, KeyboardInterrupt):
        return fail("interrupted; finished cells are kept, repeat the command to go on.", INTERRUPTED)
    except BrokenPipeError:
        sys.stdout = None  # whoever read our output has gone
        return 0


def _takes_methods(args: Sequence[str]) -> bool:
    """Whether the user may have named methods of their own; what only reads results imports nothing beside them."""
    trains = args[:1] == ["run"] or args[:2] in (["teacher", "train"], ["teacher", "cache"])
    return trains or any(arg.startswith("--config-dir") for arg in args)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="kdbench", description=kdbench.__doc__)
    top.add_argument("--version", action="version", version=f"kdbench {kdbench.__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for module in (run, methods, teachers, data, report, bench):
        module.add_to(commands)
    return top
