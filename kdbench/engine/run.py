"""Run cells: who stands already, who teaches, bind, fit, record, keep. A teacher is a cell whose student is kept."""

from __future__ import annotations

import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import kdbench
from kdbench.compute.device import check_usable
from kdbench.compute.route import EngineConfig, Route
from kdbench.construct import method_class, slots
from kdbench.data.batch import WHOLE, DataSpec, Share
from kdbench.data.datasets import Dataset
from kdbench.data.module import ArrayData, eval_batch
from kdbench.data.sources import source_of
from kdbench.data.workers import number_of
from kdbench.engine.binding import Lecturer, bind, kept_state, untrained
from kdbench.engine.cell import Cell, cell_of
from kdbench.engine.checkpoint import Unusable
from kdbench.engine.cohort import Member, Spoiled
from kdbench.engine.crew import Crew, Meeting, check_batches, check_streams, lead
from kdbench.engine.fit import Fitted, Place, each_device, fit, not_compiled, profiled
from kdbench.engine.locks import BusyError, forget_dead, locked
from kdbench.engine.logs import Logs
from kdbench.engine.making import make_record
from kdbench.engine.memory import activation_bytes, attempt, free_memory, student_bytes, vanished
from kdbench.engine.seeding import seeded
from kdbench.engine.standing import check_standing, learned_from
from kdbench.engine.students import Students, form
from kdbench.errors import UserError
from kdbench.files import check_room, remove_leftovers, writing_to
from kdbench.method import Method
from kdbench.paths import CHOOSE_CACHE, CHOOSE_RESULTS, CHOOSE_WORK, cache_dir
from kdbench.protocol import Protocol
from kdbench.results import record as rec
from kdbench.results.labels import FOLDER as LABELS
from kdbench.results.labels import keep_labels
from kdbench.results.store import RecordExistsError, Store
from kdbench.source import is_code_of, network_hash, source_hash
from kdbench.tasks import task_for
from kdbench.teaching.adapter import Adapter
from kdbench.teaching.frozen import FrozenTeacher
from kdbench.teaching.recipe import name_of
from kdbench.teaching.taught import Taught, share
from kdbench.teaching.teachers import Origin, Teacher, Teachers, check_pin, create, full_stem

