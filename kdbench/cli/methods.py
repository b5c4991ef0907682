"""``kdbench methods``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from kdbench.cli.console import say
from kdbench.errors import UserError


def add_to(commands: Any) -> None:
    methods = commands.add_parser("methods", help="the survey's tree, with the methods on each leaf")
    methods.add_argument("--json", action="store_true")
    methods.add_argument(
        "--config-dir", action="append", default=[], metavar="DIR", help="also the methods of this folder"
    )
    methods.set_defaults(command=list_methods)


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
