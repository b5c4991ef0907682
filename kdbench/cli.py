"""The command line: ``kdbench run | methods | teacher | data | report``."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

import kdbench
from kdbench.errors import Interrupted, UserError
from kdbench.paths import conf_dir, data_root

if TYPE_CHECKING:
    from kdbench.engine.grid import Outcome

INTERRUPTED = 130
"""Exit code of a program that Ctrl-C ended (128 + SIGINT)."""

out = Console()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code: 0, 1 for anything that went wrong, 130 after Ctrl-C."""
    args = list(sys.argv[1:] if argv is None else argv)
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
        sys.stdout = None  # type: ignore[assignment]  # whoever read our output has gone
        return 0


def fail(message: str, code: int = 1) -> int:
    print(f"kdbench: {message}", file=sys.stderr)
    return code


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="kdbench", description=kdbench.__doc__)
    top.add_argument("--version", action="version", version=f"kdbench {kdbench.__version__}")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    commands.add_parser("run", help="train cells: kdbench run method=dkd pair=resnet56-resnet20 seed=0 (--help for all)")

    methods = commands.add_parser("methods", help="the survey's tree, with the methods on each leaf")
    methods.add_argument("--json", action="store_true")
    methods.add_argument("--config-dir", action="append", default=[], metavar="DIR", help="also the methods of this folder")
    methods.set_defaults(command=list_methods)

    teacher = commands.add_parser("teacher", help="teachers: list them, or train one").add_subparsers(
        required=True, metavar="list|train"
    )
    teachers = teacher.add_parser("list", help="teachers known, with accuracy and sha256")
    teachers.add_argument("--results", type=Path, default=Path("results"), metavar="DIR")
    teachers.set_defaults(command=list_teachers)
    teacher.add_parser("train", help="train one: kdbench teacher train pair=... dataset=... protocol=...")

    data = commands.add_parser("data", help="prepared data sets").add_subparsers(required=True, metavar="list|prepare|verify")
    listing = data.add_parser("list", help="data sets known, and which are prepared")
    listing.set_defaults(command=list_data)
    prepare = data.add_parser("prepare", help="download, or take from files at hand, and write the arrays")
    prepare.add_argument("name", help="cifar100, ..., or a name of your own together with --source")
    prepare.add_argument("--source", type=Path, help="a folder of images, DIR/CLASS/* or DIR/{train,test}/CLASS/*")
    prepare.add_argument("--size", type=int, default=64, help="side of the square images of --source (default 64)")
    prepare.set_defaults(command=prepare_data)
    verify = data.add_parser("verify", help="read everything and compare with the known hash")
    verify.add_argument("name")
    verify.set_defaults(command=verify_data)
    for command in (listing, prepare, verify):
        command.add_argument("--root", type=Path, help=f"folder of prepared data sets (default {data_root()})")

    report = commands.add_parser("report", help="regenerate the tables from the store")
    report.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="the store (default results)")
    report.add_argument("--out", type=Path, metavar="DIR", help="where the tables go (default RESULTS/tables)")
    report.set_defaults(command=make_report)
    return top


# ---- commands composed by Hydra ---------------------------------------------------------------------------------


def hydra_command(name: str, task: Callable[[Any], Outcome | None], args: Sequence[str]) -> int:
    """Run `task` on each config that Hydra composes from `args`, with all of Hydra's own flags; exit code."""
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    outcomes: list[Outcome] = []
    errors: list[str] = []

    def job(cfg: Any) -> None:
        # Hydra drops what a job returns and prints a trace for what it raises: both are kept here instead
        try:
            outcome = task(cfg)
        except UserError as error:
            errors.append(str(error))
        else:
            outcomes.extend([outcome] if outcome else [])

    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra's own errors reach us, to become one sentence
    previous, sys.argv = sys.argv, [f"kdbench {name}", *args]
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir().resolve()), config_name="run")(job)()
    except (HydraException, OmegaConfBaseException) as error:
        errors.append(config_error(error, args))
    finally:
        sys.argv = previous
    if outcomes:
        out.print(sum(outcomes[1:], start=outcomes[0]).summary(), markup=False, highlight=False, soft_wrap=True)
    for message in dict.fromkeys(errors):
        fail(message)
    return 1 if errors or not all(outcome.ok for outcome in outcomes) else 0


