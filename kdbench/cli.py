"""The command line: ``kdbench run | methods | teacher | data | report``."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Column, Table

import kdbench
from kdbench.errors import Interrupted, UserError
from kdbench.paths import conf_dir, data_root

if TYPE_CHECKING:
    from kdbench.data.prepare import Row
    from kdbench.engine.cell import Job
    from kdbench.engine.grid import Outcome
    from kdbench.engine.run import Bench

INTERRUPTED = 130
"""Exit code of a program that Ctrl-C ended (128 + SIGINT)."""

WIDE = 160
"""Columns of a table that goes into a file or a pipe."""

out = Console()


def say(what: object) -> None:
    """Print text as it is, each line whole; or a table, cut to the terminal's width where there is one."""
    if isinstance(what, str):
        out.print(what, markup=False, highlight=False, soft_wrap=True)
    else:
        (out if out.is_terminal else Console(width=WIDE)).print(what)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 for anything that went wrong, 130 after Ctrl-C."""
    args = list(sys.argv[1:] if argv is None else argv)
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # a user's method may lie where the user stands
    try:
        if args[:1] == ["run"]:
            return hydra_command("run", run, args[1:])
        if args[:2] == ["teacher", "train"]:
            return hydra_command("teacher train", train_teacher, args[2:])
        options = parser().parse_args(args)
        return options.command(options)
    except UserError as error:
        return fail(str(error))
    except (Interrupted, KeyboardInterrupt):
        return fail("interrupted; finished cells are kept, repeat the command to go on.", INTERRUPTED)
    except BrokenPipeError:
        sys.stdout = None  # whoever read our output has gone
        return 0


def fail(message: str, code: int = 1) -> int:
    print(f"kdbench: {message}", file=sys.stderr)
    return code


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="kdbench", description=kdbench.__doc__)
    top.add_argument("--version", action="version", version=f"kdbench {kdbench.__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    commands.add_parser(
        "run", help="train cells: kdbench run method=dkd pair=resnet56-resnet20 seed=0 (--help for all)"
    )

    methods = commands.add_parser("methods", help="the survey's tree, with the methods on each leaf")
    methods.add_argument("--json", action="store_true")
    methods.add_argument(
        "--config-dir", action="append", default=[], metavar="DIR", help="also the methods of this folder"
    )
    methods.set_defaults(command=list_methods)

    teacher = commands.add_parser("teacher", help="teachers: list them, or train one").add_subparsers(
        required=True, metavar="list|train"
    )
    teachers = teacher.add_parser("list", help="teachers known, with accuracy and sha256")
    teachers.add_argument("--results", type=Path, default=Path("results"), metavar="DIR")
    teachers.set_defaults(command=list_teachers)
    teacher.add_parser("train", help="train one: kdbench teacher train pair=... dataset=... protocol=...")

    data = commands.add_parser("data", help="prepared data sets").add_subparsers(
        required=True, metavar="list|prepare|verify"
    )
    listing = data.add_parser("list", help="data sets known, and which are prepared")
    listing.set_defaults(command=list_data)
    prepare = data.add_parser("prepare", help="download, or take from files at hand, and write the arrays")
    prepare.add_argument("kind", help="cifar100, ..., or 'folder' for a folder of images")
    prepare.add_argument(
        "--source",
        type=Path,
        metavar="DIR",
        help="of 'folder': DIR/CLASS/* or DIR/{train,test}/CLASS/*; else downloads",
    )
    prepare.add_argument("--name", help="of 'folder': what to call the result (default folder)")
    prepare.add_argument("--size", type=int, help="of 'folder': side of the square images (default 64)")
    prepare.set_defaults(command=prepare_data)
    verify = data.add_parser("verify", help="read everything and compare with the known hash")
    verify.add_argument("name")
    verify.set_defaults(command=verify_data)
    for command in (listing, prepare, verify):
        root = str(data_root()).replace("%", "%%")
        command.add_argument("--root", type=Path, metavar="DIR", help=f"folder of prepared data sets (default {root})")

    report = commands.add_parser("report", help="regenerate the tables from the store")
    report.add_argument(
        "--results", type=Path, default=Path("results"), metavar="DIR", help="the store (default results)"
    )
    report.add_argument("--out", type=Path, metavar="DIR", help="write under DIR (default: the store itself)")
    report.add_argument("--filter", default="", metavar="KEY=VALUE,...", help="as in dataset=cifar100,protocol=lite")
    report.add_argument("--format", default=None, metavar="FORMAT,...", help="of md, csv, tex, html (default: all)")
    report.add_argument("--check", action="store_true", help="write nothing; fail where a file is not up to date")
    report.add_argument("--wandb", metavar="PROJECT", help="publish to this wandb project too")
    report.set_defaults(command=make_report)

    compare = commands.add_parser("compare", help="two methods, paired by seed and by example")
    compare.add_argument("a", metavar="A", help="a method, or one setting of it as in kd:temperature=4")
    compare.add_argument("b", metavar="B")
    compare.add_argument(
        "--results", type=Path, default=Path("results"), metavar="DIR", help="the store (default results)"
    )
    compare.set_defaults(command=compare_methods)
    return top


# ---- commands composed by Hydra ---------------------------------------------------------------------------------


def hydra_command(name: str, task: Callable[[Job], Done | None], args: Sequence[str]) -> int:
    """Run `task` on each config that Hydra composes from `args`, with all of Hydra's own flags; exit code."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from kdbench.engine.cell import Job

    done: list[Done] = []
    errors: list[str] = []
    bugs: list[Exception] = []

    def job(cfg: Any) -> None:
        # Hydra drops what a job returns and prints a trace for what it raises: both are kept here instead
        try:
            result = task(Job.of(cfg))
        except UserError as error:
            errors.append(str(error))
        except Exception as error:
            bugs.append(error)
            raise
        else:
            done.extend([result] if result else [])

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's own errors reach us, to become one sentence
    overrides = [arg for arg in args if re.match(r"~|\+{0,2}[\w./@:-]+=", arg) and not arg.startswith("-")]
    flags = [arg for arg in args if arg not in overrides]  # Hydra wants all overrides in one place
    previous, sys.argv = sys.argv, [f"kdbench {name}", *overrides, *flags]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir().resolve()), config_name="run")(job)()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        if bugs:
            raise
        errors.append(config_error(error, args))
    finally:
        sys.argv = previous
    errors += conclude(done)
    for message in dict.fromkeys(errors):
        fail(message)
    return 1 if errors or not all(each.outcome.ok for each in done) else 0


