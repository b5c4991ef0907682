"""Run cells: find or train the teacher, build, fit, judge, and make the record."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from filelock import FileLock, Timeout
from pytorch_lightning.loggers import Logger
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import kdbench
from kdbench import models
from kdbench.data.batch import DataSpec
from kdbench.data.datasets import Dataset, DatasetConfig
from kdbench.data.module import ArrayData
from kdbench.engine.cell import Cell, construct, instantiate, method_class
from kdbench.engine.fit import Fitted, fit, make_trainer
from kdbench.engine.seeding import key, seeded
from kdbench.engine.teachers import Teacher, Teachers, check_pin, stem
from kdbench.errors import UserError
from kdbench.method import Method
from kdbench.protocol import Protocol
from kdbench.results import record as rec
from kdbench.results.store import Store, writing_to
from kdbench.tasks import TASKS


class BusyError(Exception):
    """Another process is training this cell or teacher."""


@dataclass
class Bench:
    """Where results and unfinished work lie and on what to compute: all that is no part of a cell's identity."""

    store: Store
    work: Path
    trainer: Mapping[str, Any] = field(default_factory=lambda: {"accelerator": "auto", "devices": 1})
    logger: Mapping[str, Any] | None = None
    data_root: str | None = None
    checkpoint_seconds: float = 30.0
    on_epoch: Callable[[], None] = lambda: None
    on_start: Callable[[str, int], None] = lambda name, epochs: None

    def __post_init__(self) -> None:
        self.teachers = Teachers(self.store.root)
        self._datasets: dict[str, Dataset] = {}
        self._loaded: dict[tuple[str, str], nn.Module] = {}
        self._failed: dict[str, UserError] = {}

    def check(self) -> None:
        """Fail now rather than in every cell.

        Raises:
            UserError: the work folder cannot be written, or the trainer or logger cannot be made.
        """
        with writing_to(self.work):
            (self.work / "cells").mkdir(parents=True, exist_ok=True)
        make_trainer(self.trainer, logger=False, enable_checkpointing=False)

    # ---- data and teachers --------------------------------------------------------------------------------------

    def dataset(self, config: Mapping[str, Any]) -> Dataset:
        name = rec.canonical_json(dict(config))
        if name not in self._datasets:
            self._datasets[name] = DatasetConfig.of({**config, "root": self.data_root}).build()
        return self._datasets[name]

    def teacher(self, recipe: Mapping[str, Any], pinned: str | None = None, *, wait: bool = True) -> Teacher:
        """The teacher of a recipe; it is trained first where it is absent.

        Raises:
            BusyError: another process is training it and `wait` is false.
            UserError: it cannot be trained, or other weights were demanded by their sha256 (`pinned`).
        """
        name = stem(recipe)
        if name in self._failed:  # not again for every cell
            raise self._failed[name]
        found = self.teachers.find(recipe)
        if found is None:
            if pinned:
                raise UserError(
                    f"there is no teacher {name}, so none of teacher.sha256={pinned[:12]}: put its .safetensors and "
                    f".json into {self.teachers.kept}, or drop teacher.sha256 to train it."
                )
            with self._locked(name, wait) as work:
                try:
                    found = self.teachers.find(recipe) or self._train_teacher(recipe, work)
                except UserError as error:
                    self._failed[name] = error
                    raise
        check_pin(found, pinned)
        return found

    def _train_teacher(self, recipe: Mapping[str, Any], work: Path) -> Teacher:
        protocol = Protocol.of(recipe["protocol"])
        self.on_start(f"teacher {recipe['name']}", protocol.epochs)
        dataset = self.dataset(recipe["dataset"])
        method = construct("teacher", method_class("teacher", recipe["method"]), recipe["method"], protocol)
        self._bind(method, recipe["name"], None, dataset.spec, recipe["seed"], "teacher")
        fitted = self._fit(method, dataset, recipe["seed"], work, f"teacher {recipe['name']}")
        if fitted.reason:
            shutil.rmtree(work, ignore_errors=True)
            raise UserError(f"the teacher {recipe['name']} diverged ({fitted.reason}): lower protocol.optimizer.lr.")
        teacher = self.teachers.save(
            recipe,
            method.deployed().state_dict(),
            accuracy=100 * fitted.correct.double().mean().item(),
            dataset_sha256=dataset.content_hash,
            curve=fitted.curves[f"test/{TASKS[dataset.spec.task]}"],
            device=device_name(method.device),
            torch=torch.__version__,
        )
        shutil.rmtree(work, ignore_errors=True)
        return teacher

    # ---- cells --------------------------------------------------------------------------------------------------

    def finished(self, cell: Cell) -> rec.Record | None:
        """The cell's record, if the data and the teacher behind it are the ones at hand.

        Raises:
            UserError: the record stands on other data or on another teacher.
        """
        record = self.store.get(cell.id)
        if record is None:
            return None
        dataset = self.dataset(cell.config["dataset"])
        if record.dataset.sha256 != dataset.content_hash:
            raise UserError(
                f"{cell} has a record made from other data ({record.dataset.sha256[:12]}, now "
                f"{dataset.content_hash[:12]}): restore the data, "
                "use another store (paths.results=DIR), or run again with force=true."
            )
        if record.teacher and cell.teacher:
            teacher = self.teachers.find(cell.teacher)
            if teacher:
                check_pin(teacher, cell.pinned_teacher)
            if teacher and teacher.card.sha256 != record.teacher.sha256:
                raise UserError(
                    f"{cell} has a record made with the teacher {record.teacher.sha256[:12]}, but the one at "
                    f"{teacher.weights} is {teacher.card.sha256[:12]}: restore it, use another "
                    "store, or run again with force=true."
                )
        return record

    def run(self, cell: Cell, *, force: bool = False, wait: bool = True) -> rec.Record:
        """Train one cell, or resume it, and store its record.

        Raises:
            BusyError: another process is at it, and `wait` is false.
            DoesNotFit: the method cannot serve this pair or data set.
            Interrupted: Ctrl-C; the cell can be resumed.
            UserError: anything else that the user can mend.
        """
        dataset = self.dataset(cell.config["dataset"])
        if cell.teacher and self.teachers.find(cell.teacher) is None:
            self._rehearse(cell, dataset.spec)
        teacher = self.teacher(cell.teacher, cell.pinned_teacher, wait=wait) if cell.teacher else None
        with self._locked(cell.id, wait) as work:
            done = None if force else self.store.get(cell.id)
            if done:  # by another process, while this one waited
                return done
            method = cell.make_method()
            frozen = self._load(teacher, dataset.spec) if teacher else None
            named = (teacher.card.name, frozen) if teacher and frozen else None
            self._bind(method, cell.student, named, dataset.spec, cell.seed, cell.name)
            self.on_start(str(cell), method.protocol.epochs)
            fitted = self._fit(method, dataset, cell.seed, work, str(cell))
            record = make_record(cell, method, dataset, teacher, fitted)
            self.store.write(record, overwrite=force)
            if teacher:
                self.teachers.keep(teacher)
            shutil.rmtree(work, ignore_errors=True)
            return record

    def _rehearse(self, cell: Cell, spec: DataSpec) -> None:
        """Bind the method to an untrained teacher: what does not fit is known before hours go into a trained one."""
        assert cell.teacher is not None
        name = str(cell.teacher["name"])
        with seeded("rehearsal"):
            untrained = models.create(name, spec.shape, spec.num_classes)
        self._bind(cell.make_method(), cell.student, (name, untrained), spec, cell.seed, cell.name)

    def _load(self, teacher: Teacher, spec: DataSpec) -> nn.Module:
        name = (teacher.card.sha256, spec.name)
        if name not in self._loaded:
            self._loaded[name] = teacher.load(spec)
        return self._loaded[name]

    def _bind(
        self,
        method: Method,
        student: str,
        teacher: tuple[str, nn.Module] | None,
        spec: DataSpec,
        seed: int,
        name: str,
    ) -> None:
        teacher_name, frozen = teacher or (None, None)

        def spawn(k: int) -> nn.Module:
            # the k-th network of a seed is the same for every method: common random numbers
            with seeded(seed, "student", student, k):
                return models.create(student, spec.shape, spec.num_classes)

        net = spawn(0)
        with seeded(seed, "adapters", name):
            method.bind(
                net,
                frozen,
                spec,
                names=(student, teacher_name),
                spawn=spawn,
                seed=key(seed, "method", name),
            )

    def _fit(self, method: Method, dataset: Dataset, seed: int, work: Path, title: str) -> Fitted:
        data = ArrayData(dataset, batch_size=method.protocol.batch_size, seed=seed, blind="no_data" in method.needs)
        with self._logging(re.sub(r"[^A-Za-z0-9._-]+", "-", title), work.name) as logger, seeded(seed, "training"):
            return fit(
                method,
                data,
                work,
                trainer=self.trainer,
                logger=logger,
                checkpoint_seconds=self.checkpoint_seconds,
                on_epoch=self.on_epoch,
            )

    @contextmanager
    def _logging(self, name: str, version: str) -> Iterator[Logger | None]:
        """The logger of one run, closed behind it: an open one would swallow the next run's values."""
        if self.logger is None:
            yield None
            return
        logger = instantiate("logger", self.logger, name=name, version=version)
        try:
            yield logger
        finally:
            finish = getattr(logger.experiment, "finish", None)
            if callable(finish):
                finish()

    @contextmanager
    def _locked(self, name: str, wait: bool) -> Iterator[Path]:
        """The working folder of a cell or teacher, for this process alone."""
        folder = self.work / "cells"
        with writing_to(folder):
            (folder / name).mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / f"{name}.lock")
            try:
                lock.acquire(blocking=wait)
            except Timeout:
                raise BusyError from None
        try:
            (folder / name).mkdir(exist_ok=True)  # whoever held the lock before may have finished and removed it
            yield folder / name
        finally:
            lock.release()