def config_error(error: Exception, args: Sequence[str]) -> str:
    """One sentence for Hydra's several lines, with the nearest names where a choice is unknown."""
    text = str(error)
    missing = re.search(r"Could not find '([\w-]+)/([^']+)'", text)
    if missing:
        group, choice = missing.groups()
        folders = [conf_dir()] + [Path(b) for a, b in zip(args, args[1:], strict=False) if a in ("--config-dir", "-cd")]
        known = sorted({path.stem for folder in folders for path in (folder / group).glob("*.yaml")})
        near = difflib.get_close_matches(choice, known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"choose from {', '.join(known)}."
        return f"there is no {group} '{choice}': {hint}"
    key = re.search(r"(?:full_key|Key): ?'?([\w.\-]+)", text) or re.search(r"Could not override '([^']+)'", text)
    first = text.strip().splitlines()[0].rstrip(".")
    if key:
        return f"there is no setting '{key[1]}' ({first}): see kdbench run --cfg job, or add it with +{key[1]}=VALUE."
    return f"{first}: see kdbench run --help."


def make_bench(cfg: Any) -> Any:
    from omegaconf import OmegaConf

    from kdbench.engine.run import Bench
    from kdbench.results.store import Store

    return Bench(
        store=Store(cfg.paths.results),
        work=Path(cfg.paths.work),
        trainer=OmegaConf.to_container(cfg.trainer, resolve=True),
        logger=OmegaConf.to_container(cfg.logger, resolve=True) if cfg.logger else None,
        data_root=cfg.dataset.get("root"),
        checkpoint_seconds=cfg.checkpoint_seconds,
    )


def run(cfg: Any) -> Outcome:
    from kdbench.engine.cell import cells_of
    from kdbench.engine.grid import run_grid

    cells = cells_of(cfg)
    outcome = run_grid(cells, make_bench(cfg), out, force=cfg.force)
    print_tables(Path(cfg.paths.results), {cell.id for cell in cells})
    return outcome


def train_teacher(cfg: Any) -> None:
    from omegaconf import OmegaConf

    from kdbench.engine.cell import teacher_recipe
    from kdbench.protocol import Protocol

    resolved: Any = OmegaConf.to_container(cfg, resolve=True)
    recipe = teacher_recipe(resolved, Protocol.of(resolved["protocol"]))
    teacher = make_bench(cfg).teacher(recipe, cfg.teacher.sha256)
    out.print(
        f"{teacher.card.name}: {teacher.card.accuracy:.2f} %, sha256 {teacher.card.sha256}\n{teacher.weights}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


# ---- other commands ---------------------------------------------------------------------------------------------


def list_methods(options: argparse.Namespace) -> int:
    from rich.tree import Tree

    from kdbench.registry import methods
    from kdbench.taxonomy import tree

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
        out.print(root)
    out.print(f"{len(entries)} methods; {len(open_leaves)} leaves are still open.")
    return 0


def list_teachers(options: argparse.Namespace) -> int:
    from kdbench.engine.teachers import Teachers

    table = Table("teacher", "data set", "protocol", "epochs", "seed", "top-1 %", "sha256", "file")
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
        out.print(table)
    else:
        out.print("no teachers yet: kdbench teacher train pair=... dataset=... protocol=... makes one.")
    return 0


def list_data(options: argparse.Namespace) -> int:
    from kdbench.data.prepare import list_datasets

    table = Table("data set", "status", "train", "test", "image", "classes", "sha256")
    for row in list_datasets(options.root):
        table.add_row(*data_cells(row))
    out.print(table)
    return 0


def prepare_data(options: argparse.Namespace) -> int:
    from kdbench.data.prepare import prepare

    row = prepare(options.name, options.root, options.source, size=options.size)
    out.print(" ".join(data_cells(row)), markup=False, highlight=False)
    return 0


def verify_data(options: argparse.Namespace) -> int:
    from kdbench.data.prepare import verify

    row = verify(options.name, options.root)
    out.print(" ".join(data_cells(row)), markup=False, highlight=False)
    return 0


def make_report(options: argparse.Namespace) -> int:
    from kdbench.report.tables import report

    for path in report(options.results, options.out or options.results):
        out.print(str(path), markup=False, highlight=False, soft_wrap=True)
    return 0


def print_tables(results: Path, cells: set[str]) -> None:
    """Regenerate the store's tables, and show those that the cells stand in."""
    from kdbench.report.tables import build_tables, render_terminal, report
    from kdbench.results.store import Store

    tables = build_tables(Store(results).load())
    shown = [table for table in tables if cells & table.cells]
    if shown:
        report(results, results)
        out.print(render_terminal(shown))
        out.print(f"tables: {results / 'tables'}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