@dataclass(frozen=True)
class Done:
    """A grid that ran: its store, the ids of its cells, and what became of them."""

    results: Path
    cells: frozenset[str]
    outcome: Outcome


def conclude(done: Sequence[Done]) -> list[str]:
    """Regenerate the tables of each store, show those that the cells stand in, and sum up; returns errors."""
    cells: dict[Path, set[str]] = defaultdict(set)
    for each in done:
        cells[each.results] |= each.cells
    errors = []
    for results, ids in cells.items():
        try:
            print_tables(results, ids)
        except UserError as error:
            errors.append(str(error))
    if not done:
        return []
    outcomes = [each.outcome for each in done]
    outcome = sum(outcomes[1:], start=outcomes[0])
    say(outcome.summary())
    return [error for error in errors if not any(error in line for line in outcome.failed)]


def config_error(error: Exception, args: Sequence[str]) -> str:
    """One sentence for Hydra's several lines, with the nearest names where a choice is unknown."""
    text = str(error)
    first = text.strip().splitlines()[0].rstrip(".")
    if missing := re.search(r"Could not (?:find|load) '([^']+)/([^'/]+)'", text):
        group, choice = missing.groups()
        return f"there is no {group} '{choice}': {nearest(choice, choices(group, args) or options_in(text))}"
    if ambiguous := re.search(r"Ambiguous value for argument '([^=]+)=(.*)'", text):
        key, values = ambiguous.groups()
        return f"{key}={values} is more than one value: write '{key}=[{values}]', or add -m for one job each."
    if unknown := re.search(r"Could not override '([^']+)'|Key '([^']+)' is not in struct", text):
        key = unknown[1] or unknown[2]
        if key.startswith("method.") and key.count(".") > 1 and not known_settings(args, key.rsplit(".", 1)[0]):
            return (
                f"there is no setting '{key}': method '{key.split('.')[1]}' is not among those of method=[...], add it."
            )
        return f"there is no setting '{key}': {nearest(key, known_settings(args))}"
    if first.startswith("Config group override"):
        return "a group cannot be null: leave it out with ~GROUP, as in ~logger."
    return f"{first}: see kdbench run --help."


