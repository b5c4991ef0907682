"""Run cells: find or train the teacher, build, fit, judge, and store the records."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from filelock import FileLock, Timeout
from pytorch_lightning.loggers import Logger
from torch import nn

from kdbench import models
from kdbench.data.batch import DataSpec
from kdbench.data.datasets import Dataset, DatasetConfig
from kdbench.data.module import ArrayData
from kdbench.engine.cell import Cell, construct, instantiate, method_class, title_of
from kdbench.engine.cohort import Member, Spoiled
from kdbench.engine.fit import Fitted, fit, make_trainer, not_compiled
from kdbench.engine.frozen import FrozenTeacher
from kdbench.engine.making import device_name, make_record
from kdbench.engine.route import EngineConfig, Route
from kdbench.engine.seeding import key, seeded
from kdbench.engine.taught import Taught, share
from kdbench.engine.teachers import Teacher, Teachers, check_pin, stem
from kdbench.errors import UserError
from kdbench.method import Method
from kdbench.protocol import Protocol
from kdbench.results import record as rec
from kdbench.results.labels import keep_labels
from kdbench.results.store import Store, writing_to
from kdbench.tasks import TASKS

BYTES_PER_PARAMETER = 40
"""Of a student in training: weights, gradients, two moments of Adam, buffers and adapters, in float32, doubled for
peers. Activations do not count: only one member of a cohort has any at a time."""


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
    engine: EngineConfig = field(default_factory=EngineConfig)
    max_students: int | Literal["auto"] = "auto"
    on_epoch: Callable[[int], None] = lambda finished: None
    on_start: Callable[[str, Sequence[str], int], None] = lambda title, names, epochs: None
    say: Callable[[str], None] = lambda sentence: None

    def __post_init__(self) -> None:
        self.teachers = Teachers(self.store.root)
        self._datasets: dict[str, Dataset] = {}
        self._taught: dict[tuple[str, str, Route, int], Taught] = {}
        self._failed: dict[str, UserError] = {}
        self._labelled: set[str] = set()

    def check(self) -> None:
        """Fail now rather than in every cell.

        Raises:
            UserError: the work folder cannot be written, or the trainer or logger cannot be made.
        """
        with writing_to(self.work):
            (self.work / "cells").mkdir(parents=True, exist_ok=True)
        _ = self.device

    @cached_property
    def device(self) -> torch.device:
        """Where cells are trained."""
        return make_trainer(self.trainer, logger=False, enable_checkpointing=False).strategy.root_device

    def cohort_size(self, cell: Cell) -> int:
        """How many students such as the cell's may train in lockstep.

        As many as `max_students` says, or as fit into half of the memory that is free now. One on the plain route,
        unless a number is given, and where a gradient scaler would tie the members to each other.
        """
        if cell.protocol.precision == "16-mixed":
            return 1
        if self.max_students != "auto":
            return self.max_students
        if self.engine.route == "plain":
            return 1
        if self.device.type == "cuda":
            free = torch.cuda.mem_get_info(self.device)[0]
        else:
            free = psutil.virtual_memory().available
        spec = self.dataset(cell.config["dataset"]).spec
        with seeded("size"):
            net = models.create(cell.student, spec.shape, spec.num_classes)
        size = BYTES_PER_PARAMETER * sum(parameter.numel() for parameter in net.parameters())
        return max(1, int(free / 2 / size))

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
        title = f"teacher {recipe['name']}"
        self.on_start(title, [], protocol.epochs)
        dataset = self.dataset(recipe["dataset"])
        method = construct("teacher", method_class("teacher", recipe["method"]), recipe["method"], protocol)
        self._bind(method, recipe["name"], None, dataset.spec, recipe["seed"], "teacher")
        with ExitStack() as stack:
            member = self._member(title, method, work, recipe["seed"], stack)
            member.resume()
            (fitted,) = self._fit([member], dataset, recipe["seed"], None, self.route(protocol, dataset))
        if isinstance(fitted, Exception):
            raise fitted
        if fitted.reason:
            shutil.rmtree(work, ignore_errors=True)
            raise UserError(f"the {title} diverged ({fitted.reason}): lower protocol.optimizer.lr.")
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
        self._keep_labels(cell, dataset)
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

    def run(
        self, cells: Sequence[Cell], *, force: bool = False, wait: bool = True
    ) -> dict[str, rec.Record | Exception]:
        """Train the cells of a cohort in lockstep, or resume them, and store their records.

        Args:
            cells: of one data set, protocol and seed, and of at most one teacher.
            wait: for another process that is at such a cell or at the teacher.

        Returns:
            for each cell's id its record, or what became of it:
            `BusyError` where another process is at it, and `wait` is false;
            `DoesNotFit` where the method cannot serve this pair or data set;
            `Spoiled` where it ruined its neighbours' step: those that are missing are to be run again;
            `UserError` or any other exception that made it fail.

        Raises:
            Interrupted: Ctrl-C; the cells can be resumed.
        """
        done: dict[str, rec.Record | Exception] = {}
        with ExitStack() as stack:
            dataset, taught = self.dataset(cells[0].config["dataset"]), None
            try:
                taught = self._teacher_of(cells, dataset, done, wait)
            except Exception as error:
                done |= {cell.id: error for cell in cells if cell.teacher and cell.id not in done}
            work: dict[str, Path] = {}
            for cell in sorted(cells, key=lambda cell: cell.id):  # in one order everywhere, or two could wait for ever
                if cell.id in done:
                    continue
                try:
                    work[cell.id] = stack.enter_context(self._locked(cell.id, wait))
                    if not force and (record := self.store.get(cell.id)):  # another process was faster
                        done[cell.id] = record
                except Exception as error:
                    done[cell.id] = error
            left = [cell for cell in cells if cell.id not in done]
            if left:
                self._train(left, dataset, taught, work, done, force, stack)
        return done

    def _teacher_of(
        self, cells: Sequence[Cell], dataset: Dataset, done: dict[str, rec.Record | Exception], wait: bool
    ) -> tuple[Teacher, Taught] | None:
        """The teacher of those cells that have one and can use it; who cannot is done."""
        taught = [cell for cell in cells if cell.teacher]
        if taught and self.teachers.find(taught[0].config["teacher"]) is None:
            for cell in taught:
                try:
                    self._rehearse(cell, dataset.spec)
                except Exception as error:
                    done[cell.id] = error
            taught = [cell for cell in taught if cell.id not in done]
        if not taught:
            return None
        first = taught[0]
        teacher = self.teacher(first.config["teacher"], first.pinned_teacher, wait=wait)
        return teacher, self.taught(teacher, first.config["dataset"], first.protocol)

    def _train(
        self,
        cells: Sequence[Cell],
        dataset: Dataset,
        taught: tuple[Teacher, Taught] | None,
        work: Mapping[str, Path],
        done: dict[str, rec.Record | Exception],
        force: bool,
        stack: ExitStack,
    ) -> None:
        route = self.route(cells[0].protocol, dataset)
        teacher, shared = taught or (None, None)
        members: list[tuple[Cell, Member]] = []
        for cell in cells:
            try:
                method = cell.make_method()
                named = (shared.card.name, shared.frozen) if shared and cell.teacher else None
                self._bind(method, cell.student, named, dataset.spec, cell.seed, cell.name)
                member = self._member(str(cell), method, work[cell.id], cell.seed, stack)
                member.resume()
                members.append((cell, member))
            except Exception as error:
                done[cell.id] = error
        # after a kill the members may stand at different epochs: those of one epoch are one cohort
        for epoch in sorted({member.method.epoch for _, member in members}):
            together = [(cell, member) for cell, member in members if member.method.epoch == epoch]
            self.on_start(title_of([cell for cell, _ in together]), [str(c) for c, _ in together], 0)
            try:
                frozen = shared.frozen if shared else None
                results = self._fit([m for _, m in together], dataset, cells[0].seed, frozen, route)
            except Spoiled as error:
                done |= {cell.id: error for cell, member in together if member is error.member}
                continue
            except Exception as error:
                done |= {cell.id: error for cell, _ in together}
                continue
            for (cell, member), fitted in zip(together, results, strict=True):
                try:
                    if isinstance(fitted, Exception):
                        raise fitted
                    own = shared if cell.teacher else None
                    record = make_record(
                        cell,
                        member.method,
                        dataset,
                        teacher if own else None,
                        fitted,
                        path=_path(route, len(together), member.method, own),
                        agreement=own.agreement(dataset) if own else None,
                    )
                    self._keep_labels(cell, dataset)
                    self.store.write(record, overwrite=force)
                    if own and teacher:
                        self.teachers.keep(teacher)
                    shutil.rmtree(work[cell.id], ignore_errors=True)
                    done[cell.id] = record
                except Exception as error:
                    done[cell.id] = error

    def _keep_labels(self, cell: Cell, dataset: Dataset) -> None:
        """Beside the records: a test set's labels, once."""
        config = cell.config["dataset"]
        name = rec.canonical_json(config)
        if name not in self._labelled:
            labels = dataset.test.labels.cpu().numpy()
            keep_labels(self.store.root, dataset.spec.name, dataset.content_hash, config, labels, dataset.classes)
            self._labelled.add(name)

    def route(self, protocol: Protocol, dataset: Dataset) -> Route:
        steps = protocol.epochs * -(-dataset.spec.n_train // protocol.batch_size)
        return Route.choose(self.engine, self.device, steps)

    def _rehearse(self, cell: Cell, spec: DataSpec) -> None:
        """Bind the method to an untrained teacher: what does not fit is known before hours go into a trained one."""
        assert cell.teacher is not None
        name = str(cell.teacher["name"])
        with seeded("rehearsal"):
            untrained = models.create(name, spec.shape, spec.num_classes)
        self._bind(cell.make_method(), cell.student, (name, untrained), spec, cell.seed, cell.name)

    def taught(self, teacher: Teacher, dataset_config: Mapping[str, Any], protocol: Protocol) -> Taught:
        """A teacher as the cells of one data set and protocol share it; one object, however many seeds they have."""
        dataset = self.dataset(dataset_config)
        route = self.route(protocol, dataset)
        name = (teacher.card.sha256, rec.canonical_json(dict(dataset_config)), route, protocol.batch_size)
        if name not in self._taught:
            net = teacher.load(dataset.spec)
            self._taught[name] = share(
                teacher.card, net, dataset, dataset_config, protocol, route, self.device, self.say
            )
        return self._taught[name]

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

    def _member(self, title: str, method: Method, work: Path, seed: int, stack: ExitStack) -> Member:
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", title)
        logger = stack.enter_context(self._logging(name, work.name))
        with seeded(seed, "training"):
            return Member(title, method, work, torch.get_rng_state(), logger)

    def _fit(
        self, members: Sequence[Member], dataset: Dataset, seed: int, teacher: FrozenTeacher | None, route: Route
    ) -> list[Fitted | Exception]:
        blind = all("no_data" in member.method.needs for member in members)
        data = ArrayData(dataset, batch_size=members[0].method.protocol.batch_size, seed=seed, blind=blind)
        with seeded(seed, "training"):
            return fit(
                members,
                data,
                route,
                trainer=self.trainer,
                teacher=teacher,
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


def _path(route: Route, cohort: int, method: Method, taught: Taught | None) -> str:
    """How a cell was computed: its route, and what of that could not be had."""
    failed = {
        "student not compiled": not_compiled(method, route),
        "teacher not as said": taught.frozen.failed if taught else None,
    }
    notes = [f"{what} ({why})" for what, why in failed.items() if why]
    return "; ".join([route.describe(cohort, teacher=taught is not None), *notes])
