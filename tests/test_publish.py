"""Publishing to wandb, offline."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdbench.report.publish import publish


def test_offline_run_holds_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    texts = {"tables/a.csv": "method,top1,p\nscratch,69.5,\nkd,70.25,0.04\n", "tables/a.md": "| ± |\n"}
    run = Path(publish(texts, "kdbench-test", tmp_path))
    tables = list(run.rglob("*.table.json"))
    assert len(tables) == 1
    table = json.loads(tables[0].read_text())
    assert table["columns"] == ["method", "top1", "p"]
    assert table["data"] == [["scratch", 69.5, None], ["kd", 70.25, 0.04]]
    assert any(path.suffix == ".wandb" for path in tmp_path.rglob("*.wandb"))
    staged = {path.read_text() for path in (tmp_path / "data").rglob("*") if path.is_file()}
    assert set(texts.values()) <= staged
