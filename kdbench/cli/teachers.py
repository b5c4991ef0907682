"""``kdbench teacher list | train | import | cache``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.cli.completion import composed
from kdbench.cli.console import fail, out, plain, say, show_table
from kdbench.cli.helps import asks_for_more, described
from kdbench.cli.jobs import Jobs, run_jobs
from kdbench.cli.run import make_bench
from kdbench.errors import Interrupted, UserError
from kdbench.text import fixed

if TYPE_CHECKING:
    from kdbench.cli.outcomes import Told
    from kdbench.data.datasets import Dataset
    from kdbench.engine.job import Job
    from kdbench.engine.run import Bench
    from kdbench.teaching.taught import Taught
    from kdbench.teaching.teachers import Teacher


EXAMPLES = {
    "kdbench teacher list": "what each reaches",
    "kdbench teacher train pair=resnet56-resnet20": "ahead of many jobs",
    "kdbench teacher import lab.pth pair=resnet56-resnet20": "weights of your own",
    "kdbench teacher cache pair=resnet56-resnet20 'seed=[0,1,2]'": "its words on each view",
}
STORE = "teachers kept beside the records of this store (default results)"


def add_to(commands: Any) -> None:
    parser = commands.add_parser("teacher", help="teachers: list, train, import, or cache what one says")
    described(parser, EXAMPLES)
    asks_for_more(parser)
    teacher = parser.add_subparsers(metavar="list|train|import|cache", title="commands")
    teachers = teacher.add_parser("list", help="teachers known, with what they reach and sha256")
    teachers.add_argument(
        "--results", type=Path, default=Path("results"), metavar="DIR", help=f"{STORE}, and the cache"
    )
    teachers.set_defaults(command=list_teachers)
    composed(teacher.add_parser("train", help="train those of a job, ahead of it"))
    composed(teacher.add_parser("import", help="bring one: weights from a file, or torchvision's and timm's"))
    composed(teacher.add_parser("cache", help="have one look at all views that a job will show, ahead of it"), "--all")


def list_teachers(options: argparse.Namespace) -> int:
    from kdbench.measures import TOP1
    from kdbench.teaching.teachers import Teachers

    listed = Teachers(options.results).all()
    cards = [teacher.card for teacher in listed if teacher.card]
    several = len({card.measure for card in cards}) > 1
    measure = cards[0].measure if cards else TOP1
    digits = measure.digits(card.accuracy for card in cards)
    head = "reached" if several else measure.quantity
    columns = ("teacher", "data set", "protocol", "epochs", "seed", head, "sha256", "brought from")
    rows = []
    for teacher in listed:
        if card := teacher.card:
            recipe, protocol = card.recipe, card.recipe.get("protocol", {})
            how = [protocol.get("name", "-"), protocol.get("epochs", "-"), recipe.get("seed", "-")]
            names = (card.name, recipe["dataset"]["name"], *how)
            origin = card.origin.source if card.origin else "-"
            own = f"{card.measure.label} {card.measure.text(card.accuracy)}{'' if card.measure.higher else ' ↓'}"
            reached = own if several else fixed(card.accuracy, digits)
            rows.append([*map(str, names), reached, card.sha256[:12], origin])
    if not listed:
        say("no teachers yet: kdbench teacher train pair=... dataset=... protocol=... makes one.")
        return 0
    if rows:
        show_table(columns, rows, spare=("epochs", "seed"))
    for teacher in listed:
        known = teacher.card.sha256[:12] if teacher.card else "?"
        say(f"{known}  {plain(str(teacher.path))}{'  wrong' if teacher.wrong else ''}")
    for teacher in listed:
        if teacher.wrong:
            say(f"wrong: {plain(teacher.wrong)}")
    return 0


def train(args: Sequence[str]) -> int:
    """Train what Hydra composes from `args`; exit code."""
    return _done(run_jobs("teacher train", train_one, args))


def bring(args: Sequence[str]) -> int:
    """Bring the weights that the first of `args` names, as a teacher of what Hydra composes from the others."""
    from kdbench.cli.overrides import readable

    sources = [arg for arg in args if "=" not in arg and not arg.startswith(("-", "~"))]
    heads = [arg for arg in args if arg.startswith("head=")]
    if not sources:
        raise UserError(
            "nothing to import: name a FILE, torchvision/NAME or timm/NAME (kdbench teacher import --help)."
        )
    if {*heads} - {"head=replace"}:
        raise UserError(f"{heads[0]}: write head=replace, or leave it out for weights whose head fits the data.")
    rest = [arg for arg in args if arg not in (sources[0], *heads)]
    return _done(
        run_jobs("teacher import", partial(bring_one, source=sources[0], new_head=bool(heads)), readable(rest))
    )


def bring_one(job: Job, told: Told, *, source: str, new_head: bool) -> None:
    from kdbench.engine.bringing import bring
    from kdbench.engine.progress import watched

    bench = make_bench(job)
    bench.check()
    with watched(bench, out):
        teacher = bring(bench, job, source, new_head=new_head)
    card = teacher.card
    assert card.origin
    told.said.append(
        f"{_reached(teacher, job, bench)}, brought from {card.origin.source}\n{teacher.weights}\n"
        f"to have it teach: kdbench run teacher.weights={card.sha256[:12]} dataset=... pair.student=..."
    )


def cache(args: Sequence[str]) -> int:
    """Fill the view cache for what Hydra composes from `args`; exit code."""
    every = "--all" in args
    return _done(run_jobs("teacher cache", partial(cache_one, every=every), [arg for arg in args if arg != "--all"]))


def _done(jobs: Jobs) -> int:
    """Say what the jobs said, and tell each error once; exit code."""
    for each in jobs.told:
        for line in each.said:
            say(line)
    for message in dict.fromkeys(jobs.errors):
        fail(message)
    if jobs.interrupted:
        raise Interrupted
    return 1 if jobs.errors else 0


def cache_one(job: Job, told: Told, *, every: bool) -> None:
    from kdbench.engine.cell import teachers_of
    from kdbench.engine.progress import watched
    from kdbench.protocol import Protocol
    from kdbench.teaching.recipe import dataset_identity

    bench, protocol = make_bench(job), Protocol.of(job.protocol)
    bench.check()
    dataset_config = dataset_identity(job.dataset)
    dataset = bench.dataset(dataset_config)
    if dataset.crops:
        raise UserError(
            f"the images of {dataset.spec.name} are streamed, and nothing is cached ahead: dataset.views.cycle=K has "
            "training keep what a teacher says of K views of each."
        )
    if dataset.mix:
        raise UserError(
            f"the images of {dataset.spec.name} are mixed, others in each epoch, and nothing is cached ahead: set "
            "dataset.mix=null."
        )
    route = bench.route(protocol, dataset)
    if not route.cached:
        raise UserError(f"there is no view cache on this route ({route.describe(1)}): set engine.view_cache=true.")
    for recipe, pin in teachers_of(job):
        with watched(bench, out):
            teacher = bench.teacher(recipe, pin)
        told.said.append(_filled(bench.taught(teacher, dataset_config, protocol, partial=True), dataset, every, job))


def _filled(taught: Taught, dataset: Dataset, every: bool, job: Job) -> str:
    """What was done to fill a teacher's view cache."""
    from rich.progress import Progress

    from kdbench.paths import CHOOSE_CACHE, cache_dir
    from kdbench.protocol import Protocol
    from kdbench.teaching.filling import all_views, fill, views_of

    frozen, cache, protocol = taught.frozen, taught.cache, Protocol.of(job.protocol)
    if cache is None or cache.only_read:
        raise UserError(f"there is no view cache that could be filled in {cache_dir() / 'views'}: {CHOOSE_CACHE}.")
    frozen.cache = cache  # here a disk that becomes full is an error
    views = all_views(dataset) if every else views_of(dataset, job.seed, protocol.epochs)
    say(
        f"{taught.info.name} on {dataset.spec.name}: {len(views)} views to know, {cache.filled()} in the cache of at "
        f"most {cache.nbytes / 1e9:.2f} GB in {cache.folder}"
    )
    cache.check_room(len(views))
    with Progress(console=out, disable=not out.is_terminal) as progress:
        bar = progress.add_task("views", total=len(views))
        for done in fill(frozen, dataset, views, protocol.batch_size, next(frozen.parameters()).device):
            progress.advance(bar, done)
    return f"{frozen.misses} computed, {frozen.hits} were there."


