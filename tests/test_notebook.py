"""The notebook runs from top to bottom on a store."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from factories import make_record
from nbclient import NotebookClient

from kdbench.results.store import Store

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "results.ipynb"


def test_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        Store(tmp_path).write(make_record("scratch", seed, 69.0 + seed / 5, info={"control": "scratch"}, teacher=None))
        Store(tmp_path).write(make_record("kd", seed, 70.5 + seed / 4, info={"control": "kd"}))
    monkeypatch.setenv("KDBENCH_RESULTS", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    last = notebook.cells[-1].outputs[-1]["data"]["text/plain"]
    # the means of 70.5, 70.75, 71 and of 69, 69.2, 69.4
    assert "70.75" in last
    assert "1.55" in last


def test_notebook_is_committed_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")
