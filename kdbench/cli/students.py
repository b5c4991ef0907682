"""``kdbench student list | export``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from kdbench.cli.console import plain, say
from kdbench.errors import UserError
from kdbench.text import fixed

FORMATS = ("safetensors", "onnx", "torch.export")


def add_to(commands: Any) -> None:
    student = commands.add_parser("student", help="trained students that were kept: list, or export one")
    parts = student.add_subparsers(required=True, metavar="list|export")
    listed = parts.add_parser("list", help="students of cells that were run with keep=student")
    export = parts.add_parser(
        "export",
        help="write one as a file for other programs",
        description="Write the student of a cell. onnx and torch.export are programs from pixels (batch, channels, "
        "height, width), float32 on the scale 0..1, to logits: the normalisation is inside, and the batch may have any "
        "size. safetensors holds the weights of the network alone, which takes normalised images; the statistics stand "
        "in its metadata, and kdbench.load_student(FILE) takes pixels.",
    )
    export.add_argument("cell", metavar="CELL", help="its id or the beginning of one, or its record's file")
    export.add_argument("--format", choices=FORMATS, default="safetensors", help="(default safetensors)")
    export.add_argument("--out", type=Path, metavar="FILE", help="(default: the record's name, here)")
    for each in (listed, export):
        each.add_argument("--results", type=Path, default=Path("results"), metavar="DIR", help="(default results)")
    listed.set_defaults(command=list_students)
    export.set_defaults(command=export_student)


def list_students(options: argparse.Namespace) -> int:
    from kdbench.engine.students import Student, Students

    columns = ("cell", "method", "student", "data set", "protocol", "seed", "reached", "MB", "sha256")
    table = Table(*(Column(name, no_wrap=True) for name in columns), Column("", no_wrap=True))
    paths, wrong = Students(options.results).all(), []
    for path in paths:
        facts, bad = ["?"] * len(columns), False
        try:
            student = Student.of(path)
            card, recipe = student.card, student.card.recipe
            names = (card.cell, card.method, card.name, recipe["dataset"]["name"], recipe["protocol"]["name"])
            size = fixed(path.stat().st_size / 1e6, 2)
            facts = [*names, str(recipe["seed"]), card.measure.sentence(card.accuracy), size, card.sha256[:12]]
            student.state()
        except UserError as error:
            wrong.append(str(error))
            bad = True
        table.add_row(*map(plain, (*facts, "wrong" if bad else "")))
    if not paths:
        say(f"no students in {options.results}: kdbench run keep=student ... keeps the network of each cell.")
        return 0
    say(table)
    say(f"{len(paths)} in {Students(options.results).folder}")
    for message in wrong:
        say(f"wrong: {message}")
    return 0


def export_student(options: argparse.Namespace) -> int:
    from kdbench.engine.export import FOLDED, TRIED, export
    from kdbench.engine.export import FORMATS as ENDINGS
    from kdbench.engine.students import find_student

    student = find_student(options.cell, options.results)
    kind, card = options.format, student.card
    done = export(student, kind, options.out or Path(student.weights.stem + ENDINGS[kind]))
    size = ", ".join(["batch", *map(str, card.spec.shape)])
    if not card.mean:
        takes = "observations as they are"
    elif kind in FOLDED:
        takes = "pixels on the scale 0..1, normalised inside"
    else:
        takes = "images normalised by the mean and std in its metadata"
    say(f"{done.path}: {card.name} of cell {card.cell}, {card.measure.sentence(card.accuracy)}")
    say(f"takes ({size}), float32, {takes}; gives logits of {card.spec.num_classes} outputs")
    say(f"read again, its logits are within {done.apart:.1g} of the network's on {TRIED} random inputs")
    return 0