def train_one(job: Job, told: Told) -> None:
    from kdbench.engine.cell import teachers_of
    from kdbench.engine.progress import watched

    bench = make_bench(job)
    bench.check()
    for recipe, pin in teachers_of(job):
        with watched(bench, out):
            teacher = bench.teacher(recipe, pin)
        told.said.append(f"{_reached(teacher, job, bench)}\n{teacher.weights}")


def _reached(teacher: Teacher, job: Job, bench: Bench) -> str:
    """What a teacher reaches, what that is worth, and its hash."""
    card, weak = teacher.card, weakness_of(teacher, job, bench)
    reached = card.measure.sentence(card.accuracy)
    return f"{card.name}: {f'{reached}, {weak}' if weak else reached}, sha256 {card.sha256}"


def weakness_of(teacher: Teacher, job: Job, bench: Bench) -> str | None:
    """Why the teacher has nothing to teach the job's student, by its card and by the store's runs from scratch."""
    from kdbench.protocol import Protocol
    from kdbench.report.trust import from_scratch, weakness
    from kdbench.teaching.recipe import dataset_identity

    own = teacher.card.recipe["dataset"]
    spec = bench.dataset(own).spec
    dataset = dataset_identity(job.dataset)
    wanted = {
        "student": job.pair.student,
        "dataset": dataset,
        "protocol": Protocol.of(job.protocol).model_dump(mode="json"),
    }
    scores: list[float] = []
    card = teacher.card
    if all(own.get(key) == dataset.get(key) for key in ("name", "classes", "scenario")):  # the same test images
        scores = from_scratch(bench.store.load(), wanted, card.measure)
    return weakness(card.accuracy, spec.n_test, spec.num_classes, scores, card.measure)
