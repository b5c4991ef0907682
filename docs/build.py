"""Build the documentation: python docs/build.py [OUT]; any warning is an error.

Its sources are assembled first, in the repository's own layout, so that links between its Markdown files stay what they
are: what is written by hand, what `kdbench report` wrote, and pages made from the code (`pages.py`).
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from nbconvert import MarkdownExporter
from pages import API, ROOT, Pages
from sphinx.cmd.build import main as sphinx

HERE = Path(__file__).parent
ASIDE = "README.md", "CONTRIBUTING.md", "CHANGELOG.md"


def main(out: Path) -> int:
    """Assemble and build below `out`; the exit code of Sphinx."""
    source, html = out / "source", out / "html"
    for folder in (source, html):  # of a build before this one
        shutil.rmtree(folder, ignore_errors=True)
    assemble(source)
    how = ["--fail-on-warning", "--keep-going", "--quiet", "-j", "auto"]
    return sphinx([*how, "-c", str(HERE), str(source), str(html)])


def assemble(source: Path) -> None:
    """Write all pages, and the files that they show or offer."""
    guides = sorted((HERE / "guides").glob("*.md"), key=_place)
    texts = dict(Pages(ROOT / "results"))
    texts |= {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in guides}
    texts |= {name: (ROOT / name).read_text(encoding="utf-8") for name in ASIDE}
    for path in (ROOT / "results").rglob("*.md"):
        texts[path.relative_to(ROOT).as_posix()] = path.read_text(encoding="utf-8")
    texts["results/tables/README.md"] += toctree(["*", "*/*"], ":glob:")
    texts["index.md"] = texts.pop("README.md") + navigation([path.stem for path in guides])
    for name, text in texts.items():
        _write(source / name, relinked(text, name).encode())
    linked = [path for path in (ROOT / "results" / "tables").rglob("*") if path.is_file() and path.suffix != ".md"]
    for path in [ROOT / "results" / "leaderboard.html", *linked, *(ROOT / "methods").rglob("*.py")]:
        _write(source / path.relative_to(ROOT), path.read_bytes())
    notebook, figures = MarkdownExporter().from_filename(str(ROOT / "notebooks" / "results.ipynb"))
    notebook = notebook.replace('border="1" class="dataframe"', 'class="docutils"')  # the theme's tables
    _write(source / "notebooks" / "results.md", notebook.encode())
    for name, data in figures["outputs"].items():
        _write(source / "notebooks" / name, data)


def navigation(guides: Iterable[str]) -> str:
    """What stands beside every page."""
    parts = {
        "Guides": [f"docs/guides/{name}" for name in guides],
        "The survey": ["survey", "methods"],
        "Results": [
            "results/tables/README",
            "Published numbers <reproductions>",
            "notebooks/results",
            "Records <results/README>",
            "Claims <results/claims/README>",
            "Speed <results/benchmarks>",
        ],
        "Command line and Python": [
            "commands",
            *(f"In Python: {title.lower()} <api/{title.lower()}>" for title in API),
        ],
        "Project": ["CONTRIBUTING", "CHANGELOG"],
    }
    return "".join(toctree(pages, f":caption: {title}") for title, pages in parts.items())


def toctree(pages: Iterable[str], option: str) -> str:
    """Pages below the one that this stands in."""
    return "\n".join(["", "```{toctree}", ":hidden:", option, "", *pages, "```", ""])


def relinked(text: str, name: str) -> str:
    """Links of a page to code and to the notebook lead to the pages about them."""
    up = "../" * name.count("/")
    pages = {
        module.replace(".", "/"): f"{up}api/{title.lower()}.md" for title, modules in API.items() for module in modules
    }
    text = text.replace("](../../README.md", "](../../index.md")
    text = re.sub(r"\]\((?:\.\./)*(kdbench/[\w/]+)\.py\)", lambda found: f"]({pages[found[1]]})", text)
    return re.sub(r"(\]\([\w./-]+)\.ipynb\)", r"\1.md)", text)


def _place(guide: Path) -> tuple[int, str]:
    """The order of the guides: the number in their first line."""
    found = re.match(r"<!-- (\d+) -->", guide.read_text(encoding="utf-8"))
    return int(found[1]) if found else 99, guide.name


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


if __name__ == "__main__":
    sys.exit(main(Path(*sys.argv[1:2]) if sys.argv[1:] else ROOT / "build" / "docs"))
