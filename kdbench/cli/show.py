"""``kdbench show``: a cell's record in words, and the command that trains it."""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.cli.console import say
from kdbench.errors import UserError
from kdbench.text import fixed, one_line

if TYPE_CHECKING:
    from kdbench.results.record import Record, TeacherInfo
    from kdbench.results.store import Store

LAST_POINTS = 5
"""Of each curve, how many are shown."""


def add_to(commands: Any) -> None:
    show = commands.add_parser("show", help="a cell's record in words, and the command that trains it")
    add_cell_to(show)
    show.set_defaults(command=show_cell)


def add_cell_to(parser: argparse.ArgumentParser) -> None:
    """The arguments that name a cell in a store."""
    parser.add_argument("cell", metavar="CELL", help="its id, the beginning of one, or its record's file")
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="(default results)")


def find(options: argparse.Namespace) -> tuple[Path, Record, Store]:
    """The record of such arguments, its file, and the store that it lies in.

    Raises:
        UserError: there is none, more than one, or it is broken.
    """
    from kdbench.results.store import Store

    store = Store(options.results)
    path = store.find(options.cell)
    record = store.read(path)
    return path, record, Store(path.parent.parent) if path.parent.name == "records" else store


def show_cell(options: argparse.Namespace) -> int:
    path, record, store = find(options)
    cell = record.cell
    say(f"{cell.method}, {cell.pair}, {cell.dataset}, {cell.protocol}, seed {cell.seed}: cell {cell.id}")
    for label, told in _facts(path, record, store):
        if told:  # not in a table, which would break names of files and commands
            say(f"{label:<10}{one_line(told)}")
    return 0


def _facts(path: Path, record: Record, store: Store) -> Iterator[tuple[str, str]]:
    """What there is to know of a record, by what it is about."""
    from kdbench.engine.students import Students

    measure, metrics, cost, env = record.measure, record.metrics, record.cost, record.environment
    if metrics:
        reached = {
            "after the last epoch": metrics.last,
            "at the epoch that the validation split chose": metrics.val_selected,
            "at best, which is never ranked": metrics.oracle,
        }
        known = (f"{measure.text(value)} {what}" for what, value in reached.items() if value is not None)
        yield "reached", f"{measure.label} {', '.join(known)}"
        yield "", ", ".join(f"{name} {value:.4g}" for name, value in metrics.others.items())
    else:
        yield "diverged", str(record.reason)
    yield "curves", f"the last of {max(map(len, record.curves.values()), default=0)} epochs"
    for name, curve in record.curves.items():
        yield "", f"{name} {' '.join('-' if value is None else f'{value:.4g}' for value in curve[-LAST_POINTS:])}"
    yield "method", f"{record.method.cls}; {_code(record)}"
    settings = {key: value for key, value in record.config["method"].items() if key not in ("name", "_target_")}
    yield "", ", ".join(f"{key}={value}" for key, value in settings.items()) or "no settings"
    yield "data", _data(record)
    for info, recipe in record.teachers:
        yield "teacher", _teacher(info, recipe, store)
    if not record.teacher:
        yield "teacher", "none"
    yield "student", f"{record.cell.student}, {cost.student_params:,} parameters, {cost.student_macs:,} MACs"
    kept = Students(store.root).path(record.cell.id)
    yield "", f"weights: {kept}" if kept else "weights not kept: kdbench reproduce trains it again and keeps them"
    yield "cost", f"{cost.images_seen:,} images, {cost.train_seconds:.0f} s of training, threads: {env.threads}"
    yield "computed", f"{env.device}; {env.path}; {env.precision}"
    versions = f"kdbench {env.kdbench}, torch {env.torch}, lightning {env.lightning}, Python {env.python}"
    yield "", f"{versions}; commit {(env.commit or 'unknown')[:12]}; {record.created:%Y-%m-%d %H:%M %Z}"
    yield "seal", _seal(path)
    yield "record", str(path)
    yield "command", _command(record, store)


def _seal(path: Path) -> str:
    """What the two hashes of a record's file are of; that it was read means that the seal is whole."""
    raw = path.read_bytes()
    seal = json.loads(raw)["sha256"]
    whole = hashlib.sha256(raw).hexdigest()
    return (
        f"whole: not edited since it was written. Its sha256 {seal[:12]} is of all other fields, as JSON with sorted "
        f"keys and no spaces; sha256sum reads the file, seal and all, and says {whole[:12]}"
    )


def _code(record: Record) -> str:
    from kdbench.construct import method_class
    from kdbench.source import is_code_of, source_hash

    try:
        cls = method_class(record.cell.method, record.config["method"])
    except UserError as error:
        return f"not here: {error}"
    was, now = record.method.source, source_hash(cls)
    if was is None or now is None:
        return "whether its code is the same is not known, as the record has no hash of it"
    if was == now:
        return f"its code is that of the record, {was[:12]}"
    same = ", which did the same" if is_code_of(cls, was) else ""
    return f"its code is another, {now[:12]} where the record has {was[:12]}{same}"


def _data(record: Record) -> str:
    from kdbench.data.sources import source_of

    data = record.dataset
    sizes = f"{data.n_train} to train, {data.n_test} to test, {data.num_classes} outputs; content {data.sha256[:12]}"
    try:
        here = source_of(record.drawn).build().content_hash
    except UserError as error:
        return f"{record.cell.dataset}, {sizes}; not here: {error}"
    return (
        f"{record.cell.dataset}, {sizes}; {'the same here' if here == data.sha256 else f'here {here[:12]}, other data'}"
    )


def _teacher(info: TeacherInfo, recipe: dict[str, Any], store: Store) -> str:
    from kdbench.teaching.teachers import Teachers

    reached = f"{info.name}, {fixed(info.accuracy, 2)}, sha256 {info.sha256[:12]}"
    try:
        found = Teachers(store.root).known(recipe, info.sha256)
        if found:
            found.check()
    except UserError as error:
        return f"{reached}; {error}"
    return f"{reached}; {found.weights if found else 'its weights are not here'}"


def _command(record: Record, store: Store) -> str:
    """The command that trains a record's cell, after it was tried whether it does; or why there is none."""
    from kdbench.commands import overrides_of, text

    try:
        overrides = overrides_of(record.config, [info.sha256 for info, _ in record.teachers])
        (composed,) = _cells([*overrides, f"paths.results={text(str(store.root))}"])
    except (UserError, ValueError) as error:
        return f"no command of this kdbench gives this cell: {error}"
    if composed != record.cell.id:
        return f"no command of this kdbench gives this cell: its settings compose {composed} now"
    return shlex.join(["kdbench", "run", *overrides])


def _cells(overrides: Sequence[str]) -> list[str]:
    """The ids of the cells that `kdbench run` would compose of overrides."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from kdbench.cli.overrides import readable
    from kdbench.engine.cell import cells_of
    from kdbench.engine.job import Job
    from kdbench.paths import conf_dir
    from kdbench.targets import first_line

    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
            return [cell.id for cell in cells_of(Job.of(compose("run", readable(overrides))))]
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(first_line(error)) from None
