"""``kdbench reproduce``: train a cell again, and compare."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from kdbench.cli.console import fail, out, plain, say
from kdbench.cli.show import add_cell_to, find
from kdbench.errors import UserError
from kdbench.text import fixed

if TYPE_CHECKING:
    from kdbench.engine.run import Bench
    from kdbench.results.record import Record
    from kdbench.results.reproduced import Verdict
    from kdbench.results.store import Store


def add_to(commands: Any) -> None:
    reproduce = commands.add_parser(
        "reproduce",
        help="train a cell again and compare",
        description="Train a cell again, by its record's settings, with its teacher where that is to be found, in a "
        "store of its own; then compare. Exit code 0: the same bits where processor, versions, threads, route, code "
        "and teacher are those of the record, else as near as another seed; 1: not.",
    )
    add_cell_to(reproduce)
    reproduce.add_argument(
        "--out",
        type=Path,
        default=Path("runs/reproduce"),
        metavar="DIR",
        help="the store for the new record and its student (default runs/reproduce)",
    )
    reproduce.set_defaults(command=reproduce_cell)


def reproduce_cell(options: argparse.Namespace) -> int:
    from kdbench.engine.cell import cell_in
    from kdbench.engine.grid import run_grid
    from kdbench.results.reproduced import judge
    from kdbench.teaching.teachers import Teachers

    _, record, store = find(options)
    if options.out.resolve() == store.root.resolve():
        raise UserError(f"--out {options.out} is the store that holds the record: name another one.")
    cell = cell_in(record)
    bench = _bench(record, options.out)
    data = bench.dataset(cell.dataset)
    if data.content_hash != record.dataset.sha256:
        raise UserError(
            f"the record is of other data ({record.dataset.sha256[:12]}, here {data.content_hash[:12]}): restore them, "
            "or let KDBENCH_DATA name the folder that has them."
        )
    say(f"{cell}, cell {cell.id}, of {record.created:%Y-%m-%d}, into {options.out}")
    known = Teachers(store.root)
    for info, recipe in record.teachers:
        if found := known.known(recipe, info.sha256):
            found.check()
            bench.teachers.keep(found)
            say(f"teacher: {info.name} {info.sha256[:12]}, as recorded, from {found.weights}")
        elif "weights" not in recipe:  # of one that was brought the run says how to bring it again
            there = bench.teachers.find(recipe, bench.dataset(recipe["dataset"]))
            instead = (
                f"{there.card.sha256[:12]} of the same recipe teaches" if there else "one is trained by its recipe"
            )
            say(f"teacher: the record's {info.name} {info.sha256[:12]} is not to be found, so {instead}")
    outcome = run_grid([cell], bench, out, force=True)
    again = bench.store.get(cell.id) if outcome.ran or outcome.diverged else None
    if again is None:
        for line in (*outcome.failed, *outcome.pruned):
            fail(line)
        return 1
    verdict = judge(record, again, _seeds(record, store))
    if record.metrics and again.metrics:
        say(_measured(record, again))
    for line in (*_computed(record, again), *_told(record, again, verdict)):
        say(line)
    return 0 if verdict.reproduced else 1


def _bench(record: Record, root: Path) -> Bench:
    """On the device and the route of a record, as far as they are to be had here."""
    import torch

    from kdbench.compute.device import device_name
    from kdbench.compute.route import EngineConfig
    from kdbench.engine.run import Bench
    from kdbench.results.store import Store

    env = record.environment
    here = env.device == device_name(torch.device("cpu"))
    trainer: dict[str, Any] = {"accelerator": "cpu" if here else "auto", "devices": 1}
    torch.set_num_threads(env.threads)
    for key, value in re.findall(r"(deterministic|benchmark)=(\w+)", env.path):
        trainer[key] = {"true": True, "false": False}.get(value, value)
    engine = EngineConfig(route="plain" if env.path.startswith("plain") else "fast", compile=", compiled" in env.path)
    return Bench(Store(root), root / "work", trainer=trainer, engine=engine, keep_students=True)


def _seeds(record: Record, store: Store) -> list[float]:
    """What the records reached that differ from this one in the seed alone, itself among them."""
    from kdbench.results.record import canonical_json

    def setting(each: Record) -> str:
        return canonical_json({key: value for key, value in each.config.items() if key != "seed"})

    alike = [each for each in store.load() if setting(each) == setting(record)]
    return [each.metrics.last for each in alike if each.metrics]


def _measured(record: Record, again: Record) -> Table:
    """All measures of both, and by how much they moved."""
    assert record.metrics and again.metrics  # noqa: PT018
    was, now = ({record.measure.name: each.last, **each.others} for each in (record.metrics, again.metrics))
    table = Table("", "recorded", "now", "moved")
    for name in dict.fromkeys([*was, *now]):
        shown = [f"{each[name]:.6g}" if name in each else "-" for each in (was, now)]
        moved = now[name] - was[name] if name in was and name in now else 0.0
        table.add_row(*map(plain, (name, *shown, f"{moved:+.3g}" if moved else "")))
    return table


def _computed(record: Record, again: Record) -> Iterator[str]:
    """What equal bits depend on, each in a line."""
    from kdbench.results.reproduced import PARTS, differing

    other = differing(record, again)
    for name, field in PARTS.items():
        was, now = (str(getattr(each.environment, field)) for each in (record, again))
        yield f"{'other' if name in other else 'same':<6}{name:<10} {was}{f', now {now}' if name in other else ''}"


def _told(record: Record, again: Record, verdict: Verdict) -> Iterator[str]:
    """The verdict, in sentences."""
    if verdict.alike:
        count, n = verdict.alike
        yield f"{count} of {n} test {record.measure.examples} ({fixed(100 * count / n, 2)} %) have the same score."
    if verdict.equal:
        what = (
            f"it diverges again ({again.reason})" if again.reason else "measures, curves and examples are the same bits"
        )
        yield f"reproduced: {what}."
        return
    if verdict.other:
        expected = f"Other than the record's: {', '.join(verdict.other)}; so equal bits were not to be expected"
    else:
        expected = (
            "Processor, versions, threads, route, code and teacher are those of the record, so equal bits were to be "
            "expected (processors of one name may differ in their instructions)"
        )
    if record.status != again.status:
        near = f"the record {_ended(record)}, and now it {_ended(again)}"
    elif not again.metrics or not record.metrics:
        near = f"both diverged, the record as {record.reason}, now as {again.reason}"
    elif verdict.band:
        low, high = (fixed(value, record.measure.digits([value])) for value in verdict.band)
        inside = verdict.band[0] <= again.metrics.last <= verdict.band[1]
        near = (
            f"{record.measure.text(again.metrics.last)} lies {'between' if inside else 'outside of'} {low} "
            f"{'and' if inside else 'to'} {high}, where 95 % of further seeds would lie by those of the store"
        )
    elif verdict.p is not None:
        near = f"the store has no other seed; over the test {record.measure.examples} p = {fixed(verdict.p, 3)}"
    else:
        near = "the store has no other seed, and the record no scores of single examples, to judge it by"
    yield f"{expected}; {near}."
    yield "reproduced, within the spread of seeds." if verdict.reproduced else "not reproduced."


def _ended(record: Record) -> str:
    return "diverged" if record.status == "diverged" else "finished"
