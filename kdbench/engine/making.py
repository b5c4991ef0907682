"""Make the record of a trained cell: its numbers, its cost, and where it was trained."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import kdbench
from kdbench.compute.device import device_name
from kdbench.data.batch import DataSpec
from kdbench.data.datasets import Dataset
from kdbench.engine.cell import Cell
from kdbench.engine.fit import Fitted
from kdbench.method import Method
from kdbench.results import record as rec
from kdbench.tasks import TASKS


def make_record(
    cell: Cell,
    method: Method,
    dataset: Dataset,
    teacher: rec.TeacherInfo | None,
    fitted: Fitted,
    *,
    path: str,
) -> rec.Record:
    """The record of a cell that was trained.

    Args:
        path: how it was computed, see `kdbench.compute.route`.
    """
    spec = dataset.spec
    deployed = method.deployed()
    finished = fitted.reason is None
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
        teacher=teacher,
        status="finished" if finished else "diverged",
        reason=fitted.reason,
        metrics=metrics_of(fitted, TASKS[spec.task]) if finished else None,
        curves=fitted.curves,
        correct=rec.pack_correct(fitted.correct.numpy()) if finished else None,
        cost=rec.Cost(
            images_seen=method.images_seen,
            student_forwards=method.forwards["student"],
            teacher_forwards=method.forwards["teacher"],
            train_seconds=round(fitted.seconds, 3),
            images_per_second=round(method.images_seen / max(fitted.seconds, 1e-9), 1),
            peak_memory_mb=round(fitted.peak_memory_mb, 1),
            student_params=_count(deployed),
            student_macs=macs(method, spec),
            extra_params=_count(method) - _count(deployed),
        ),
        environment=environment(method, path),
        created=datetime.now(timezone.utc).replace(microsecond=0),
    )


def metrics_of(fitted: Fitted, primary: str) -> rec.Metrics:
    """Last epoch (ranked), at the best epoch of the validation split, and best on the test set (never ranked)."""
    curve = fitted.curves[f"test/{primary}"]
    last = 100 * fitted.correct.double().mean().item()
    val = fitted.curves.get(f"val/{primary}")
    selected = None
    if val:
        best = max((value, epoch) for epoch, value in enumerate(val) if value is not None)[1]
        selected = curve[best]
    oracle = max(last, *(value for value in curve if value is not None))
    return rec.Metrics(last=last, val_selected=selected, oracle=oracle)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def macs(method: Method, spec: DataSpec) -> int:
    """Multiply-accumulates of the deployed network for one image: half of PyTorch's FLOP count."""
    net = method.deployed()
    training = net.training
    image = torch.zeros(1, *spec.shape, device=next(net.parameters()).device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.eval()(image)
    net.train(training)
    return counter.get_total_flops() // 2


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
