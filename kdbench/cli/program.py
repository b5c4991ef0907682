"""The program: its commands, and what becomes of errors."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kdbench
from kdbench.cli import (
    bench,
    completion,
    data,
    latency,
    methods,
    report,
    reproduce,
    run,
    show,
    students,
    teachers,
    tune,
)
from kdbench.cli.console import fail, output, say
from kdbench.cli.helps import VARIABLES, asks_for_more, block, composed, described
from kdbench.cli.terminable import terminable
from kdbench.errors import Interrupted, UserError, out_of_memory

INTERRUPTED = 130
"""Exit code of a program that Ctrl-C ended (128 + SIGINT)."""
SELDOM = 10_000
"""After how many new objects Python looks for unreachable ones. PyTorch, Lightning and Hydra make hundreds of thousands
that stay, and looking through them after every 700 took a sixth of a short run's time."""


COMPOSED = {
    "run": run.command,
    "tune": tune.command,
    "teacher train": teachers.train,
    "teacher import": teachers.bring,
    "teacher cache": teachers.cache,
}
"""Commands whose settings Hydra composes."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 for anything that went wrong, 130 after Ctrl-C, 143 after SIGTERM."""
    completion.answer(parser)
    gc.set_threshold(SELDOM)
    with terminable() as received:
        code = _main(argv)
    return 128 + received[0] if received and code == INTERRUPTED else code


def _main(argv: Sequence[str] | None) -> int:
    args = list(sys.argv[1:] if argv is None else argv)
    with output() as stdout:
        try:
            code = command(args)
        except SystemExit as leave:  # argparse, which has said what there was to say
            code = leave.code if isinstance(leave.code, int) else 0
        except UserError as error:
            code = fail(str(error))
        except (Interrupted, KeyboardInterrupt):
            code = fail("interrupted; finished cells are kept, repeat the command to go on.", INTERRUPTED)
        except Exception as error:
            if os.environ.get("KDBENCH_DEBUG"):
                raise
            code = fail(mishap(error))
    if stdout.lost and not isinstance(stdout.lost, BrokenPipeError):  # who closed a pipe has read enough
        code = fail(f"what it printed could not be written ({stdout.lost.strerror}); all else was done.", code or 1)
    return code


def command(args: list[str]) -> int:
    """Do what the command line says; returns the exit code."""
    try:
        here = os.getcwd()
    except OSError as error:
        raise UserError(f"the current folder cannot be used ({error.strerror}): change to another one.") from None
    if _takes_methods(args) and here not in sys.path:
        sys.path.append(here)  # a user's method may lie where the user stands
    for name, do in COMPOSED.items():
        words = name.split()
        if args[: len(words)] == words:
            from kdbench.cli.overrides import readable

            settings = args[len(words) :]
            if {"-h", "--help"} & {*settings}:
                say(composed(name, settings))
                return 0
            return do(settings if name == "teacher import" else readable(settings))
    options = parser().parse_args(args)
    return options.command(options)


def mishap(error: Exception) -> str:
    """One sentence about an error that nobody foresaw where it arose."""
    what = " ".join(str(error).split()) or type(error).__name__
    if type(error).__module__.startswith("yaml"):
        mark = getattr(error, "problem_mark", None)
        where = f"{mark.name}, line {mark.line + 1}" if mark else "a YAML file"
        return f"{where}: {getattr(error, 'problem', None) or what}; mend the YAML."
    if out_of_memory(error):
        return f"there is not enough memory ({what}): free some, or raise the limit (ulimit -v, or the container's)."
    if isinstance(error, ImportError):
        return (
            f"a library cannot be loaded ({what}): install kdbench anew, or raise the limit on memory, where there is "
            "one (ulimit -v, or the container's)."
        )
    return f"this is a bug in kdbench ({type(error).__name__}: {what}); please report it {_keep(error)}"


def _keep(error: Exception) -> str:
    """Write the traceback into a file; returns what to send."""
    from kdbench.paths import cache_dir

    text = "".join(traceback.format_exception(error))
    try:
        folder = cache_dir() / "errors"
        folder.mkdir(parents=True, exist_ok=True)
        path = Path(folder, f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log")
        path.write_text(
            f"kdbench {kdbench.__version__}: {sys.argv}\n{text}", encoding="utf-8", errors="backslashreplace"
        )
    except (OSError, UserError, RuntimeError):
        return f"with this:\n{text}"
    return f"with {path}."


def _takes_methods(args: Sequence[str]) -> bool:
    """Whether the user may have named methods or networks of their own; what only reads results imports no more."""
    made = args[:1] in (["run"], ["tune"], ["show"], ["reproduce"], ["student"], ["latency"])
    trains = made or args[:2] in (["teacher", "train"], ["teacher", "cache"], ["teacher", "import"])
    return trains or any(arg.startswith("--config-dir") for arg in args)


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"kdbench {kdbench.__version__}")
        parser.exit()


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="kdbench", description=kdbench.__doc__)
    described(top, EXAMPLES)
    top.epilog = "\n\n".join([str(top.epilog), block("environment variables", VARIABLES), MORE])
    top.add_argument("--version", action=_Version, nargs=0, help="print it")
    commands = top.add_subparsers(metavar="COMMAND", title="commands")
    for module in (run, tune, methods, teachers, data, report, show, reproduce, students, bench, latency, completion):
        module.add_to(commands)
    asks_for_more(top)
    return top


EXAMPLES = {
    "kdbench run experiment=quickstart": "a first table",
    "kdbench run 'method=[scratch,kd,dkd]' 'seed=[0,1,2]'": "methods times seeds",
    "kdbench methods 4.2": "a leaf of the survey",
    "kdbench compare kd dkd": "two methods, paired",
    "kdbench data prepare cifar100": "get a data set",
}
MORE = "kdbench COMMAND --help shows examples of each."
