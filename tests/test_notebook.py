"""The notebook runs from top to bottom on a store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from factories import make_record
from nbclient import NotebookClient

from kdbench.results.store import Store

NOTEBOOK = Path(__file__).parent.parent / "notebooks" / "results.ipynb"


def outputs(store: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setenv("KDBENCH_RESULTS", str(store))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_notebook_never_mixes_teachers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two teachers of as many records each; what used none stands beside either."""
    for seed in range(3):
        Store(tmp_path).write(make_record("scratch", seed, 69.0 + seed / 5, info={"control": "scratch"}, teacher=None))
        Store(tmp_path).write(make_record("kd", seed, 70.5 + seed / 4, info={"control": "kd"}))
        worse: dict[str, Any] = {
            "cell": {"pair": "vgg8-resnet20", "teacher": "vgg8"},
            "config": {"pair": {"teacher": "vgg8"}},
            "teacher": {"name": "vgg8", "sha256": "b" * 64, "accuracy": 70.0},
        }
        Store(tmp_path).write(make_record("kd", seed, 60.5 + seed / 4, info={"control": "kd"}, **worse))
    found = outputs(tmp_path, monkeypatch)
    assert sum("image/png" in output.get("data", {}) for output in found) == 2
    printed = "".join(output.get("text", "") for output in found)
    assert "6 records; Teacher: resnet56, 72.34 %" in printed
    last = found[-1]["data"]["text/plain"].splitlines()
    # the means of 70.5, 70.75, 71 and of 69, 69.2, 69.4
    assert [line.split()[:4] for line in last[2:]] == [["kd", "70.75", "3", "1.55"], ["scratch", "69.20", "3", "NaN"]]


def test_notebook_is_committed_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")
