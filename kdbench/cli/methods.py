"""``kdbench methods``."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.cli.completion import METHODS
from kdbench.cli.console import plain, say
from kdbench.cli.helps import described
from kdbench.docs import first_paragraph, named
from kdbench.errors import UserError, nearest

if TYPE_CHECKING:
    from rich.text import Text

    from kdbench.registry import Entry
    from kdbench.taxonomy import ChapterEntry, LeafEntry

USUAL = frozenset({"teacher", "labels", "peers", "again"})
"""What a method may ask of any data set and grid."""


def add_to(commands: Any) -> None:
    methods = commands.add_parser(
        "methods",
        help="the survey's tree, with the methods on each leaf; or all about some of them",
        description="The survey's tree: its chapters and leaves, the methods on each, what they ask for, and why a "
        "leaf is open. With WHAT all about a leaf or method: paper, idea, equation, files, and its best result.",
    )
    what = methods.add_argument(
        "what",
        nargs="?",
        metavar="WHAT",
        help="a section of the survey (4.2; 4 for a chapter), a leaf's id or a method",
    )
    what.completer = METHODS
    methods.add_argument("--json", action="store_true", help="for programs: chapters, open leaves, facts of methods")
    methods.add_argument(
        "--config-dir", action="append", default=[], metavar="DIR", help="also the methods of this folder"
    )
    methods.add_argument(
        "--results",
        type=Path,
        default=Path("results"),
        metavar="DIR",
        help="where best results are looked for (default results)",
    )
    described(
        methods,
        {
            "kdbench methods": "the whole tree",
            "kdbench methods 4.2": "the leaf of section 4.2",
            "kdbench methods dkd": "one method",
            "kdbench methods learning/incremental": "a leaf by its id",
            "kdbench methods --json | jq '.methods | keys'": "names, for a program",
        },
    )
    methods.set_defaults(command=list_methods)


def list_methods(options: argparse.Namespace) -> int:
    from kdbench.registry import methods
    from kdbench.taxonomy import tree

    entries = {entry.name: entry for entry in methods(options.config_dir)}
    chapters = tree(entries.values())
    if options.what:
        chosen = _chosen(options.what, chapters, entries)
        if options.json:
            names = {method.name for _, leaf in chosen for method in leaf.methods}
            print(json.dumps({"methods": {name: _facts(entries[name]) for name in sorted(names)}}, indent=1))
        else:
            _show(chosen, entries, options.results)
        return 0
    open_leaves = [leaf.id for chapter in chapters for leaf in chapter.leaves if not leaf.methods]
    if options.json:
        details = {name: _facts(entry) for name, entry in entries.items()}
        tree_data = [chapter.model_dump(mode="json") for chapter in chapters]
        print(json.dumps({"chapters": tree_data, "open": open_leaves, "methods": details}, indent=1))
        return 0
    for chapter in chapters:
        say(_branches(chapter, entries))
    say(f"{len(entries)} methods; {len(open_leaves)} leaves are still open. kdbench methods 4.2 says all about a leaf.")
    return 0


def _facts(entry: Entry) -> dict[str, Any]:
    """A method for programs."""
    work = entry.docs.work
    return {
        "class": entry.path,
        "leaf": entry.leaf,
        "needs": sorted(entry.needs),
        "tasks": sorted(entry.tasks),
        "settings": entry.settings,
        "search": entry.search,
        "title": entry.title,
        "paper": entry.paper,
        "work": asdict(work) if work else None,
        "idea": entry.docs.idea,
        "equations": list(entry.docs.equations),
        "losses": named(entry.docs, entry.beside),
        "survey": dict(entry.survey),
        "file": str(entry.code),
        "config": str(entry.file),
    }


# ---- the tree -----------------------------------------------------------------------------------------------------


def _branches(chapter: ChapterEntry, entries: Mapping[str, Entry]) -> Any:
    from rich.text import Text
    from rich.tree import Tree

    root = Tree(plain(f"{f'{chapter.number}. ' if chapter.number else ''}{chapter.title}", "bold"))
    for leaf in chapter.leaves:
        branch = root.add(Text.assemble(plain(leaf.heading), "  ", plain(leaf.id, "dim")))
        if not leaf.methods:
            branch.add(plain(f"open: {leaf.open}" if leaf.open else "open", "dim"))
        for method in leaf.methods:
            branch.add(_line(entries[method.name], [entries[other.name] for other in leaf.methods]))
    return root


def _line(entry: Entry, beside: Sequence[Entry]) -> Text:
    """A method in one line: its name, title, what the paper calls it, and what it asks for."""
    from rich.text import Text

    told = [plain(entry.name, "green"), plain(_titled(entry, beside))]
    work = entry.docs.work
    called = work.title if work else first_paragraph(entry.about).partition(" (")[0].rstrip(".")
    if called and called.casefold() != entry.title.casefold():
        told.append(plain(called, "dim"))
    if asked := asks(entry):
        told.append(plain(f"[{asked}]", "dim"))
    return Text("  ").join(told)


def _titled(entry: Entry, beside: Sequence[Entry] = ()) -> str:
    """Its title and role; where others have the same title, the settings that tell them apart."""
    from kdbench.shipped import is_third_party

    roles = ["third-party"] if is_third_party(entry.path) else ["extension"] if entry.extension else []
    same = [other for other in beside if other.title == entry.title]
    if len(same) > 1:
        settings = [other.settings for other in same]
        roles += [
            f"{key}={value}"
            for key, value in entry.settings.items()
            if isinstance(value, (str, int, float)) and any(other.get(key) != value for other in settings)
        ]
    return f"{entry.title} ({', '.join(roles)})" if roles else entry.title


def asks(method: Entry) -> str:
    """What a method asks for that not every data set or grid has: tasks, several teachers, streams, no data."""
    tasks = sorted(method.tasks) if method.tasks != {"classification"} else []
    return ", ".join(tasks + sorted(method.needs - USUAL))


# ---- all about some -----------------------------------------------------------------------------------------------


def _chosen(
    what: str, chapters: Sequence[ChapterEntry], entries: Mapping[str, Entry]
) -> list[tuple[ChapterEntry, LeafEntry]]:
    """The leaves of a section, chapter or id, or the one of a method, with it alone.

    Raises:
        UserError: it is none of these.
    """
    leaves = [(chapter, leaf) for chapter in chapters for leaf in chapter.leaves]
    if what in entries:
        return [
            (chapter, leaf.model_copy(update={"methods": (method,)}))
            for chapter, leaf in leaves
            for method in leaf.methods
            if method.name == what
        ]
    section = what.rstrip(".")
    found = [
        (chapter, leaf)
        for chapter, leaf in leaves
        if leaf.id == what
        or leaf.id.startswith(f"{what.rstrip('/')}/")
        or (leaf.section is not None and f"{leaf.section}.".startswith(f"{section}."))
        or str(chapter.number) == section
    ]
    if not found:
        known = [*entries, *(leaf.id for _, leaf in leaves), *(leaf.section for _, leaf in leaves if leaf.section)]
        raise UserError(
            f"there is no method, leaf or section '{what}': {nearest(what, known, 'kdbench methods shows all.')}"
        )
    return found


def _show(chosen: Sequence[tuple[ChapterEntry, LeafEntry]], entries: Mapping[str, Entry], results: Path) -> None:
    from rich.padding import Padding
    from rich.table import Table

    from kdbench.taxonomy import load_taxonomy

    whole = len(chosen) > 1 or len(chosen[0][1].methods) != 1
    best = _best(results, entries)
    here = {entry.paper for entry in entries.values()}
    for _, leaf in chosen:
        say(plain(f"{leaf.heading}  {leaf.id}", "bold"))
        if whole:
            say(Padding(plain(leaf.question, "dim"), (0, 0, 0, 2)))
        table = load_taxonomy().table_of(leaf.id)
        columns = dict(table.columns) if table else {}
        for method in leaf.methods:
            entry = entries[method.name]
            say("")
            say(plain(f"{entry.name}: {_titled(entry, list(entries.values()))}", "green"))
            grid = Table.grid(padding=(0, 2, 0, 0))
            grid.add_column(min_width=9, no_wrap=True, style="dim")
            grid.add_column()
            for name, text in _rows(entry, columns, best.get(entry.name)):
                grid.add_row(name, text)
            say(Padding(grid, (0, 0, 0, 2)))
        if not leaf.methods:
            say(Padding(plain(f"open: {leaf.open or 'no method stands here yet.'}"), (1, 0, 0, 2)))
        if whole and (absent := [key for key in leaf.cited if key not in here]):
            unread = [key for key in absent if key not in leaf.absent]
            told = [", ".join(unread)] if unread else []
            told += [f"{', '.join(keys)} ({why})" for why, keys in _by_reason(leaf.absent).items()]
            say(Padding(plain(f"cited by the survey, not here: {'; '.join(told)}", "dim"), (1, 0, 0, 2)))
        say("")


def _by_reason(absent: Mapping[str, str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key, why in absent.items():
        found.setdefault(why, []).append(key)
    return found


def _rows(entry: Entry, columns: Mapping[str, str], best: str | None) -> Iterator[tuple[str, Text]]:
    from rich.text import Text

    docs = entry.docs
    if work := docs.work:
        where = "".join(f", {each}" for each in (work.venue, work.url) if each)
        yield "paper", plain(f"{work.title} ({work.authors}{where}){f' [{entry.paper}]' if entry.paper else ''}")
    elif entry.about:
        yield "what", plain(first_paragraph(entry.about))
    if docs.idea:
        yield "idea", plain(docs.idea.replace("``", ""))
    if docs.equations:
        yield "equation", Text("\n").join(plain(line.replace("``", "")) for line in docs.equations)
    if losses := named(docs, entry.beside):
        yield "with", Text("\n").join(plain(f"{name}: {said}".replace("``", "")) for name, said in losses.items())
    stated = [f"{heading}: {entry.survey[name]}" for name, heading in columns.items() if name in entry.survey]
    if stated:
        yield "survey", Text("\n").join(map(plain, stated))
    yield "file", plain(_near(entry.code))
    yield "config", plain(_near(entry.file))
    yield "tasks", plain(", ".join(sorted(entry.tasks)))
    yield "needs", plain(", ".join(sorted(entry.needs)) or "nothing")
    yield "best Δ KD", plain(best or "no result here")


def _near(path: Path) -> str:
    """A path as it is written from where the user stands, if it lies below."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _best(results: Path, entries: Mapping[str, Entry]) -> dict[str, str]:
    """For each method the table in which it gains most over KD, and how much; nothing where there is no store."""
    from kdbench.report.gains import best_gains, said
    from kdbench.report.model import build_tables
    from kdbench.results.labels import load_labels
    from kdbench.results.store import Store

    if not os.path.isdir(results):
        return {}
    tables = build_tables(Store(results).load(), list(entries.values()), load_labels(results))
    return {name: said(table, row) for name, (table, row) in best_gains(tables).items()}
