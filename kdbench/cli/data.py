"""``kdbench data list | prepare | verify``."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.cli.completion import data_sets
from kdbench.cli.console import say, show_table
from kdbench.cli.helps import asks_for_more, described
from kdbench.cli.jobs import assignment
from kdbench.paths import data_root

if TYPE_CHECKING:
    from kdbench.data.listing import Row


LAYOUTS = """\
Make a prepared data set: of what torchvision downloads, of a copy at hand, or
('folder') of your own images:

  CLASS/*               one folder per class
  images/*  masks/*     masks of the same names: a class index in each pixel,
                        grey or palette, 255 = no label
  images/*  depth/*     depth maps: 16-bit PNG in mm or .npy (floats in m, whole
                        numbers in mm), 0 = no reading
  NAME.jpg  NAME_mask.png
                        the same side by side, also NAME_depth.png or
                        NAME_depth.npy

each below train/, val/ and test/, or without: then a fifth becomes the test
split. images/train/ with masks/train/ and train/ with trainannot/ are
understood, too. classes.txt beside the folders names the classes of masks, one
a line.
"""


EXAMPLES = {
    "kdbench data list": "what there is, with tasks, sizes and licences",
    "kdbench data prepare cifar100": "download and convert",
    "kdbench data prepare folder --source DIR --size 64 --name parts": "your own images",
    "kdbench data prepare folder --stream --source DIR --name photos": "large ones, left where they are",
    "kdbench data verify cifar100": "is all of it as it should be?",
}


def add_to(commands: Any) -> None:
    parser = commands.add_parser("data", help="data sets of every task: list, prepare, verify")
    described(parser, EXAMPLES)
    asks_for_more(parser)
    data = parser.add_subparsers(metavar="list|prepare|verify", title="commands")
    listing = data.add_parser("list", help="data sets known, their tasks, and which are embedded or prepared")
    listing.set_defaults(command=list_data)
    prepare = data.add_parser(
        "prepare",
        help="download, or take from files at hand, and write the arrays",
        description=LAYOUTS,
    )
    described(prepare, {line: what for line, what in EXAMPLES.items() if " prepare " in line})
    kind = prepare.add_argument("kind", help="cifar100, ..., or 'folder' for a folder of images")
    kind.completer = data_sets
    prepare.add_argument(
        "--source",
        type=Path,
        metavar="DIR",
        help="of 'folder': where the images lie, see above; of camvid and imagenet: their folder; else downloads",
    )
    prepare.add_argument("--name", help="of 'folder': what to call the result (default folder, or streamed)")
    prepare.add_argument(
        "--size",
        type=size_of,
        metavar="N|HxW",
        help="of 'folder': images are resized to cover it and centre-cropped (default 64; with maps: their own size)",
    )
    prepare.add_argument(
        "--stream",
        action="store_true",
        help="of 'folder': leave the images where they are, and read them while training (for large ones, or many)",
    )
    prepare.set_defaults(command=prepare_data)
    verify = data.add_parser("verify", help="read everything and compare with the known hash")
    name = verify.add_argument("name", help="of a data set, as kdbench data list shows it")
    name.completer = data_sets
    verify.set_defaults(command=verify_data)
    for command in (listing, prepare, verify):
        root = str(data_root()).replace("%", "%%")
        command.add_argument("--root", type=Path, metavar="DIR", help=f"folder of prepared data sets (default {root})")


def size_of(text: str) -> tuple[int, int]:
    """Height and width from ``64`` or ``180x240``.

    Raises:
        ArgumentTypeError: it is neither.
    """
    sides = text.split("x")
    if len(sides) > 2 or not all(re.fullmatch(r"-?\d{1,9}", side) for side in sides):
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 64, or height and width as 180x240")
    return int(sides[0]), int(sides[-1])


def list_data(options: argparse.Namespace) -> int:
    from kdbench.data.listing import list_datasets

    rows = list_datasets(options.root)
    heads = ("data set", "task", "status", "train", "val", "test", "image", "classes", "licence", "sha256")
    show_table(heads, map(data_cells, rows), spare=("val", "image", "licence", "sha256"))
    for row in rows:
        if row.note and row.status != "missing":
            say(f"{row.status}: {row.note}")
    return 0


def data_cells(row: Row) -> list[str]:
    """A data set in the columns of ``kdbench data list``."""
    sizes = [str(n) if n is not None else "-" for n in (row.n_train, row.n_val, row.n_test)]
    image = "x".join(map(str, row.shape)) if row.shape else "-"
    classes = str(row.num_classes) if row.num_classes else "-"
    name = row.name if row.name.isprintable() else ascii(row.name)
    return [name, row.task, row.status, *sizes, image, classes, row.licence or "-", (row.sha256 or "-")[:12]]


def describe(row: Row) -> str:
    """A data set in one line, and in one line each what there is to know of how it was made."""
    where = f" in {row.folder}" if row.folder else ""
    val = f", {row.n_val} validation" if row.n_val else ""
    task = "" if row.task == "classification" else f"{row.task}, "
    classes = f"{row.num_classes} classes, " if row.num_classes else ""
    line = (
        f"{row.name}: {row.status}{where}; {task}{row.n_train} training{val} and {row.n_test} test images of "
        f"{'x'.join(map(str, row.shape)) if row.shape else 'their own sizes'}, {classes}sha256 "
        f"{row.sha256 or 'not known'}"
    )
    return "\n".join([line, *(f"  {told}" for told in row.told)])


def prepare_data(options: argparse.Namespace) -> int:
    from kdbench.data.prepare import FOLDER, prepare

    row = prepare(
        options.kind, options.root, options.source, name=options.name, size=options.size, stream=options.stream
    )
    say(describe(row))
    if options.kind == FOLDER:
        root = [assignment("dataset.root", str(options.root))] if options.root else []
        group = "dataset=streamed" if options.stream else "dataset=folder"
        say("use it with: " + " ".join(["kdbench run", group, assignment("dataset.name", row.name), *root]))
    return 0


def verify_data(options: argparse.Namespace) -> int:
    from kdbench.data.prepare import verify

    say(describe(verify(options.name, options.root)))
    return 0
