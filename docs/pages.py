"""Pages that say what the code says: the survey's tree, methods, commands, modules. None of them is committed."""

from __future__ import annotations

import argparse
import html
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from unicodedata import normalize

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from kdbench.cli import main
from kdbench.cli.program import parser
from kdbench.docs import spans
from kdbench.registry import Entry, methods
from kdbench.report import bibliography, build_tables, load_records
from kdbench.report.gains import best_gains
from kdbench.report.markdown import escape
from kdbench.report.measured import measured, measured_cells
from kdbench.report.model import Row, Table
from kdbench.report.reproductions import HEADER, RULE, groups_of
from kdbench.report.settings import Role, role_of
from kdbench.report.sheet import Cell
from kdbench.reproductions import files
from kdbench.results.claims import load_claims
from kdbench.results.labels import load_labels
from kdbench.results.record import MethodInfo
from kdbench.taxonomy import Leaf, load_taxonomy

ROOT = Path(__file__).parent.parent
API = {
    "Methods": ("kdbench.method", "kdbench.losses", "kdbench.taps", "kdbench.plan", "kdbench.snapshot"),
    "Problems": ("kdbench.tasks.base", "kdbench.data.scenarios", "kdbench.data.datasets", "kdbench.data.batch"),
    "Results": ("kdbench.results", "kdbench.results.record", "kdbench.results.store", "kdbench.results.labels"),
    "Reports": (
        "kdbench.report.model",
        "kdbench.report.tables",
        "kdbench.report.pairwise",
        "kdbench.results.stats",
        "kdbench.results.verdict",
    ),
}
"""Modules that people use from Python, by what for."""


@dataclass(frozen=True)
class Setting:
    """A default of a method's YAML, and the comment that says where it is from."""

    name: str
    value: str
    source: str


@dataclass(frozen=True)
class Standing:
    """A row of a table that a method has."""

    table: Table
    row: Row

    @cached_property
    def cells(self) -> dict[str, Cell]:
        return measured_cells(self.table, self.row)

    @cached_property
    def heads(self) -> dict[str, str]:
        return measured(self.table)

    @property
    def versus(self) -> str:
        return self.heads["delta_kd"]

    @property
    def delta(self) -> str:
        return self.cells["delta_kd"].text


