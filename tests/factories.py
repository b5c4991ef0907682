"""Records and cards of teachers for tests, valid in every respect unless a test overrides a part."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from functools import cache
from typing import Any

import numpy as np
import torch

from kdbench.measures import Measure
from kdbench.registry import Entry, methods
from kdbench.report import render
from kdbench.results.record import Record, cell_id, pack_correct, pack_scores
from kdbench.teaching.teachers import Card

N_TEST = 10_000
"""Test examples of a made record, so that an accuracy may have two decimals."""


HEADS = (
    "n", "top-1 last", "Δ scratch", "Δ KD", "gap recovered %", "student fwd/img", "teacher fwd/img", "extra params",
    "diverged",
)  # fmt: skip
"""Of a table of top-1 with classes of one size, behind the method."""


def make_record(method: str = "kd", seed: int = 0, top1: float = 70.0, **overrides: Any) -> Record:
    """A finished record of `method` with `top1` percent (two decimals) on 10000 test examples.

    A mapping in `overrides` updates the part of the record of that name (``cost={"train_seconds": 60.0}``), also where
    it is nested (``config={"method": {"temperature": 8.0}}``); anything else replaces it (``teacher=None``). The
    record's part ``method`` goes by ``info``. The cell's id follows the config; ``status="diverged"`` drops metrics and
    correctness.
    """
    right = round(top1 / 100 * N_TEST)
    parts: dict[str, Any] = {
        "cell": {
            "method": method,
            "pair": "resnet56-resnet20",
            "student": "resnet20",
            "teacher": "resnet56",
            "dataset": "cifar100",
            "protocol": "crd240",
            "seed": seed,
        },
        "config": {
            "method": {"_target_": f"methods.logits.{method}.{method.upper()}", "temperature": 4.0},
            "pair": {"student": "resnet20", "teacher": "resnet56"},
            "dataset": {"name": "cifar100"},
            "protocol": {"name": "crd240", "epochs": 240, "batch_size": 64},
            "seed": seed,
        },
        "method": {
            "cls": f"methods.logits.{method}.{method.upper()}",
            "leaf": "logits/softened-labels",
            "paper": "hinton2015distilling",
            "extension": False,
            "control": method if method in ("scratch", "smoothing", "kd") else None,
            "needs": ["labels", "teacher"],
        },
        "dataset": {"sha256": "d" * 64, "n_train": 50_000, "n_val": 0, "n_test": N_TEST, "num_classes": 100},
        "teacher": {"name": "resnet56", "sha256": "a" * 64, "accuracy": 72.34},
        "status": "finished",
        "metrics": {"last": 100 * right / N_TEST, "oracle": min(100.0, 100 * right / N_TEST + 0.3)},
        "curves": {"ce": [2.0, 1.0], "kd": [4.0, 3.0], "test_top1": [50.0, 100 * right / N_TEST]},
        "correct": pack_correct(np.arange(N_TEST) < right).model_dump(),
        "cost": {
            "images_seen": 100_000,
            "student_forwards": 100_000,
            "teacher_forwards": 100_000,
            "train_seconds": 120.0,
            "images_per_second": 800.0,
            "peak_memory_mb": 512.0,
            "student_params": 278_324,
            "student_macs": 41_000_000,
            "extra_params": 0,
        },
        "environment": {
            "kdbench": "0.1.0",
            "python": "3.11.7",
            "torch": "2.6.0",
            "lightning": "2.5.0",
            "device": "cpu",
            "precision": "32-true",
            "threads": 1,
            "platform": "linux",
            "path": "plain",
            "commit": None,
        },
        "created": datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc),
    }
    if overrides.get("status") == "diverged":
        parts |= {"metrics": None, "correct": None, "reason": "the loss term 'kd' was not finite in epoch 2"}
    if "info" in overrides:
        overrides["method"] = overrides.pop("info")
    _update(parts, overrides)
    parts["cell"].setdefault("id", cell_id(parts["config"]))
    return Record.model_validate(parts)


def make_measured(
    method: str, seed: int, value: float, measure: Measure, scores: Sequence[float] | None = None, **overrides: Any
) -> Record:
    """As `make_record`, of another measure, whose examples have `scores`, or nothing."""
    parts = {
        "measure": asdict(measure),
        "metrics": {"primary": measure.name, "last": value, "oracle": value},
        "correct": None,
        "scores": None if scores is None else pack_scores(scores).model_dump(),
        "curves": {f"test/{measure.name}": [value]},
    }
    if overrides.get("status") == "diverged":
        parts |= {"metrics": None, "scores": None}
    _update(parts, overrides)
    return make_record(method, seed, **parts)


def make_card(recipe: dict[str, Any], **given: Any) -> Card:
    """The card of a teacher, with something in each field that has no default."""
    facts = {"sha256": "a" * 64, "accuracy": 90.0, "dataset_sha256": "b" * 64, "curve": [], "device": "cpu"}
    return Card(recipe=recipe, **{**facts, "torch": torch.__version__, **given})


@cache
def known() -> list[Entry]:
    """The methods that ship, read once."""
    return methods()


def rendered(*args: Any, **kwargs: Any) -> dict[str, str]:
    """As `kdbench.report.render`, by names without the keys that tell tables apart, where readable ones suffice."""
    texts = render(*args, **kwargs)
    names = {re.sub(r"-[0-9a-f]{8}(?=[./])", "", name): text for name, text in texts.items()}
    assert len(names) == len(texts)
    return names


def _update(parts: dict[str, Any], overrides: dict[str, Any]) -> None:
    for name, value in overrides.items():
        if isinstance(value, dict) and isinstance(parts.get(name), dict):
            _update(parts[name], value)
        else:
            parts[name] = value
