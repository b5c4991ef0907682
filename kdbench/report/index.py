"""The list of all generated tables, and the survey's tree with what the store holds of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from kdbench.measures import TOP1
from kdbench.report.markdown import MARKER, escape, line
from kdbench.report.model import Table
from kdbench.report.sheet import Sheet
from kdbench.taxonomy import load_taxonomy


def index(
    tables: Sequence[Table], sheets: Sequence[Sheet], formats: Sequence[str], others: Mapping[str, str] | None = None
) -> str:
    """Markdown with links to the files of `sheets` in all `formats`, and to `others` (path -> what it is)."""
    chapters: dict[str, list[Sheet]] = defaultdict(list)
    for sheet in sheets:
        folder, _, name = sheet.path.rpartition("/")
        chapters[folder if name else ""].append(sheet)
    lines = [MARKER, "# Tables", "", "Numbers of different tables are not comparable.", ""]
    lines += [f"- [{text}]({path})" for path, text in (others or {}).items()] + [""] * bool(others)
    several = any(table.measure != TOP1 for table in tables)
    lines += [line(["Table", *["Measure"] * several, "Rows", "Teacher", "By chapter"])]
    lines += ["|---|" + "---|" * several + "---:|---|---|"]
    for table in tables:
        teacher = table.header[0].removeprefix("Teacher: ")
        parts = "; ".join(_links(sheet.path.rpartition("/")[2], sheet.path, formats) for sheet in chapters[table.name])
        measure = [escape(table.measure.quantity)] * several
        link = _links(table.title, table.name, formats)
        lines.append(line([link, *measure, str(len(table.rows)), escape(teacher), parts]))
    for folder, heading in (("across-pairs", "Across pairs"), ("across-labels", "With and without labels")):
        if across := chapters[folder]:
            lines += ["", f"## {heading}", "", *(f"- {_links(sheet.title, sheet.path, formats)}" for sheet in across)]
    return "\n".join([*lines, "", *_coverage(tables)]) + "\n"


def _links(text: str, path: str, formats: Sequence[str]) -> str:
    others = "".join(f" ([{suffix.upper()}]({path}.{suffix}))" for suffix in formats if suffix != "md")
    return f"[{escape(text)}]({path}.md){others}"


def _coverage(tables: Sequence[Table]) -> list[str]:
    """Every leaf of the survey: the methods with records, or why there is none."""
    methods: dict[str, set[str]] = defaultdict(set)
    for table in tables:
        for row in table.rows:
            methods[row.leaf].add(row.method)
    lines = ["## The survey's tree", "", line(["Section", "Methods with records"]), "|---|---|"]
    for chapter in load_taxonomy().chapters:
        lines.append(line([f"**{escape(f'{chapter.number or str()} {chapter.title}'.strip())}**", ""]))
        for leaf in chapter.leaves:
            found = escape(", ".join(sorted(methods.pop(leaf.id, set()))))
            lines.append(
                line([escape(leaf.heading), found or (f"open: {escape(leaf.open)}" if leaf.open else "none yet")])
            )
    for leaf_id in sorted(methods):
        lines.append(line([f"third-party: {escape(leaf_id)}", escape(", ".join(sorted(methods[leaf_id])))]))
    return lines