class Pages:
    """The generated pages, from the methods that ship and a store of records."""

    def __init__(self, store: Path) -> None:
        self.entries = methods()
        records = load_records(store)
        self.tables = build_tables(records, self.entries, load_labels(store))
        self.groups = groups_of(load_claims(store), records)[1]
        self.templates = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            autoescape=False,  # it is Markdown
        )
        self.templates.filters |= {"md": escape, "prose": prose, "formula": formula}
        self.templates.globals.update(best_of=self.best, work=work)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Path, without a leading slash, and text of each page."""
        taxonomy = load_taxonomy()
        on = {leaf.id: [entry for entry in self.entries if entry.leaf == leaf.id] for leaf in taxonomy.leaves}
        yield (
            "survey.md",
            self._page(
                "survey",
                chapters=taxonomy.chapters,
                on=on,
                entries=self.entries,
                filled=sum(map(bool, on.values())),
                total=len(on),
            ),
        )
        for leaf in taxonomy.leaves:
            yield f"survey/{leaf.id}.md", self._leaf(leaf, on[leaf.id])
        yield "methods.md", self._page("methods", entries=self.entries)
        for entry in self.entries:
            yield f"methods/{entry.name}.md", self._method(entry)
        yield "reproductions.md", self._page("reproductions", groups=self.groups, rule=RULE)
        for group in self.groups:
            r = group.reproduction
            text = files()[r.name].read_text(encoding="utf-8").strip()
            yield (
                f"reproductions/{r.name}.md",
                self._page("reproduction", group=group, r=r, heads=HEADER, text=text),
            )
        yield "commands.md", self._page("commands", commands=list(commands()))
        for title, modules in API.items():
            yield f"api/{title.lower()}.md", api(title, modules)

    def best(self, name: str) -> Standing | None:
        """Where a method with its shipped settings has the largest gain over the control that it is compared with."""
        table, row = best_gains(self.tables).get(name, (None, None))
        return Standing(table, row) if table and row and row.delta_kd else None

    def _standings(self, name: str) -> list[Standing]:
        return [Standing(table, row) for table in self.tables for row in table.rows if row.method == name]

    def _leaf(self, leaf: Leaf, entries: Sequence[Entry]) -> str:
        def shown(table: Table, leaf: Leaf) -> list[str]:
            return [row.label for row in table.rows if row.leaf == leaf.id]

        return self._page(
            "leaf",
            leaf=leaf,
            methods=entries,
            table=load_taxonomy().table_of(leaf.id),
            tables=[table for table in self.tables if shown(table, leaf)],
            shown=shown,
            up="../" * (leaf.id.count("/") + 1),
        )

    def _method(self, entry: Entry) -> str:
        table = load_taxonomy().table_of(entry.leaf)
        return self._page(
            "method",
            e=entry,
            docs=entry.docs,
            leaf=load_taxonomy().find(entry.leaf),
            role=_role(entry),
            module=f"{entry.path.rpartition('.')[0].replace('.', '/')}.py",
            columns=table.columns if table else {},
            settings=settings(entry.file.read_text(encoding="utf-8")),
            standings=self._standings(entry.name),
            best=self.best(entry.name),
            depth="../",
        )

    def _page(self, template: str, **values: object) -> str:
        return self.templates.get_template(f"{template}.md.j2").render(**values)


def prose(text: str) -> str:
    """A sentence of a docstring as Markdown."""
    marks = {"text": "{}", "code": "`{}`", "sub": "<sub>{}</sub>"}
    return "".join(marks[kind].format(piece if kind == "code" else escape(piece)) for kind, piece in spans(text))


def formula(line: str) -> str:
    """A line of an equation as HTML."""
    marks = {"text": "{}", "code": "<code>{}</code>", "sub": "<sub>{}</sub>"}
    return "".join(marks[kind].format(html.escape(piece)) for kind, piece in spans(line))


def work(key: str) -> str:
    """A work of the bibliography as Markdown: authors, title, year, with a link where it gives one."""
    entry = bibliography.entries().get(key)
    if entry is None:
        return f"`{key}`"
    plain = re.sub(r"\{\\(['`^\"~cu]) ?(\\i|\w)\}", _accented, entry)
    fields = {name: re.sub(r"[{}]", "", value) for name, value in re.findall(r"^  (\w+) = \{(.*)\},?$", plain, re.M)}
    names = [name.partition(",")[0] for name in fields["author"].split(" and ")]
    authors = names[0] if len(names) == 1 else " and ".join(names) if len(names) == 2 else f"{names[0]} et al."
    title = escape(fields["title"])
    address = f"arxiv.org/abs/{fields['eprint']}" if "eprint" in fields else f"doi.org/{fields.get('doi', '')}"
    linked = f"[{title}](https://{address})" if fields.keys() & {"eprint", "doi"} else title
    return f"{escape(authors)}: {linked}, {fields['year']}"


def _accented(found: re.Match[str]) -> str:
    """What TeX writes as an accent and a letter."""
    mark = dict(zip("'`^\"~cu", "\u0301\u0300\u0302\u0308\u0303\u0327\u0306", strict=True))[found[1]]
    return normalize("NFC", found[2].removeprefix("\\") + mark)


def settings(text: str) -> list[Setting]:
    """The settings in a method's YAML, in its order, each with the comment behind it; `search` is left out."""

    def walk(node: yaml.MappingNode, above: str) -> Iterator[Setting]:
        for key, value in node.value:
            name = f"{above}{key.value}"
            if isinstance(value, yaml.MappingNode) and not value.flow_style:
                yield from walk(value, f"{name}.")
            elif name != "_target_":
                behind = text[value.end_mark.index :].partition("\n")[0]
                shown = text[value.start_mark.index : value.end_mark.index].strip()
                default = re.sub(r"\$\{tuned:([^}]*)\}", r"\1", shown)  # which a pair may replace
                yield Setting(name, default, behind.partition("#")[2].strip())

    root = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(root, yaml.MappingNode)
    return [each for each in walk(root, "") if not each.name.startswith("search.")]


def commands() -> Iterator[tuple[str, str]]:
    """Each command, and its help, as in a terminal of 100 columns."""
    for words in [[], *_words(parser())]:
        said = StringIO()
        os.environ["COLUMNS"] = "100"
        with redirect_stdout(said):
            main([*words, "--help"])
        yield " ".join(["kdbench", *words]), said.getvalue().replace(str(Path.home()), "~").strip()


def _words(top: argparse.ArgumentParser) -> Iterator[list[str]]:
    for action in top._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                inner = [[name, *words] for words in _words(below)]
                yield from inner or [[name]]


def api(title: str, modules: Sequence[str]) -> str:
    """The page of some modules."""
    lines = [f"# {title}", ""]
    for name in modules:
        lines += [f"## {name}", "", "```{eval-rst}", f".. automodule:: {name}", "   :ignore-module-all:", "```", ""]
    return "\n".join(lines)


def _role(entry: Entry) -> Role:
    cls = entry.cls
    return role_of(
        MethodInfo(
            cls=entry.path,
            leaf=cls.leaf,
            paper=entry.paper,
            extension=cls.extension,
            control=cls.control,
            needs=sorted(cls.needs),
        )
    )