def make_record(cell: Cell, method: Method, dataset: Dataset, teacher: Teacher | None, fitted: Fitted) -> rec.Record:
    cls, spec = cell.method, dataset.spec
    deployed = method.deployed()
    finished = fitted.reason is None
    return rec.Record(
        cell=rec.Cell(
            id=cell.id,
            method=cell.name,
            pair=cell.pair,
            student=cell.student,
            teacher=teacher.card.name if teacher else None,
            dataset=spec.name,
            protocol=method.protocol.name,
            seed=cell.seed,
        ),
        config=dict(cell.config),
        method=rec.MethodInfo(
            cls=f"{cls.__module__}.{cls.__qualname__}",
            leaf=cls.leaf,
            paper=cls.paper or None,
            extension=cls.extension,
            control=cls.control,
            needs=sorted(cls.needs),
        ),
        dataset=rec.DatasetInfo(
            sha256=dataset.content_hash,
            n_train=spec.n_train,
            n_val=spec.n_val,
            n_test=spec.n_test,
            num_classes=spec.num_classes,
        ),
        teacher=rec.TeacherInfo(name=teacher.card.name, sha256=teacher.card.sha256, accuracy=teacher.card.accuracy)
        if teacher
        else None,
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
        environment=environment(method),
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


def environment(method: Method) -> rec.Environment:
    return rec.Environment(
        kdbench=kdbench.__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        lightning=pl.__version__,
        device=device_name(method.device),
        precision=method.protocol.precision,
        threads=torch.get_num_threads(),
        platform=platform.platform(),
        path="plain",
        commit=commit(),
    )


@lru_cache
def device_name(device: torch.device) -> str:
    """Model name of the GPU, or of the processor where the system tells it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@lru_cache
def commit() -> str | None:
    """Commit of the checkout that this code runs from; None when it was installed."""
    root = Path(kdbench.__file__).parent.parent
    if not (root / ".git").exists():
        return None
    found = subprocess.run(
        ["git", "-C", os.fspath(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return found.stdout.strip() or None