Pool = dict[str, tuple[Teacher, Taught]]
"""The teachers of a cohort, by what `name_of` calls their recipes."""


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
    cache: Path = field(default_factory=cache_dir)
    images: int | None = None  # of each split, for trials
    keep_students: bool = False
    rank: int = 0  # which of the trainer's devices is this process's
    on_epoch: Callable[[Sequence[Member], int], None] = lambda members, epochs: None
    on_start: Callable[[Sequence[Cell], int, bool], None] = lambda cells, behind, planned: None
    say: Callable[[str], None] = lambda sentence: None

    def __post_init__(self) -> None:
        self.teachers = Teachers(self.store.root, self.cache)
        self.students = Students(self.store.root)
        self._logs = Logs(self.logger, lambda sentence: self.say(sentence))
        self._datasets: dict[str, Dataset] = {}
        self._placed: dict[int, dict[Any, Any]] = {}  # what lies on the device of each of these, by its id()
        self._taught: dict[tuple[str, str, Route, int, str], Taught] = {}
        self._failed: dict[str, UserError] = {}
        self._school = Store(self.teachers.cache)  # the records of teachers' own training
        self._told: set[str] = set()
        self.written: set[str] = set()  # ids of cells whose records this process wrote
        self._labelled: set[str] = set()

    def tell(self, sentence: str) -> None:
        """Say it, unless it was said before."""
        if sentence not in self._told:
            self._told.add(sentence)
            self.say(sentence)

    def check(self, plan: Sequence[Sequence[Cell]] = ()) -> None:
        """Fail now rather than in every cell, or after hours.

        Args:
            plan: cohorts that are going to be trained.

        Raises:
            UserError: a folder cannot be written or has no room, the trainer or logger cannot be made, or the device is
                full.
        """
        need = max((len(cohort) * self._checkpoint_bytes(cohort[0]) for cohort in plan), default=0)
        check_room(self.work / "cells", 2 * need, "the checkpoints of a cohort, old and new,", CHOOSE_WORK)
        if plan:
            self.store.check_writable(sum(map(len, plan)))
        if plan and self.keep_students:
            need = sum(len(cohort) * self._student_bytes(cohort[0]) for cohort in plan)
            check_room(self.students.folder, need, "the students' weights", CHOOSE_RESULTS)
        for place in self._places:
            check_usable(place.device)
        if len(self._places) > 1:
            for cell, *_ in plan:
                check_batches(cell.protocol, self.dataset(cell.dataset).spec, len(self._places))
        self._logs.check()

    def sweep(self) -> None:
        """Remove what processes killed long ago left behind, wherever it can be removed."""
        locks = (self.store.locks, self.teachers.cache / ".locks", self.work / "cells")
        records = (self.store.folder, self._school.folder, self.store.root / LABELS)
        kept = (*records, self.teachers.kept, self.teachers.cache, *(self.cache / "views").glob("*/"))
        for folder in (*locks, *kept):
            with suppress(OSError):
                remove_leftovers(folder)
        for folder in locks:
            with suppress(OSError):
                forget_dead(folder)

    def _checkpoint_bytes(self, cell: Cell) -> int:
        """At least: the student, and what the optimiser keeps of it."""
        net = self._untrained(cell)
        tensors = sum(value.numel() for value in net.state_dict().values())
        return 4 * (tensors + slots(cell.protocol) * sum(parameter.numel() for parameter in net.parameters()))

    def _student_bytes(self, cell: Cell) -> int:
        return sum(value.nbytes for value in self._untrained(cell).state_dict().values())

    def _untrained(self, cell: Cell) -> nn.Module:
        with seeded("size"):
            return create(cell.student, self.dataset(cell.dataset).spec)

    @cached_property
    def _places(self) -> list[Place]:
        """Where each batch is shared: mostly one device has it all."""
        return each_device(self.trainer)

    @cached_property
    def device(self) -> torch.device:
        """Where cells are trained, by this process."""
        return self._places[self.rank].device

    def cohort_size(self, cell: Cell) -> int:
        """How many students such as the cell's may train in lockstep.

        As many as `max_students` says, or as fit into half of the memory that is free now, and fewer than were killed.
        One on the plain route, unless a number is given, and where a gradient scaler would tie the members together, or
        several devices share each batch.
        """
        if cell.protocol.precision == "16-mixed" or len(self._places) > 1:
            return 1
        if self.max_students != "auto":
            return self.max_students
        if self.engine.route == "plain":
            return 1
        net, data = self._untrained(cell), self.dataset(cell.dataset)
        free = torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else free_memory()
        free -= activation_bytes(net, data.spec.shape, train=cell.protocol.batch_size, evaluate=eval_batch(data))
        return max(1, min(int(free / 2 / student_bytes(net)), self._survivable))

    @cached_property
    def _survivable(self) -> int:
        """How many students may train in lockstep as far as is known from attempts that ended without a word."""
        killed = vanished(self.work / "cells")
        if killed is None:
            return sys.maxsize
        self.say(
            f"the last attempt, of {killed} in lockstep, was killed, perhaps for want of memory: now at most "
            f"{killed // 2} (cohort.max_students=N decides)."
        )
        return killed // 2

    # ---- data and teachers --------------------------------------------------------------------------------------

    def dataset(self, config: Mapping[str, Any]) -> Dataset:
        name = rec.canonical_json(dict(config))
        if name not in self._datasets:
            built = replace(source_of({**config, "root": self.data_root}).build(), workers=self.engine.workers)
            self._datasets[name] = built.first(self.images) if self.images else built
        return self._datasets[name]

    def teacher(
        self,
        recipe: Mapping[str, Any],
        pinned: str | None = None,
        *,
        wait: bool = True,
        start: tuple[Mapping[str, Tensor], Origin] | None = None,
    ) -> Teacher:
        """The teacher of a recipe; it is trained first where it is absent.

        Args:
            start: weights to begin with, where the recipe names some, and whence they were brought.

        Raises:
            BusyError: another process is training it and `wait` is false.
            UserError: it cannot be trained, or other weights were demanded by their sha256 (`pinned`).
        """
        data = self.dataset(recipe["dataset"])
        name = full_stem(recipe, data.content_hash, data.classes)
        if name in self._failed:  # not again for every cell
            raise self._failed[name]
        found = self.teachers.find(recipe, data)
        if found is None:
            if "weights" in recipe and start is None:
                raise UserError(
                    f"the teacher {recipe['name']} was brought (weights {recipe['weights'][:12]}), and is not there "
                    "any more: bring it again with kdbench teacher import."
                )
            if pinned:
                raise UserError(
                    f"there is no teacher {name}, so none of teacher.sha256={pinned[:12]}: put its .safetensors and "
                    f".json into {self.teachers.kept}, or drop teacher.sha256 to train it."
                )
            with self._locked(self.teachers.lock(recipe, data), f"the teacher {recipe['name']}", wait) as work:
                try:
                    found = self.teachers.find(recipe, data) or self._train_teacher(recipe, data, work, wait, start)
                except UserError as error:
                    self._failed[name] = error
                    raise
        check_pin(found, pinned)
        self._clear_if_left(name)
        was, now = found.card.network, network_hash(found.card.name)
        changed = [found.card.name] if was and now and was != now else []
        if "method" in recipe and not is_code_of(method_class("teacher", recipe["method"]), found.card.code):
            changed.append(recipe["method"]["_target_"])
        for whose in changed:
            self.tell(
                f"the teacher {found.card.name} was trained by other code of {whose} than there is now: delete "
                f"{found.weights} and its .json to train it again."
            )
        return found

    def _train_teacher(
        self,
        recipe: Mapping[str, Any],
        dataset: Dataset,
        work: Path,
        wait: bool,
        start: tuple[Mapping[str, Tensor], Origin] | None = None,
    ) -> Teacher:
        state, origin = start or (None, None)
        cell, done = cell_of(recipe, start=state), dict[str, rec.Record | Exception]()
        self.teachers.check_room(self._untrained(cell))
        kept: list[Teacher] = []
        gone: list[str] = []
        with suppress(UserError):  # of a broken record, which kdbench report names: no reason not to train
            gone = learned_from(self.store.load(), recipe)
        older = ", ".join(sha256[:12] for sha256 in gone)
        if gone:
            self.tell(
                f"the teacher {recipe['name']} that finished cells learned from ({older}) is not there any more and is "
                "trained again; what learns from other weights stands in another table. To have the same for sure, "
                f"interrupt this and put its .safetensors and .json into {self.teachers.kept}."
            )

        def keep(cell: Cell, method: Method, record: rec.Record) -> rec.Record:
            if record.metrics is None:
                shutil.rmtree(work, ignore_errors=True)
                raise UserError(f"the teacher {cell.student} diverged: {record.reason}.")
            known = {
                "accuracy": record.metrics.last,
                "curve": record.curves[f"test/{record.measure.name}"],
                "device": record.environment.device,
                "torch": record.environment.torch,
                "code": record.method.source,
                "measure": record.measure,
                "origin": origin,
            }
            # first the record: a teacher that is there is not trained again, so whoever was killed in between lost it
            self._school.write(record, overwrite=True)
            kept.append(self.teachers.save(recipe, dataset, kept_state(cell, method), **known))
            return record

        with ExitStack() as stack:
            pool = self._pool([cell], dataset, done, wait)
            if not done:
                self._train([cell], dataset, pool, {cell.id: work}, done, keep, stack, ready=kept_state, planned=False)
        if isinstance(result := done[cell.id], Exception):
            raise result
        if gone and kept[0].card.sha256 not in gone:
            self.tell(
                f"the teacher {recipe['name']} came out with other weights ({kept[0].card.sha256[:12]}, not {older}): "
                "what learns from it stands in another table than the finished cells, unless those are run again with "
                "force=true."
            )
        return kept[0]

    # ---- cells --------------------------------------------------------------------------------------------------

    def finished(self, cell: Cell) -> rec.Record | None:
        """The cell's record, if the data, the teacher and the method's code behind it are the ones at hand.

        Raises:
            UserError: the record stands on other data, on another teacher or on other code.
        """
        record = self.store.get(cell.id)
        if record:
            check_standing(cell, record, self.teachers, self.dataset)
        return record

    def run(
        self, cells: Sequence[Cell], *, force: bool = False, wait: bool = True
    ) -> dict[str, rec.Record | Exception]:
        """Train the cells of a cohort in lockstep, or resume them, and store their records.

        Args:
            cells: of one data set, protocol and seed; those that have teachers have the first in common.
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
            dataset = self.dataset(cells[0].dataset)
            pool = self._pool(cells, dataset, done, wait)
            work: dict[str, Path] = {}
            for cell in sorted(cells, key=lambda cell: cell.id):  # in one order everywhere, or two could wait for ever
                if cell.id in done:
                    continue
                try:
                    with ExitStack() as own:
                        folder = own.enter_context(self._locked(self.store.lock(cell.id), str(cell), wait))
                        if not force and (record := self.finished(cell)):  # another process was faster
                            self._clear(folder)
                            done[cell.id] = record
                        else:
                            work[cell.id] = folder
                            stack.enter_context(own.pop_all())
                except Exception as error:
                    done[cell.id] = error

            def keep(cell: Cell, method: Method, record: rec.Record) -> rec.Record:
                if self.keep_students and record.metrics:  # first: a cell with a record is not trained again
                    self.students.save(cell, method, dataset, record)
                else:
                    self.students.discard(cell.id)
                record = self._publish(cell, record, force)
                self._keep_labels(cell)
                for teacher, _ in _of(pool, cell):
                    self._keep(teacher)
                return record

            left = [cell for cell in cells if cell.id not in done]
            if left:
                ready = form if self.keep_students else lambda cell, method: None
                self._train(left, dataset, pool, work, done, keep, stack, ready=ready, force=force)
        return done

    def _pool(
        self, cells: Sequence[Cell], dataset: Dataset, done: dict[str, rec.Record | Exception], wait: bool
    ) -> Pool:
        """The teachers of these cells, trained first where they are absent; who cannot have or use one is done."""
        # beside a method for several teachers one that knows but some classes is no mistake: others are left out
        partial = any("teachers" in cell.method.needs for cell in cells)
        for cell in cells:
            try:
                self._rehearse(cell, dataset, partial)
            except Exception as error:
                done[cell.id] = error
        pool: Pool = {}
        wanted = {name_of(recipe): (recipe, pin) for cell in cells for recipe, pin in cell.teachers}
        for name, (recipe, pin) in wanted.items():
            users = [c for c in cells if c.id not in done and any(name_of(r) == name for r, _ in c.teachers)]
            if not users:
                continue
            try:
                teacher = self.teacher(recipe, pin, wait=wait)
                config, protocol = users[0].dataset, users[0].protocol
                pool[name] = teacher, self.taught(teacher, config, protocol, partial=partial)
            except Exception as error:
                done |= {cell.id: error for cell in users}
        return pool

    def _train(
        self,
        cells: Sequence[Cell],
        dataset: Dataset,
        pool: Pool,
        work: Mapping[str, Path],
        done: dict[str, rec.Record | Exception],
        keep: Callable[[Cell, Method, rec.Record], rec.Record],
        stack: ExitStack,
        *,
        ready: Callable[[Cell, Method], object],
        force: bool = False,
        planned: bool = True,
    ) -> None:
        """Train cells in lockstep; what became of them is entered into `done`.

        Args:
            work: where each one's unfinished training lies.
            keep: stores a cell's record, and whatever else is kept of it.
            ready: raises `UserError` for a method of which that could not be kept.
            planned: their epochs were counted when the grid was.
        """
        route = self.route(cells[0].protocol, dataset)
        members: list[tuple[Cell, Member]] = []
        for cell in cells:
            try:
                own = _of(pool, cell)
                identity = {
                    "cell": cell.id,
                    "code": source_hash(cell.method),
                    **({"code of the student": code} if (code := network_hash(cell.student)) else {}),
                    # a run with force=true goes on only from what such a run began, for the record that is still there
                    "force": (self.store.fingerprint(cell.id) or "true") if force else None,
                    **self._identity(dataset, [teacher for teacher, _ in own], cell.protocol),
                }
                member = self._member(cell, lecturers(own), dataset.spec, work[cell.id], identity, stack)
                ready(cell, member.method)
                members.append((cell, member))
            except Exception as error:
                done[cell.id] = error
        # after a kill the members may stand at different epochs: those of one epoch are one cohort
        groups: dict[int, list[tuple[Cell, Member]]] = defaultdict(list)
        for cell, member in members:
            groups[member.method.epoch].append((cell, member))
        for behind, together in sorted(groups.items()):
            if together[0][1].method.idle:  # which leaves nothing to be shared
                route = replace(route, devices=1)
            self.on_start([cell for cell, _ in together], behind, planned)
            try:
                frozen = list(dict.fromkeys(taught.frozen for cell, _ in together for _, taught in _of(pool, cell)))
                with self._crew(*together[0], route) as crew:
                    results = self._fit([m for _, m in together], dataset, cells[0].seed, frozen, route, crew)
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
                    taught = [taught for _, taught in _of(pool, cell)]
                    record = make_record(
                        cell,
                        member.method,
                        dataset,
                        [each.info for each in taught],
                        fitted,
                        path=_path(route, len(together), member, taught, self.trainer),
                    )
                    done[cell.id] = keep(cell, member.method, record)
                    self._clear(work[cell.id])
                except Exception as error:
                    done[cell.id] = error

    @contextmanager
    def _crew(self, cell: Cell, member: Member, route: Route) -> Iterator[Crew | None]:
        """The processes that train a cell with this one, where several devices do."""
        if route.devices == 1:
            yield None
            return
        data = member.method.data
        check_batches(cell.protocol, data, route.devices)
        check_streams(member.method, data)
        order = {
            "bench": {
                "store": str(self.store.root),
                "work": str(self.work),
                "trainer": {**self.trainer, "profiler": None},
                "data_root": self.data_root,
                "engine": self.engine.model_dump(),
                "cache": str(self.cache),
                "images": self.images,
            },
            "cell": {"name": cell.name, "config": cell.config, "pins": cell.pins},
        }
        with lead([order] * (route.devices - 1), member.folder, self.device) as crew:
            crew.hand(member)
            yield crew

    def follow(self, cell: Cell, meeting: Meeting) -> None:
        """Train a cell with the process that leads.

        Raises:
            Exception: whatever made that fail.
        """
        done: dict[str, rec.Record | Exception] = {}
        dataset = self.dataset(cell.dataset)
        pool = self._pool([cell], dataset, done, wait=True)
        for error in done.values():
            assert isinstance(error, Exception)
            raise error
        taught = _of(pool, cell)
        method = bind(cell, lecturers(taught), dataset.spec)
        member = Member(str(cell), method, self.work, torch.get_rng_state())
        crew = Crew(meeting, self.device)
        crew.hand(member)
        route = self.route(cell.protocol, dataset)
        (result,) = self._fit([member], dataset, cell.seed, [each.frozen for _, each in taught], route, crew)
        if isinstance(result, Exception):
            raise result

    def _identity(self, dataset: Dataset, teachers: Sequence[Teacher], protocol: Protocol) -> dict[str, Any]:
        """What a checkpoint must share with a training that goes on from it, besides what is trained.

        On how many devices that was is no matter.
        """
        route = Route.choose(self.engine, self.device, _steps(protocol, dataset))
        if not route.compiled:  # whether views are cached changes no bit then
            route = replace(route, cached=False)
        return {
            "data": dataset.content_hash,
            "naming of classes": dataset.classes_hash,
            "teachers": [teacher.card.sha256 for teacher in teachers],
            "kdbench": kdbench.__version__,
            "torch": torch.__version__,
            "device": self.device.type,
            "route": route.describe(1, teacher=bool(teachers)),
        }

    def _publish(self, cell: Cell, record: rec.Record, force: bool) -> rec.Record:
        """Store a record; where another process was faster, that one's, if it is of the same data and teacher."""
        try:
            self.store.write(record, overwrite=force)
        except RecordExistsError:
            return self.finished(cell) or record
        self.written.add(cell.id)
        return record

    def _keep(self, teacher: Teacher) -> None:
        try:
            self.teachers.keep(teacher)
        except UserError as error:  # the record is there; the next run tries again
            self.tell(f"the teacher {teacher.card.name} is not kept beside its records: {error}")

    def _clear(self, folder: Path) -> None:
        """Remove what training left in a working folder, and the traceback of an earlier failure."""
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):
            folder.with_name(f"{folder.name}.error.log").unlink(missing_ok=True)

    def settle(self, cell: Cell, record: rec.Record) -> None:
        """Make good what a kill behind a cell's record left undone; that nothing can be written is no failure."""
        for info, recipe in record.teachers:
            teacher = self.teachers.find(recipe, self.dataset(recipe["dataset"]))
            if teacher and teacher.card.sha256 == info.sha256:
                self._keep(teacher)
        self._keep_labels(cell)
        self._clear_if_left(cell.id)

    def _clear_if_left(self, name: str) -> None:
        """Remove the working folder of a cell or teacher that is there, unless another process is at work in it."""
        folder = self.work / "cells" / name
        if folder.exists():
            with suppress(BusyError, UserError), locked(_lock(folder), name, wait=False):
                self._clear(folder)

    def _keep_labels(self, cell: Cell) -> None:
        """Beside the records: a test set's labels, once."""
        config = cell.config["dataset"]
        dataset, name = self.dataset(cell.dataset), rec.canonical_json(config)
        if name in self._labelled or cell.dataset != config:  # each run has its own, perhaps to be judged by, too
            return
        self._labelled.add(name)
        labels = dataset.test.labels.cpu().numpy()
        if labels.ndim > 1 or not dataset.classes_hash:  # no classes to balance over
            return
        try:
            keep_labels(self.store.root, dataset.spec.name, dataset.content_hash, config, labels, dataset.classes)
        except UserError as error:  # only balanced accuracy needs them, and the next run tries again
            self.tell(f"the labels of {dataset.spec.name} are not kept beside its records: {error}")

    def route(self, protocol: Protocol, dataset: Dataset) -> Route:
        return Route.choose(self.engine, self.device, _steps(protocol, dataset), len(self._places))

    def _rehearse(self, cell: Cell, dataset: Dataset, partial: bool) -> None:
        """If a teacher is absent, bind the method to untrained ones: what does not fit is known before hours go by."""
        absent, stand_ins = False, []
        for recipe, _ in cell.teachers:
            learned = self.dataset(recipe["dataset"])
            adapter = Adapter.between(recipe["name"], learned, dataset, partial=partial)
            stand_ins.append((recipe["name"], learned.spec, adapter))
            absent = absent or self.teachers.find(recipe, learned) is None
        if absent:
            bind(cell, [untrained(*each) for each in stand_ins], dataset.spec)

    def taught(
        self, teacher: Teacher, dataset_config: Mapping[str, Any], protocol: Protocol, *, partial: bool = False
    ) -> Taught:
        """A teacher as the cells of one data set and protocol share it; one object, however many seeds they have."""
        dataset = self.dataset(dataset_config)
        route = self.route(protocol, dataset)
        shown = rec.canonical_json(dict(dataset_config))
        name = (teacher.card.sha256, shown, route, protocol.batch_size, protocol.precision)
        if name not in self._taught:
            learned = self.dataset(teacher.card.recipe["dataset"])
            self._taught[name] = share(
                teacher, learned, dataset, dataset_config, protocol, route, self.device, self.say, partial=partial
            )
        return self._taught[name]

    def _member(
        self,
        cell: Cell,
        teachers: Sequence[Lecturer],
        spec: DataSpec,
        work: Path,
        identity: Mapping[str, Any],
        stack: ExitStack,
    ) -> Member:
        """A member at the epoch of its checkpoint; at the beginning, which is told, if it cannot be gone on with."""
        title, method = str(cell), bind(cell, teachers, spec)
        with seeded(cell.seed, "training"):
            member = Member(title, method, work, torch.get_rng_state(), identity)
        try:
            member.resume()
        except Unusable as error:
            self.say(f"{title} is begun anew: {error}.")
            with writing_to(work, CHOOSE_WORK):
                member.checkpoint.unlink(missing_ok=True)
            member.method = bind(cell, teachers, spec)
        member.log = stack.enter_context(self._logs.of(title, work.name, cell.config, member.curves))
        return member

    def _fit(
        self,
        members: Sequence[Member],
        dataset: Dataset,
        seed: int,
        teachers: Sequence[FrozenTeacher],
        route: Route,
        crew: Crew | None = None,
    ) -> list[Fitted | Exception]:
        blind = all("no_data" in member.method.needs for member in members)
        protocol = members[0].method.protocol
        share = Share(crew.rank, crew.size) if crew else WHOLE
        data = ArrayData(
            replace(dataset, workers=number_of(dataset.workers, share.size)),
            protocol.batch_size,
            seed,
            epochs=protocol.epochs,
            eval_batch_size=eval_batch(dataset),
            drop_last=protocol.drop_last,
            blind=blind,
            moved=task_for(dataset.spec).moved,
            placed=self._placed.setdefault(id(dataset), {}),
            share=share,
        )
        with seeded(seed, "training"), attempt(self.work / "cells", len(members)):
            results = fit(
                members,
                data,
                route,
                trainer=profiled(self._places[self.rank].settings, self.work / "profiles", members[0].title),
                teachers=teachers,
                checkpoint_seconds=self.checkpoint_seconds,
                on_epoch=self.on_epoch,
                crew=crew,
            )
        pairs = zip(members, results, strict=True)
        return [_whole(member, result, data) for member, result in pairs]

    @contextmanager
    def _locked(self, lock: Path, what: str, wait: bool) -> Iterator[Path]:
        """The working folder of a cell or teacher, for this process alone.

        Two locks, as processes may share the place of what is made but not that of what is unfinished, or the reverse.
        """
        folder = self.work / "cells" / lock.stem
        where = CHOOSE_CACHE if lock.is_relative_to(self.cache) else CHOOSE_RESULTS
        with (
            locked(lock, what, wait=wait, say=self.say, otherwise=where),
            locked(_lock(folder), what, wait=wait, say=self.say, otherwise=CHOOSE_WORK),
        ):
            with writing_to(folder, CHOOSE_WORK):
                folder.mkdir(exist_ok=True)
            yield folder


