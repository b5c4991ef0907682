"""The notebook runs from top to bottom on a store, and shows what it says of the committed one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from conftest import ROOT
from factories import make_record
from nbclient import NotebookClient

from kdbench.results.store import Store

NOTEBOOK = ROOT / "notebooks" / "results.ipynb"
FIGURE = "image/svg+xml"


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def run(store: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    monkeypatch.setenv("KDBENCH_RESULTS", str(store))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    return outputs(notebook)


def texts(found: list[Any]) -> list[str]:
    return [output.get("text") or output.data["text/plain"] for output in found]


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
    found = run(tmp_path, monkeypatch)
    assert sum(FIGURE in output.get("data", {}) for output in found) == 4
    said = texts(found)
    assert ": 6 records; Teacher: resnet56, 72.34 %" in "".join(said)
    last = said[-1].splitlines()
    # the means of 70.5, 70.75, 71 and of 69, 69.2, 69.4
    assert [line.split()[:4] for line in last[2:]] == [["kd", "70.75", "3", "1.55"], ["scratch", "69.20", "3", "NaN"]]
    # a made record has the first examples right, as many as its accuracy says
    assert [line.split() for line in said[-2].splitlines()[2:]] == [
        [str(seed), str(6900 + 20 * seed), str(150 + 5 * seed), "0", str(2950 - 25 * seed)] for seed in range(3)
    ]


def test_committed_outputs_are_those_of_the_committed_records(monkeypatch: pytest.MonkeyPatch) -> None:
    committed = outputs(nbformat.read(NOTEBOOK, as_version=4))
    assert texts(committed) == texts(run(ROOT / "results", monkeypatch)), "make notebook"
    figures = [output.data[FIGURE] for output in committed if FIGURE in output.get("data", {})]
    assert len(figures) == 4
    assert max(map(len, figures)) < 150_000  # of a table of a hundred methods
