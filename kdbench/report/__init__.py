"""Reports: pure functions of a result store."""

from kdbench.report.filters import FILTERS, select
from kdbench.report.model import build_tables, load_records
from kdbench.report.pairwise import compare
from kdbench.report.tables import FORMATS, Look, check, generate, render, report, write
from kdbench.report.terminal import render_terminal

__all__ = [
    "FILTERS",
    "FORMATS",
    "Look",
    "build_tables",
    "check",
    "compare",
    "generate",
    "load_records",
    "render",
    "render_terminal",
    "report",
    "select",
    "write",
]
