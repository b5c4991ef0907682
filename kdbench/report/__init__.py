"""Reports: pure functions of a result store."""

from kdbench.report.tables import build_tables, load_records, render_terminal, report

__all__ = ["build_tables", "load_records", "render_terminal", "report"]