def _whole(member: Member, result: Fitted | Exception, data: ArrayData) -> Fitted | Exception:
    """The result of a training that was as long as its protocol says; else what is wrong."""
    if isinstance(result, Exception):
        return result
    method = member.method
    epochs = method.epoch + 1 if result.reason else method.protocol.epochs
    there = 0 if method.idle else data.images_seen(epochs, method.needs)
    seen = method.images_seen - method.taken
    if seen == there:
        return result
    return UserError(
        f"{member.title} saw {seen} training images, and {epochs} epochs of its data have "
        f"{there}: take away the setting of trainer that cuts training short."
    )


def _steps(protocol: Protocol, dataset: Dataset) -> int:
    """In all epochs."""
    return protocol.epochs * protocol.batches(dataset.spec.epoch_size())


def _lock(folder: Path) -> Path:
    """Of a working folder."""
    return folder.with_name(f"{folder.name}.lock")


def _of(pool: Pool, cell: Cell) -> list[tuple[Teacher, Taught]]:
    """The teachers of a cell, in its order."""
    return [pool[name_of(recipe)] for recipe, _ in cell.teachers]


def lecturers(pool: Sequence[tuple[Teacher, Taught]]) -> list[Lecturer]:
    """Teachers as methods are bound to them."""
    return [Lecturer(taught.info.name, taught.frozen, taught.known) for _, taught in pool]


def _path(route: Route, cohort: int, member: Member, taught: Sequence[Taught], trainer: Mapping[str, Any]) -> str:
    """How a cell was computed: its route, what of that could not be had, and what was asked of the device."""
    failed = {
        "student not compiled": not_compiled(member.method, route),
        "teacher not as said": next((each.frozen.failed for each in taught if each.frozen.failed), None),
    }
    notes = [f"{what} ({why})" for what, why in failed.items() if why]
    if len(member.devices) > 1:
        notes.append(f"devices: {', then '.join(map(str, member.devices))}")
    asked = {key: trainer.get(key) for key in ("deterministic", "benchmark")}
    notes += [f"{key}={str(value).lower()}" for key, value in asked.items() if value is not None]
    return "; ".join([route.describe(cohort, teacher=bool(taught)), *notes])
