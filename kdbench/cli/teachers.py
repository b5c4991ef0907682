"""``kdbench teacher list | train | cache``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Column, Table

from kdbench.cli.console import fail, out, plain, say
from kdbench.cli.jobs import run_jobs
from kdbench.cli.run import make_bench
from kdbench.errors import UserError
from kdbench.text import fixed

if TYPE_CHECKING:
    from kdbench.engine.cell import Job


def add_to(commands: Any) -> None:
    teacher = commands.add_parser("teacher", help="teachers: list, train, or cache what one says").add_subparsers(
        required=True, metavar="list|train|cache"
    )
    teachers = teacher.add_parser("list", help="teachers known, with accuracy and sha256")
    teachers.add_argument("--results", type=Path, default=Path("results"), metavar="DIR")
    teachers.set_defaults(command=list_teachers)
    teacher.add_parser("train", help="train one: kdbench teacher train pair=... dataset=... protocol=...")
    teacher.add_parser(
        "cache",
        help="fill its view cache ahead: kdbench teacher cache pair=... dataset=... protocol=... seed=[0,1,2]; with "
        "--all for every view there is",
    )


def list_teachers(options: argparse.Namespace) -> int:
    from kdbench.engine.teachers import Teachers

    columns = ("teacher", "data set", "protocol", "epochs", "seed", "top-1 %", "sha256")
    table = Table(*(Column(name, no_wrap=True) for name in columns), Column("file", overflow="fold"))
    for teacher in Teachers(options.results).all():
        recipe = teacher.card.recipe
        protocol = recipe["protocol"]
        row = (
            teacher.card.name,
            recipe["dataset"]["name"],
            protocol["name"],
            str(protocol["epochs"]),
            str(recipe["seed"]),
            fixed(teacher.card.accuracy, 2),
            teacher.card.sha256[:12],
            str(teacher.weights),
        )
        table.add_row(*map(plain, row))
    if table.row_count:
        say(table)
    else:
        say("no teachers yet: kdbench teacher train pair=... dataset=... protocol=... makes one.")
    return 0


def train(args: Sequence[str]) -> int:
    """Train what Hydra composes from `args`; exit code."""
    return _done(run_jobs("teacher train", train_one, args))


def cache(args: Sequence[str]) -> int:
    """Fill the view cache for what Hydra composes from `args`; exit code."""
    every = "--all" in args
    return _done(run_jobs("teacher cache", lambda job: cache_one(job, every), [arg for arg in args if arg != "--all"]))


def _done(errors: Sequence[str]) -> int:
    """Tell each error once; exit code."""
    for message in dict.fromkeys(errors):
        fail(message)
    return 1 if errors else 0


def cache_one(job: Job, every: bool) -> None:
    from rich.progress import Progress

    from kdbench.engine.cell import dataset_identity, teacher_recipe
    from kdbench.engine.filling import all_views, fill, views_of
    from kdbench.engine.grid import watched
    from kdbench.engine.view_cache import ViewCache
    from kdbench.protocol import Protocol

    bench, protocol = make_bench(job), Protocol.of(job.protocol)
    bench.check()
    dataset_config = dataset_identity(job.dataset)
    dataset = bench.dataset(dataset_config)
    route = bench.route(protocol, dataset)
    if not route.cached:
        raise UserError(f"there is no view cache on this route ({route.describe(1)}): set engine.view_cache=true.")
    with watched(bench, out, 0):
        teacher = bench.teacher(teacher_recipe(job), job.teacher.sha256)
    frozen = bench.taught(teacher, dataset_config, protocol).frozen
    cache = frozen.cache
    assert isinstance(cache, ViewCache)
    views = all_views(dataset) if every else views_of(dataset, job.seed, protocol.epochs)
    say(
        f"{teacher.card.name} on {dataset.spec.name}: {len(views)} views to know, {cache.filled()} in the cache of at "
        f"most {cache.nbytes / 1e9:.2f} GB in {cache.folder}"
    )
    cache.check_room(len(views))
    with Progress(console=out, disable=not out.is_terminal) as progress:
        bar = progress.add_task("views", total=len(views))
        for done in fill(frozen, dataset, views, protocol.batch_size, bench.device):
            progress.advance(bar, done)
    say(f"{frozen.misses} computed, {frozen.hits} were there.")


def train_one(job: Job) -> None:
    from kdbench.engine.cell import teacher_recipe
    from kdbench.engine.grid import watched

    bench = make_bench(job)
    bench.check()
    with watched(bench, out, 0):
        teacher = bench.teacher(teacher_recipe(job), job.teacher.sha256)
    say(f"{teacher.card.name}: {fixed(teacher.card.accuracy, 2)} %, sha256 {teacher.card.sha256}\n{teacher.weights}")
