"""``kdbench methods``."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from kdbench.cli.console import plain, say

if TYPE_CHECKING:
    from kdbench.registry import Entry

USUAL = frozenset({"teacher", "labels", "peers", "again"})
"""What a method may ask of any data set and grid."""


def add_to(commands: Any) -> None:
    methods = commands.add_parser(
        "methods", help="the survey's tree, with the methods on each leaf and what they ask for"
    )
    methods.add_argument("--json", action="store_true")
    methods.add_argument(
        "--config-dir", action="append", default=[], metavar="DIR", help="also the methods of this folder"
    )
    methods.set_defaults(command=list_methods)


def list_methods(options: argparse.Namespace) -> int:
    from rich.text import Text
    from rich.tree import Tree

    from kdbench.registry import methods
    from kdbench.shipped import is_third_party
    from kdbench.taxonomy import tree

    entries = methods(options.config_dir)
    chapters = tree(entries)
    open_leaves = [leaf.id for chapter in chapters for leaf in chapter.leaves if not leaf.methods]
    if options.json:
        details = {
            entry.name: {
                "class": entry.path,
                "leaf": entry.leaf,
                "needs": sorted(entry.needs),
                "tasks": sorted(entry.tasks),
                "settings": entry.settings,
                "search": entry.search,
            }
            for entry in entries
        }
        tree_data = [chapter.model_dump(mode="json") for chapter in chapters]
        print(json.dumps({"chapters": tree_data, "open": open_leaves, "methods": details}, indent=1))
        return 0
    by_name = {entry.name: entry for entry in entries}
    third_parties = {entry.name for entry in entries if is_third_party(entry.path)}
    for chapter in chapters:
        root = Tree(plain(f"{f'{chapter.number}. ' if chapter.number else ''}{chapter.title}", "bold"))
        for leaf in chapter.leaves:
            title = f"{leaf.title}{'' if leaf.methods else ' (open)'}"
            branch = root.add(Text.assemble(plain(leaf.id), "  ", plain(title, "dim")))
            for method in leaf.methods:
                third_party = method.name in third_parties
                role = " (third-party)" if third_party else " (extension)" if method.extension else ""
                told = [plain(method.name, "green"), plain(f"{method.title}{role}")]
                if asked := asks(by_name[method.name]):
                    told.append(plain(asked, "dim"))
                branch.add(Text("  ").join(told))
        say(root)
    say(f"{len(entries)} methods; {len(open_leaves)} leaves are still open.")
    return 0


def asks(method: Entry) -> str:
    """What a method asks for that not every data set or grid has: tasks, several teachers, streams, no data."""
    tasks = sorted(method.tasks) if method.tasks != {"classification"} else []
    return ", ".join(tasks + sorted(method.needs - USUAL))
