"""The generated files of a store: their texts, writing them, and whether those on disk are still right."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdbench.errors import UserError
from kdbench.files import remove_leftovers, write_atomic, writing_to
from kdbench.report import bibliography, leaderboard
from kdbench.report.across import across_pairs
from kdbench.report.benchmarks import benchmarks
from kdbench.report.bibliography import cited
from kdbench.report.chapters import chapter_sheets, overview
from kdbench.report.claims import render_claims
from kdbench.report.csv import CSV_MARKER, comma_separated
from kdbench.report.filters import select
from kdbench.report.fractions import across_labels
from kdbench.report.index import index
from kdbench.report.latency import latency_sheet
from kdbench.report.latex import LATEX_MARKER, Width, latex
from kdbench.report.leaderboard import HTML_MARKER
from kdbench.report.leaderboard.payload import Described
from kdbench.report.markdown import MARKER, markdown
from kdbench.report.model import build_tables, load_records
from kdbench.report.reproductions import groups_of
from kdbench.report.sheet import ALL, COLUMNS, Sheet, chosen
from kdbench.report.terminal import render_terminal
from kdbench.results import figures, latency
from kdbench.results.claims import Claim, load_claims
from kdbench.results.labels import Labels, load_labels
from kdbench.results.record import Record

FOLDER = "tables"
LEADERBOARD = "leaderboard.html"
BENCHMARKS = "benchmarks.md"
SHEETS = ("md", "csv", "tex")
FORMATS = (*SHEETS, "html")
_MARKERS = {
    ".md": MARKER,
    ".csv": f"{CSV_MARKER},",
    ".tex": LATEX_MARKER,
    ".bib": LATEX_MARKER,
    ".html": HTML_MARKER,
}
"""How the files begin that `write` may replace and remove."""


@dataclass(frozen=True)
class Look:
    """How tables are shown.

    Attributes:
        columns: of measured rows, of `kdbench.report.sheet.COLUMNS`, in Markdown and LaTeX; None: all that there is
            room for. CSV holds everything.
        width: of a table in LaTeX.
    """

    columns: Sequence[str] | None = None
    width: Width = "column"

    def __post_init__(self) -> None:
        unknown = [column for column in self.columns or () if column not in COLUMNS]
        if unknown:
            raise UserError(f"there is no column '{unknown[0]}': use {', '.join(COLUMNS)}.")
        if self.columns is not None and not set(self.columns) - {"method"}:
            raise UserError(f"no column is asked for beside the method: use {', '.join(COLUMNS[1:])}.")

    def show(self, sheet: Sheet, suffix: str) -> str:
        """A sheet's text in one of `SHEETS`."""
        if suffix == "tex":
            return latex(sheet, self.width, self.columns)
        return comma_separated(sheet) if suffix == "csv" else markdown(chosen(sheet, self.columns or ALL))


def generate(
    store_root: str | Path,
    filters: Mapping[str, str] | None = None,
    formats: Sequence[str] = FORMATS,
    methods: Iterable[Described] = (),
    named: Sequence[str] = (),
    look: Look | None = None,
    records: Iterable[Record] | None = None,
) -> dict[str, str]:
    """The text of every table of a store, by path (with forward slashes) relative to the output folder.

    The same records, claims, figures and methods give the same texts. See `select` for `filters`; `methods` are those
    of the registry: the leaderboard shows them on the survey's tree, with or without records. `named` are the settings
    of controls that the others are to be compared with, as in ``kd:temperature=4``. `records` are the store's, where
    somebody has read them already.

    Raises:
        UserError: the store is empty or bad, a filter matches nothing, or a format is unknown.
    """
    records = select(load_records(store_root) if records is None else records, filters or {})
    times = [] if filters else latency.KEPT.load(Path(store_root) / latency.FILE)
    texts = render(records, formats, load_claims(store_root), methods, load_labels(store_root), named, look, times)
    measured = figures.load(Path(store_root) / figures.FILE)
    if measured and "md" in formats and not filters:
        texts[BENCHMARKS] = benchmarks(measured)
    return texts