def nearest(name: str, known: Sequence[str]) -> str:
    """What to choose instead of `name`."""
    near = [other for other in known if other.endswith(f".{name}")] or difflib.get_close_matches(name, known, n=3)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"choose from {', '.join(known)}." if 0 < len(known) < 30 else "kdbench run --cfg job shows what there is."


def choices(group: str, args: Sequence[str]) -> list[str]:
    """The names of a config group, those of --config-dir included."""
    folders = [conf_dir(), *map(Path, (value for flag, value in pairwise(args) if flag in ("--config-dir", "-cd")))]
    return sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})


def options_in(text: str) -> list[str]:
    """The choices that Hydra's message lists for a group of its own."""
    return re.findall(r"^\t([\w.-]+)$", text.partition("Available options")[2].partition("Config search")[0], re.M)


def known_settings(args: Sequence[str], within: str = "") -> list[str]:
    """Dotted names of all settings (`within` a part), with those choices of `args` that are whole groups."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    from kdbench.results.record import flatten

    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
            groups = [arg for arg in args if (conf_dir() / arg.partition("=")[0]).is_dir()]
            config = OmegaConf.to_container(compose("run", groups))
    except Exception:  # whatever else is wrong: this only serves a hint
        return []
    return [name for name in flatten(config) if name.startswith(within)]  # type: ignore[arg-type]


def make_bench(job: Job) -> Bench:
    from kdbench.engine.run import Bench
    from kdbench.results.store import Store

    return Bench(
        store=Store(job.paths.results),
        work=Path(job.paths.work),
        trainer=job.trainer,
        logger=job.logger,
        data_root=job.dataset.get("root"),
        checkpoint_seconds=job.checkpoint_seconds,
    )


def run(job: Job) -> Done:
    from kdbench.engine.cell import cells_of
    from kdbench.engine.grid import run_grid

    cells = cells_of(job)
    outcome = run_grid(cells, make_bench(job), out, force=job.force)
    return Done(Path(job.paths.results), frozenset(cell.id for cell in cells), outcome)


def train_teacher(job: Job) -> None:
    from kdbench.engine.cell import teacher_recipe
    from kdbench.engine.grid import watched

    bench = make_bench(job)
    bench.check()
    with watched(bench, out, 0):
        teacher = bench.teacher(teacher_recipe(job), job.teacher.sha256)
    say(f"{teacher.card.name}: {teacher.card.accuracy:.2f} %, sha256 {teacher.card.sha256}\n{teacher.weights}")


# ---- other commands ---------------------------------------------------------------------------------------------


def list_methods(options: argparse.Namespace) -> int:
    from rich.tree import Tree

    from kdbench.registry import methods
    from kdbench.taxonomy import tree

    for folder in options.config_dir:
        if not Path(folder, "method").is_dir():
            raise UserError(f"{folder} has no folder 'method' with YAML files: name the folder above it.")
    entries = methods(options.config_dir)
    chapters = tree(entries)
    open_leaves = [leaf.id for chapter in chapters for leaf in chapter.leaves if not leaf.methods]
    if options.json:
        details = {
            entry.name: {
                "class": f"{entry.cls.__module__}.{entry.cls.__qualname__}",
                "leaf": entry.leaf,
                "needs": sorted(entry.cls.needs),
                "tasks": sorted(entry.cls.tasks),
                "settings": entry.settings,
                "search": entry.search,
            }
            for entry in entries
        }
        tree_data = [chapter.model_dump(mode="json") for chapter in chapters]
        print(json.dumps({"chapters": tree_data, "open": open_leaves, "methods": details}, indent=1))
        return 0
    for chapter in chapters:
        root = Tree(f"[bold]{f'{chapter.number}. ' if chapter.number else ''}{chapter.title}")
        for leaf in chapter.leaves:
            branch = root.add(f"{leaf.id}  [dim]{leaf.title}{'' if leaf.methods else ' (open)'}")
            for method in leaf.methods:
                branch.add(f"[green]{method.name}[/]  {method.title}{' (extension)' if method.extension else ''}")
        say(root)
    say(f"{len(entries)} methods; {len(open_leaves)} leaves are still open.")
    return 0


def list_teachers(options: argparse.Namespace) -> int:
    from kdbench.engine.teachers import Teachers

    columns = ("teacher", "data set", "protocol", "epochs", "seed", "top-1 %", "sha256")
    table = Table(*(Column(name, no_wrap=True) for name in columns), Column("file", overflow="fold"))
    for teacher in Teachers(options.results).all():
        recipe = teacher.card.recipe
        protocol = recipe["protocol"]
        table.add_row(
            teacher.card.name,
            recipe["dataset"]["name"],
            protocol["name"],
            str(protocol["epochs"]),
            str(recipe["seed"]),
            f"{teacher.card.accuracy:.2f}",
            teacher.card.sha256[:12],
            str(teacher.weights),
        )
    if table.row_count:
        say(table)
    else:
        say("no teachers yet: kdbench teacher train pair=... dataset=... protocol=... makes one.")
    return 0


def list_data(options: argparse.Namespace) -> int:
    from kdbench.data.prepare import list_datasets

    table = Table("data set", "status", "train", "test", "image", "classes", "sha256")
    rows = list_datasets(options.root)
    for row in rows:
        table.add_row(*data_cells(row))
    say(table)
    for row in rows:
        if row.status == "corrupt":
            say(f"corrupt: {row.note}")
    return 0


def data_cells(row: Row) -> list[str]:
    """A data set in the columns of ``kdbench data list``."""
    sizes = [str(n) if n is not None else "-" for n in (row.n_train, row.n_test)]
    image = "x".join(map(str, row.shape)) if row.shape else "-"
    classes = str(row.num_classes) if row.num_classes else "-"
    return [row.name, row.status, *sizes, image, classes, (row.sha256 or "-")[:12]]


def describe(row: Row) -> str:
    where = f" in {row.folder}" if row.folder else ""
    return (
        f"{row.name}: {row.status}{where}; {row.n_train} training and {row.n_test} test images of "
        f"{'x'.join(map(str, row.shape or ()))}, {row.num_classes} classes, sha256 {row.sha256 or 'not known'}"
    )


def prepare_data(options: argparse.Namespace) -> int:
    from kdbench.data.prepare import prepare

    say(describe(prepare(options.kind, options.root, options.source, name=options.name, size=options.size)))
    return 0


def verify_data(options: argparse.Namespace) -> int:
    from kdbench.data.prepare import verify

    say(describe(verify(options.name, options.root)))
    return 0


def make_report(options: argparse.Namespace) -> int:
    from kdbench.registry import methods
    from kdbench.report import FORMATS, check, generate, report

    filters = dict(item.partition("=")[::2] for item in options.filter.split(",") if item)
    formats = options.format.split(",") if options.format else FORMATS
    folder, known = options.out or options.results, methods()
    if options.check:
        stale = check(folder, generate(options.results, filters, formats, known))
        for line in stale:
            say(line)
        return fail(f"{len(stale)} file(s) do not follow from the store: run kdbench report.") if stale else 0
    written = report(options.results, folder, filters, formats, known)
    for path in written:
        say(str(path))
    if options.wandb:
        from kdbench.report.publish import publish

        texts = {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in written}
        say(f"wandb: {publish(texts, options.wandb, Path('runs'))}")
    return 0


def compare_methods(options: argparse.Namespace) -> int:
    from kdbench.report import compare, load_records

    say(compare(load_records(options.results), options.a, options.b))
    return 0


def print_tables(results: Path, cells: set[str]) -> None:
    """Regenerate the store's tables, and show those that the cells stand in."""
    from kdbench.registry import methods
    from kdbench.report import build_tables, render, render_terminal, write
    from kdbench.results.claims import load_claims
    from kdbench.results.store import Store

    records = Store(results).load()
    shown = [table for table in build_tables(records) if cells & table.cells]
    if shown:
        write(results, render(records, claims=load_claims(results), methods=methods()))
        say(render_terminal(shown))
        say(f"tables: {results / 'tables'}\nleaderboard: {results / 'leaderboard.html'}")


if __name__ == "__main__":
    sys.exit(main())
