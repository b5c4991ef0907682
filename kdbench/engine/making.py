"""Make the record of a trained cell: its numbers, its cost, and where it was trained."""

from __future__ import annotations

import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import nn

import kdbench
from kdbench.compute.device import device_name
from kdbench.compute.flops import macs
from kdbench.data.datasets import Dataset
from kdbench.engine.cell import Cell
from kdbench.engine.fit import Fitted
from kdbench.measures import TOP1, Measure
from kdbench.method import Method
from kdbench.results import record as rec
from kdbench.source import network_hash


def make_record(
    cell: Cell,
    method: Method,
    dataset: Dataset,
    teachers: Sequence[rec.TeacherInfo],
    fitted: Fitted,
    *,
    path: str,
) -> rec.Record:
    """The record of a cell that was trained; diverged also where what is measured is not finite in the end.

    Args:
        path: how it was computed, see `kdbench.compute.route`.
    """
    spec, names = dataset.spec, (cell.student, *(teacher.name for teacher in teachers))
    deployed = method.deployed()
    measure, examples, reached = method.task.primary, fitted.examples, dict(fitted.values)
    if measure == TOP1 and len(examples):  # in float64, as whoever reads the examples will find it
        reached[measure.name] = 100 * examples.double().mean().item()
    reason = fitted.reason
    if reason is None and not math.isfinite(reached[measure.name]):
        reason = f"{measure.label} was not finite after the last epoch"
    finished = reason is None
    bits = examples.dtype == torch.bool
    return rec.Record(
        cell=cell.named(),
        config=dict(cell.config),
        method=cell.described(),
        dataset=rec.DatasetInfo(
            sha256=dataset.content_hash,
            n_train=spec.n_train,
            n_val=spec.n_val,
            n_test=spec.n_test,
            num_classes=spec.num_classes,
            classes=dataset.classes_hash,
        ),
        teacher=teachers[0] if teachers else None,
        status="finished" if finished else "diverged",
        reason=reason,
        metrics=metrics_of(fitted.curves, measure, reached, cumulative=method.task.cumulative) if finished else None,
        curves=fitted.curves,
        correct=rec.pack_correct(examples.numpy()) if finished and bits and len(examples) else None,
        cost=rec.Cost(
            images_seen=method.images_seen,
            student_forwards=method.forwards["student"],
            teacher_forwards=method.forwards["teacher"],
            train_seconds=round(fitted.seconds, 3),
            images_per_second=round(method.images_seen / max(fitted.seconds, 1e-9), 1),
            peak_memory_mb=round(fitted.peak_memory_mb, 1),
            student_params=parameters(deployed),
            student_macs=macs(deployed, spec.shape),
            extra_params=parameters(method) - parameters(deployed),
        ),
        environment=environment(method, path),
        created=datetime.now(timezone.utc).replace(microsecond=0),
        scores=rec.pack_scores(examples.numpy()) if finished and not bits and len(examples) else None,
        measure=measure,
        others=list(teachers[1:]),
        networks={name: code for name in names if (code := network_hash(name))},
    )


def metrics_of(
    curves: Mapping[str, Sequence[float | None]],
    measure: Measure,
    values: Mapping[str, float],
    *,
    cumulative: bool = False,
) -> rec.Metrics:
    """Last epoch (ranked), at the best epoch of the validation split, and best on the test set (never ranked).

    Args:
        curves: ``test/NAME``, and ``val/NAME`` where there is a validation split, one value per evaluation.
        values: of the last epoch by name.
        cumulative: the best epoch is none to select.
    """
    last, test = values[measure.name], curves[f"test/{measure.name}"]
    selected = oracle = None
    if not cumulative:
        oracle = max([last, *(value for _, value in _known(test))], key=measure.merit)
        val = _known(curves.get(f"val/{measure.name}", ()))
        if val:
            epoch, _ = max(val, key=lambda point: (measure.merit(point[1]), point[0]))  # the latest of the best
            selected = test[epoch]
    others = {name: value for name, value in values.items() if name != measure.name and math.isfinite(value)}
    return rec.Metrics(primary=measure.name, last=last, val_selected=selected, oracle=oracle, others=others)


def _known(curve: Sequence[float | None]) -> list[tuple[int, float]]:
    """The epochs in which something finite was measured."""
    return [(epoch, value) for epoch, value in enumerate(curve) if value is not None and math.isfinite(value)]


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def environment(method: Method, path: str) -> rec.Environment:
    return rec.Environment(
        kdbench=kdbench.__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        lightning=pl.__version__,
        device=device_name(method.device),
        precision=method.protocol.precision,
        threads=torch.get_num_threads(),
        platform=platform.platform(),
        path=path,
        commit=commit(),
    )


@lru_cache
def commit() -> str | None:
    """Commit of the checkout that this code runs from; None when it was installed, or where git is not."""
    root = Path(kdbench.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", os.fspath(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        )
    except OSError:  # no git
        return None
    return found.stdout.strip() or None