def render(
    records: Iterable[Record],
    formats: Sequence[str] = FORMATS,
    claims: Iterable[Claim] = (),
    methods: Iterable[Described] = (),
    labels: Mapping[str, Labels] | None = None,
    named: Sequence[str] = (),
    look: Look | None = None,
    latencies: Sequence[latency.Latency] = (),
) -> dict[str, str]:
    """As `generate`, from records; their order plays no part. `labels` are those of test sets, by key.

    Raises:
        UserError: a format is unknown, or there is none; see also `build_tables`.
    """
    records, methods = list(records), list(methods)
    unknown = sorted(set(formats) - set(FORMATS))
    if unknown or not formats:
        raise UserError(f"There is no format '{' '.join(unknown)}': use {', '.join(FORMATS)}.")
    tables = build_tables(records, methods, labels, named)
    sheets = [sheet for table in tables for sheet in (overview(table), *chapter_sheets(table))]
    sheets += [*across_pairs(tables), *across_labels(tables)]
    shown, look = [suffix for suffix in formats if suffix in SHEETS], look or Look()
    texts = {f"{FOLDER}/{sheet.path}.{suffix}": look.show(sheet, suffix) for sheet in sheets for suffix in shown}
    others, claims = {}, list(claims)
    answers, groups = groups_of(claims, records) if claims else ([], [])
    if sheet := latency_sheet(latencies, records):
        for suffix in shown:
            texts[f"{FOLDER}/{sheet.path}.{suffix}"] = look.show(sheet, suffix)
            others[f"{sheet.path}.{suffix}"] = f"{sheet.title} of the students, with parameters and MACs ({suffix})"
    if "html" in formats:
        texts[LEADERBOARD] = leaderboard.render(tables, methods, answers)
        others[f"../{LEADERBOARD}"] = "Leaderboard, to search, sort and plot"
    if "tex" in formats:
        works = cited(row.paper for table in tables for row in table.rows)
        texts[f"{FOLDER}/{bibliography.FILE}"] = f"{LATEX_MARKER}\n\n{works}"
        others[bibliography.FILE] = "The works that the tables in LaTeX cite"
    for name, text in render_claims(answers, groups).items() if claims else ():
        suffix = name.rpartition(".")[2]
        if suffix in formats:
            texts[f"{FOLDER}/{name}"] = text
            others[name] = f"Published numbers beside ours ({suffix})"
    if "md" in formats:
        texts[f"{FOLDER}/README.md"] = index(tables, sheets, shown, others)
    return dict(sorted(texts.items()))


def report(
    store_root: str | Path,
    out: str | Path,
    filters: Mapping[str, str] | None = None,
    formats: Sequence[str] = FORMATS,
    methods: Iterable[Described] = (),
    named: Sequence[str] = (),
    look: Look | None = None,
) -> list[Path]:
    """`generate` and `write`; returns the paths, sorted.

    Raises:
        UserError: see there; also where tables of a part of the store, or of other columns, would replace the store's.
    """
    if Path(out).resolve() == Path(store_root).resolve():
        if filters:
            raise UserError(
                "Tables of a part of the store would replace those of the whole: name another folder (--out)."
            )
        if look not in (None, Look()):
            raise UserError(
                "tables of other columns, or another width, would replace the store's own: name another folder (--out)."
            )
    return write(out, generate(store_root, filters, formats, methods, named, look))


def write(out: str | Path, texts: Mapping[str, str]) -> list[Path]:
    """Write generated texts under `out` and return the paths, sorted.

    Generated tables that are not among `texts`, in a format that is, are removed. Files that were not generated are
    neither changed nor removed.

    Raises:
        UserError: the folder cannot be written, or a file of the user's is in the way.
    """
    root = Path(out)
    with writing_to(root):
        paths = {root / name: text for name, text in texts.items()}
        foreign = [path for path in sorted(paths) if path.is_file() and not _generated(path)]
        if foreign:
            raise UserError(f"{foreign[0]} was not written by kdbench: move it away, its name is needed for a table.")
        for path in _extra(root, texts):
            path.unlink()
        for path, text in paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.is_file() or path.read_bytes() != text.encode():
                write_atomic(path, text, overwrite=True)
        for folder in sorted({path.parent for path in paths}):
            remove_leftovers(folder)
        _remove_empty(root / FOLDER)
    return sorted(paths)


def check(out: str | Path, texts: Mapping[str, str]) -> list[str]:
    """What `write` would change under `out`: ``missing: PATH``, ``stale: PATH``, ``extra: PATH``, sorted by path.

    Raises:
        UserError: a file cannot be read.
    """
    root = Path(out)
    found = {}
    try:
        for name, text in texts.items():
            path = root / name
            if not path.is_file():
                found[path] = "missing"
            elif path.read_bytes() != text.encode():
                found[path] = "stale"
        found |= dict.fromkeys(_extra(root, texts), "extra")
    except OSError as error:
        raise UserError(f"Cannot read {error.filename} ({error.strerror}): name a folder that you may read.") from error
    return [f"{found[path]}: {path}" for path in sorted(found)]


def _extra(root: Path, texts: Mapping[str, str]) -> list[Path]:
    """Generated tables, in the formats of `texts`, that are not among them."""
    suffixes = {Path(name).suffix for name in texts} & _MARKERS.keys()
    wanted = {root / name for name in texts}
    files = sorted(path for path in (root / FOLDER).rglob("*") if path.suffix in suffixes and path.is_file())
    return [path for path in files if path not in wanted and _generated(path)]


def _generated(path: Path) -> bool:
    marker = _MARKERS.get(path.suffix)
    if marker is None:
        return True
    with path.open("rb") as file:
        return file.readline(200).decode(errors="replace").startswith(marker)


def _remove_empty(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


__all__ = [
    "CSV_MARKER",
    "FORMATS",
    "MARKER",
    "Look",
    "build_tables",
    "check",
    "generate",
    "load_records",
    "render",
    "render_terminal",
    "report",
    "write",
]
