"""The method contract: one class per published idea; loop, precision, optimisers and evaluation exist once, here.

A method file states the paper's equation and nothing else::

    class KD(Method):
        leaf, paper = "logits/softened-labels", "hinton2015distilling"
        terms = ("ce", "kd")

        def __init__(self, temperature: float = 4.0, **kwargs):
            super().__init__(**kwargs)
            self.temperature = temperature

        def losses(self, s, t, batch):
            return {"ce": cross_entropy(s.logits, batch.y), "kd": kl(s.logits, t.logits, self.temperature)}

``s`` and ``t`` are what student and teacher say of a batch: ``s.logits``, ``s.embed``, or any other tap that the method
declares (`kdbench.taps`). What `losses` returns are *terms*, scalars by name; their weights belong to the config.

A class declares where it stands and what it asks for, with defaults for such a method as this one:

=============  ====================================================================================
``leaf``, ...  its place in the survey (``paper``, ``title``, ``extension``, ``survey``)
``terms``      names of all the terms that it may return
``taps``       activations read of the student and of the teacher, beside ``logits``
``needs``      ``teacher`` or ``teachers``, frozen; ``labels``; ``no_data``; ``peers``, more networks like the student;
               any other word is a *stream*: samples beside the batch, as ``batch["unlabelled"]`` or ``batch["again"]``,
               the same in another view. What it does not declare is not shown: ``y`` is -1 without ``labels``.
``tasks``      those that it serves; the *task* comes with the data, and says what is asked of a network and how that is
               measured (`kdbench.tasks.base`, also for those to come: detection, translation, video)
=============  ====================================================================================

Only what a paper does differently is overridden; each hook has a working default. Before training:

==============  =====================================================================================
``build``       adapters, heads, generators, from probed shapes
``stages``      successive stages of training (initialise, then distil), and what happens when one begins; asked once
                for each *experience*, a part of the data that arrives at one time (mostly there is one, with all)
``players``     who is optimised in the stage in course, and by what, if not by the protocol's optimiser
==============  =====================================================================================

For each batch, in this order:

==============  =====================================================================================
``batch``       what becomes of it before it is used (rotate, mix, replay, synthesise)
``turns``       the order of play: ``yield player, terms`` is one optimiser step (where gradients of several batches are
                averaged, all players step at the end of the last of them). By default one turn of the student, with:
``teach``       who teaches: the frozen teacher, several of them, a past self
``losses``      the equation
``after_step``  averages, memory banks
==============  =====================================================================================

After each epoch ``bounds`` says what follows for the mutual information of teacher and student. And ``deployed`` is the
network that is evaluated, counted and shipped.

What the bench offers beside them, one line each; whoever writes DKD meets none:

===================  ================================================================================
``self.teachers``    the `Spec` of each teacher; ``t.each`` has one `Out` per teacher
``teacher_out``      also of a network of the method's own that teaches: ``teacher_out(x, self.past)``
`Snapshot`           a frozen copy of the student: a past self, an average of weights
``self.spawn``       another network of the student's architecture
``self.experience``  the part of the data in course, with the number of old and of all classes seen
``self.take``        training samples by position; ``self.positions()`` are those at hand
``self.keep``        exemplars, ``self.kept``, for when their experience is over; no more than the scenario's memory
``self.task``        ``self.task.loss`` is the supervised loss, whatever the task is
``self.rng``         random numbers, which go on where they were after a kill; of the CPU: draw there, then move
===================  ================================================================================

Of a method's own attributes modules and buffers are in the checkpoint; no other outlives a kill. Cells in lockstep
share batches and teachers, so none of these is changed in place. CONTRIBUTING.md names methods to read for each word.

Outside the bench a method is an ordinary LightningModule, for networks of anyone's:
``pl.Trainer(max_epochs=240).fit(KD(student=net, teacher=big), loader)``, ``trainer.test(method, loader)``,
``KD.load_from_checkpoint(path, student=net, teacher=big)``.
"""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, runtime_checkable

import hydra
import pytorch_lightning as pl
import torch
from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError, to_jsonable_python
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import Diverged, DoesNotFit, UserError
from kdbench.foreign import plain
from kdbench.plan import Entry, Experience, Stage, experiences_of, plan_of
from kdbench.protocol import Protocol as TrainingProtocol
from kdbench.rehearsal import check_last_batch, check_shares, check_terms, check_turn
from kdbench.settings import Ramp, WeightOrRamp, checked
from kdbench.snapshot import Snapshot
from kdbench.tally import Tally
from kdbench.taps import Out, Spec, Taps, probe
from kdbench.tasks import Classification, Meter, Task, task_for

Tapping = Callable[[nn.Module, Tensor, tuple[str, ...]], dict[str, Tensor]]
"""(network, images, tap names) -> those taps and ``logits``, see `kdbench.taps.Net`."""

NEEDS = frozenset({"teacher", "teachers", "labels", "no_data", "peers"})
"""What a method may ask of the bench: a frozen teacher or several, ground truth, *no* data, copies of the student. Any
other word names a stream beside the batch."""
OFFERED = frozenset({"bind", "check_weights", "close_epoch", "experience", "finish_epoch", "idle", "keep", "meter"})
OFFERED |= {
    "epoch_bounds",
    "positions",
    "scores",
    "spawn",
    "stage",
    "start",
    "student_out",
    "take",
    "teacher",
    "teacher_out",
    "term_means",
}
"""What a method may call or is called by: none of its own attributes may have such a name."""
GIVEN = frozenset({"data", "rng", "student", "task", "teachers"})
"""What `Method.build` finds, and leaves as it is."""
BOUND = frozenset({"data", "epoch", "forwards", "images_seen", "meters", "student", "taken", "teachers"})
"""What `Method.bind` sets."""
_NO_SETTINGS = ("self", "student", "teacher")
"""What a constructor is given that is no setting."""
SPLITS = ("test", "val")
"""Of evaluation."""


@runtime_checkable
class Samples(Protocol):
    """Training data by position, as `Method.take` asks for them."""

    def positions(self, experience: int) -> Tensor:
        """Of the samples that arrive with an experience (all, where data come whole), int64, (N,), ascending."""
        ...

    def take(self, index: Tensor, epoch: int, *, plain: bool) -> Batch:
        """These samples as they are seen in an epoch, or without augmentation."""
        ...


class Crew(Protocol):
    """Processes that train the same method, each on its share of every batch; see `kdbench.engine.crew`."""

    def terms(self, terms: Mapping[str, Tensor], samples: int) -> dict[str, Tensor]:
        """The terms of the whole batch, of those of this share of so many samples."""
        ...

    def gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make the gradients of this share those of the whole batch, in place."""
        ...


@dataclass(frozen=True)
class Player:
    """Whoever is optimised: parameters, and an optimiser config of its own where the protocol's does not apply."""

    name: str
    parameters: Sequence[nn.Parameter]
    optimizer: Mapping[str, Any] | None = None


class _Group(NamedTuple):
    """Batches whose gradients are averaged: the share of one in them, and whether it is the last."""

    share: float
    ends: bool


class Method(pl.LightningModule):
    """Base of all methods; see the module's docstring for the hooks.

    Attributes:
        epoch: finished epochs, that is the 0-based number of the one in course. Unlike Lightning's ``current_epoch`` it
            is right from the moment a checkpoint is loaded, when the first batch of a resumed run is fetched.
        forwards: images passed through the student and the teacher while training.
        images_seen: training images drawn.
        tap_with: how a network in training is asked for taps; the bench may put a compiled way here.
        optimize_with: what becomes of an optimiser's config before it is made; the bench may ask for a fused one.
        crew: who else trains it, on other shares of the same batches; None: nobody.
        task: what is asked of the network, classification until `bind` says otherwise.
        samples: where `take` finds training samples.
        kept: positions of the exemplars, int64, ascending.
        taken: images looked at through `take`, which count as seen.

    Args:
        weights: weight of each loss term: a number, or ``{start, end, until, curve}`` for a ramp (see `Ramp`). Exactly
            the names in `terms`; an unknown, missing or unused one is an error before training starts.
        student, teacher: networks, for use without the bench, which hands them to `bind`; a sequence of teachers for a
            method that needs several. Plain ones have the taps ``logits`` and, where they end in one linear layer,
            ``embed``; others have a method ``tap`` (see `kdbench.taps.Net`).
        protocol: optimiser and schedule; default: the one of `Protocol`.
    """

    leaf: ClassVar[str]
    paper: ClassVar[str]
    title: ClassVar[str]
    extension: ClassVar[bool] = False
    """True for methods that the survey does not cite."""
    control: ClassVar[Literal["scratch", "smoothing", "kd"] | None] = None
    """Its role where it stands in every table of its tasks: the student from ``scratch``, label ``smoothing``, plain
    ``kd``, or what takes their place (replay, an actor-critic, policy distillation)."""
    needs: ClassVar[frozenset[str]] = frozenset({"teacher", "labels"})
    """See `NEEDS`."""
    tasks: ClassVar[frozenset[str]] = frozenset({"classification"})
    """Names of the tasks that it serves, see `kdbench.tasks.base.Task.name`."""
    added: ClassVar[Mapping[str, Any]] = {}
    """Settings that came after the first records, with the values that mean what was done before: there they stay out
    of a cell's identity, so that no committed id moves, and where a config has none they are what it means."""
    earlier: ClassVar[frozenset[str]] = frozenset()
    """Hashes of earlier code of the class, as records have them, that did the same with the same settings: what was
    made by it still stands."""
    survey: ClassVar[Mapping[str, str]] = {}
    """What the survey's table says of such a method: one short entry for each column that ``taxonomy.yaml`` gives the
    table of `leaf`, by the column's key. Reports print it."""

    _given_settings: Mapping[str, Any] = {}
    """What the constructor was given, but for networks: what Lightning's checkpoints say of it."""
    taps = Taps()
    terms: tuple[str, ...] = ("ce",)
    """These two are set in ``__init__`` where they follow from settings."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Method:
        method: Method = super().__new__(cls)
        signature = inspect.signature(cls.__init__)
        with suppress(TypeError):  # what __init__ says better
            given = signature.bind(method, *args, **kwargs).arguments
            for rest in [each.name for each in signature.parameters.values() if each.kind is each.VAR_KEYWORD]:
                given |= given.pop(rest, {})
            # behind nn.Module, which is not initialised yet
            vars(method)["_given_settings"] = {key: value for key, value in given.items() if key not in _NO_SETTINGS}
        return method

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = checked(cls.__init__)  # type: ignore[method-assign]

    @checked
    def __init__(
        self,
        *,
        weights: Mapping[str, WeightOrRamp] | None = None,
        student: nn.Module | None = None,
        teacher: nn.Module | Sequence[nn.Module] | None = None,
        protocol: TrainingProtocol | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.protocol = protocol or TrainingProtocol()
        self._given = (student, teacher)  # a tuple hides the networks from nn.Module until bind() registers the student
        self._weights = None if weights is None else {name: _ramp(weight) for name, weight in weights.items()}
        self._bound = False
        self._first_optimizer = 0
        self.rng = torch.Generator()
        self.tap_with: Tapping = _tap
        self.optimize_with: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict
        self.crew: Crew | None = None
        self.task: Task = Classification()
        self.samples: Samples | None = None
        self.kept = torch.zeros(0, dtype=torch.int64)
        self._optimizer_of: dict[tuple[int, str], int] = {}
        self._position = -1  # of the entry of the plan that was begun last: all the state it has
        self._asked: Experience | None = None

    # ---- what a method says -------------------------------------------------------------------------------------

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        """Create adapters and other trainable parts as attributes.

        Args:
            teacher: None where none is needed; the first of `teachers` where several are.
        """

    def stages(self) -> Sequence[Stage]:
        return (Stage("train"),)

    def batch(self, batch: Batch) -> Batch:
        return batch

    def teach(self, batch: Batch) -> Out | None:
        """Targets for the batch; by default the outputs of the frozen teacher or teachers, without gradient."""
        return self.teacher_out(batch.for_teacher.x) if self._teachers else None

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        """Unweighted, named terms of this step: scalars. `t` is what `teach` returned."""
        raise NotImplementedError

    def players(self) -> Sequence[Player]:
        """By default the student and its adapters, as one player."""
        return (Player("student", [parameter for parameter in self.parameters() if parameter.requires_grad]),)

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """One batch of play: each yielded (player, terms) is one backward pass and one step of that player."""
        yield "student", self.losses(self.student_out(batch.x), self.teach(batch), batch)  # type: ignore[arg-type]

    def after_step(self, batch: Batch) -> None:
        """Called once per batch, after the last turn."""

    def bounds(self, means: Mapping[str, float]) -> Mapping[str, float]:
        """Lower bounds on I(T; S), in nats, by name, that follow from the means of an epoch's terms; for the curves."""
        return {}

    def deployed(self) -> nn.Module:
        """What is evaluated and shipped."""
        return self.student

    # ---- what a method may use ----------------------------------------------------------------------------------

    @property
    def teacher(self) -> nn.Module:
        """The frozen teacher (the first of several): never part of ``state_dict``, ``parameters`` or DDP."""
        assert self._teachers, f"{type(self).__name__} declares no need of a teacher"
        return self._teachers[0]

    @property
    def stage(self) -> str:
        """Name of the current stage."""
        return self._entry.stage.name

    @property
    def experience(self) -> Experience:
        """The part of the data in course; also in `stages`, the one that is asked about."""
        return self._asked or self._entry.experience

    @property
    def idle(self) -> bool:
        """Whether nothing is ever trained: the plan has no epochs."""
        return not any(entry.length for entry in self._plan)

    def student_out(self, x: Tensor, net: nn.Module | None = None) -> Out:
        """A counted forward pass of the student (or of another trained `net` of its architecture), with its taps."""
        self.forwards["student"] += len(x)
        return Out(self.tap_with(net or self.student, x, self._student_taps))

    def teacher_out(self, x: Tensor, net: nn.Module | None = None, *, grad: bool = False) -> Out:
        """A counted forward pass of the frozen teacher, of all where there are several (see `Out.each`).

        Args:
            net: an own network of the student's architecture that teaches instead (a `Snapshot`), with the student's
                taps.
            grad: gradients flow through it to `x`.
        """
        asked = [(net, self._student_taps)] if net else list(zip(self._teachers, self._teacher_taps, strict=True))
        self.forwards["teacher"] += len(x) * len(asked)
        # no_grad rather than inference_mode: inference tensors cannot be saved for the student's backward pass
        with nullcontext() if grad else torch.no_grad():
            first, *others = (Out(each.tap(x, taps)) for each, taps in asked)  # type: ignore[operator]
        return Out(first.taps, tuple(others)) if others else first

    def spawn(self, k: int) -> nn.Module:
        """Another freshly initialised network of the student's architecture (the `k`-th, k >= 1)."""
        return self._spawn(k)

    def positions(self, experience: int | None = None) -> Tensor:
        """Of the training samples that arrived with an experience, by default the one in course, int64, ascending."""
        return self._samples().positions(self.experience.number if experience is None else experience)

    def take(self, index: Tensor, *, plain: bool = False) -> Batch:
        """Training samples at hand or kept, as this epoch shows them, or without augmentation; they count as seen.

        Raises:
            UserError: one of them belongs to a past experience and was not kept.
        """
        gone = ~torch.isin(index, torch.cat([self.positions(), self.kept.to(index.device)]).to(index.device))
        if gone.any():
            raise UserError(
                f"{type(self).__name__} takes sample {int(index[gone][0])}, which belongs to a past experience and was "
                "not kept: take positions() or kept alone."
            )
        self.images_seen += len(index)
        self.taken += len(index)
        return self._samples().take(index, self.epoch, plain=plain).seen_by(self.needs)

    def keep(self, index: Tensor) -> None:
        """From now on these samples, at hand or kept before, are the exemplars.

        Raises:
            UserError: they are more than the scenario's memory, or not to be had any more.
        """
        index = index.cpu().unique()
        if len(index) > self.data.memory:
            raise UserError(
                f"{type(self).__name__} keeps {len(index)} samples, and there is memory for {self.data.memory}: have "
                "it keep fewer, or raise dataset.scenario.memory."
            )
        gone = ~torch.isin(index, torch.cat([self.positions().cpu(), self.kept]))
        if gone.any():
            raise UserError(
                f"{type(self).__name__} keeps sample {int(index[gone][0])} of a past experience, which it had let go: "
                "keep positions() or kept alone."
            )
        self.kept = index

    def _samples(self) -> Samples:
        if self.samples is None:
            raise UserError(
                f"{type(self).__name__} takes samples by position: train it with a data module that has them, such as "
                "kdbench.data.module.ArrayData."
            )
        return self.samples

    # ---- binding ------------------------------------------------------------------------------------------------

    def bind(
        self,
        student: nn.Module,
        teacher: nn.Module | Sequence[nn.Module] | None,
        data: DataSpec,
        *,
        names: Sequence[str] = ("student",),
        classes: Sequence[tuple[int, ...] | None] = (),
        spawn: Callable[[int], nn.Module] | None = None,
        seed: int = 0,
    ) -> Method:
        """Attach networks, probe their shapes, build adapters and check every declaration.

        Args:
            teacher: one or several; those that the method does not need are left alone.
            names: of the student and of each teacher.
            classes: for each teacher what its outputs mean, as the student's classes; None: the same, all in order.

        Raises:
            DoesNotFit: the pair lacks a tap, a shape, a class or a stream that the method needs.
            UserError: weights do not match the terms, or a needed teacher is absent.
        """
        name = type(self).__name__
        words = OFFERED | (frozenset() if "_teachers" in vars(self) else BOUND)  # it may be bound a second time
        self._check_words(words)
        self.task = task_for(data)
        self._check_offers(data)
        offered = [] if teacher is None else [teacher] if isinstance(teacher, nn.Module) else list(teacher)
        wanted = None if "teachers" in self.needs else 1 if "teacher" in self.needs else 0
        if wanted != 0 and not offered:
            raise UserError(f"{name} needs a teacher: pass teacher=NETWORK.")
        self._teachers = tuple(offered[:wanted])
        self.check_weights()
        self.data = data
        self.student = student.train()  # Lightning keeps the mode that a network comes in
        self._student_name = names[0]
        self._spawn = spawn or (lambda k: _reset(copy.deepcopy(student)))
        student_spec = probe(names[0], student, data.shape)
        shown = data.shape_for_teacher or data.shape
        self._student_taps = student_spec.resolve(self.taps.student)
        specs = []
        for k, each in enumerate(self._teachers):
            each.eval().requires_grad_(False)
            spec = probe(names[k + 1] if k + 1 < len(names) else "teacher", each, shown)
            specs.append(replace(spec, classes=classes[k] if k < len(classes) else None))
        self.teachers = tuple(specs)
        self._teacher_taps = tuple(spec.resolve(self.taps.teacher) for spec in specs)
        self._check_classes(student_spec, data)
        before = {word: getattr(self, word) for word in GIVEN}
        self.build(student_spec, specs[0] if specs else None, data)
        self._check_words(words - GIVEN, before)
        self.rng.manual_seed(seed)
        self.forwards = {"student": 0, "teacher": 0}
        self.images_seen = self.taken = 0
        self.kept = torch.zeros(0, dtype=torch.int64)
        self.epoch = 0
        self._optimizer_of = {}
        self._plan_for(self.protocol.epochs)  # too few epochs are noticed now
        self.meters = nn.ModuleList([self.task.meter(data) for _ in SPLITS])
        for split in SPLITS:
            self.meter(split).split = split
        self._played: dict[tuple[int, str], frozenset[str]] = {}
        check_last_batch(self, data)
        if data.mixed:
            check_shares(self, data)
        self._bound = True
        return self

    def _check_words(self, words: frozenset[str], before: Mapping[str, Any] | None = None) -> None:
        """Raises `UserError` if the method calls something of its own by one of these words of the contract, or if what
        there was before is not there any more."""
        own = {*vars(self), *self._modules, *self._parameters, *self._buffers} & words
        own |= {word for word, value in (before or {}).items() if getattr(self, word) is not value}
        if own:
            word = min(own)
            raise UserError(
                f"{type(self).__name__} sets self.{word}, which is a word of kdbench.method.Method with a meaning of "
                "its own: choose another name."
            )

    def _check_offers(self, data: DataSpec) -> None:
        """Raises `DoesNotFit` if the method serves another task, or needs what the data do not have."""
        name = type(self).__name__
        if self.task.name not in self.tasks:
            known = ", ".join(sorted(self.tasks))
            raise DoesNotFit(f"{name} does not support the task '{self.task.name}', only {known}.")
        absent = sorted(set(self.needs) - NEEDS - set(data.streams))
        if absent:
            offered = ", ".join(data.streams)
            raise DoesNotFit(
                f"{name} needs '{absent[0]}', which is none of {', '.join(sorted(NEEDS))}, and {data.name} offers no "
                f"stream of that name (only {offered}): choose a scenario that does, as scenario=semi_supervised does "
                "of 'unlabelled'."
            )
        if "labels" in self.needs and not data.labelled:
            raise DoesNotFit(
                f"{name} needs 'labels', and the training images of {data.name} have none here: choose a method that "
                "needs none (`kdbench methods` says what each needs), or a scenario with labels."
            )

    def _check_classes(self, student: Spec, data: DataSpec) -> None:
        """Raises `DoesNotFit` if the outputs of student and teachers cannot be compared."""
        name, shape = type(self).__name__, student.shapes["logits"]
        for spec in self.teachers:
            theirs = spec.shapes["logits"]
            if spec.classes is None and theirs != shape:
                raise DoesNotFit(
                    f"the teacher has {theirs[0]} classes, the student {shape[0]}: train a teacher for this data set."
                )
            if spec.classes is not None and "teachers" not in self.needs:
                raise DoesNotFit(
                    f"{name} has one teacher, and {spec.name} knows {len(spec.classes)} of the {data.num_classes} "
                    "classes: have it learn all (teacher.dataset.classes), or choose a method for several teachers."
                )
        if self.teachers and all(spec.classes is not None for spec in self.teachers):
            known = {label for spec in self.teachers for label in spec.classes or ()}
            if len(known) < data.num_classes:
                raise DoesNotFit(
                    f"the {len(self.teachers)} teachers of {name} know {len(known)} of the {data.num_classes} classes: "
                    "add teachers of the others with teachers=[...]."
                )

    def check_weights(self, where: str | None = None) -> None:
        """Raises `UserError` unless there is a weight for each term; `where` is the method's place in a config."""
        given = self._weights if self._weights is not None else {term: Ramp(1.0, 1.0) for term in self.terms}
        wrong, missing = sorted(set(given) - set(self.terms)), sorted(set(self.terms) - set(given))
        if wrong or missing:
            what = f"unknown weight '{wrong[0]}'" if wrong else f"no weight for '{missing[0]}'"
            mend = ""
            if where:
                key = f"{where}.weights.{(wrong or missing)[0]}"
                mend = f": drop it (~{key})" if wrong else f": give it one (+{key}=1.0)"
            raise UserError(
                f"{where or type(self).__name__}: {what}; with these settings its terms are "
                f"{', '.join(self.terms)}{mend}."
            )
        self._weights = given

    def configure_model(self) -> None:
        """Lightning's hook: binds the networks given to the constructor when the bench has not done so.

        Without a trainer, in ``load_from_checkpoint``, that is left to `on_load_checkpoint`, which knows the data.
        """
        if self._trainer is None:
            return
        if not self._bound:
            self._bind_given(_data_spec(self.trainer, self._student_given()))
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.samples is None and isinstance(datamodule, Samples):
            self.samples = datamodule

    def _student_given(self) -> nn.Module:
        student, _ = self._given
        if student is None:
            raise UserError(f"{type(self).__name__} has no student: pass student=NETWORK.")
        return student

    def _bind_given(self, data: DataSpec) -> None:
        """Bind the constructor's networks, whatever they know of taps."""
        student, teacher = self._student_given(), self._given[1]
        given = [] if teacher is None else [teacher] if isinstance(teacher, nn.Module) else list(teacher)
        shown = data.shape_for_teacher or data.shape
        names = [f"the student ({type(student).__name__})", *(f"the teacher ({type(each).__name__})" for each in given)]
        teachers = [plain(name, each, shown) for name, each in zip(names[1:], given, strict=True)]
        self.bind(plain(names[0], student, data.shape), teachers or None, data, names=names)

    # ---- training -----------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One optimiser for every player of every entry of the plan that trains."""
        self._optimizer_of = {}
        optimizers: list[torch.optim.Optimizer] = []
        position = self._position
        for index, entry in enumerate(self._plan):
            if not entry.length:
                continue
            self._position = index
            for player in self.players():
                self._optimizer_of[index, player.name] = len(optimizers)
                config = dict(player.optimizer or self.protocol.optimizer)
                if player.optimizer is None:
                    config["lr"] = self.protocol.lr(self._student_name)
                optimizer = hydra.utils.instantiate(dict(self.optimize_with(config)), list(player.parameters))
                for group in optimizer.param_groups:
                    group["initial_lr"] = group["lr"]
                    group["scheduled"] = player.optimizer is None
                optimizers.append(optimizer)
        self._position = position
        return optimizers

    def on_fit_start(self) -> None:
        self.start(self.trainer.max_epochs or 1)

    def start(self, epochs: int) -> None:
        """Get ready for `epochs` epochs in all, on the device where the module lies now."""
        for teacher in self._teachers:
            teacher.to(self.device)
        if epochs != self._planned:
            position = self._position  # of a checkpoint, whose entries began before
            self._plan_for(epochs)
            self._position = position

    def _plan_for(self, epochs: int) -> None:
        stages = []
        for experience in experiences_of(self.data.experiences or (self.data.num_classes,)):
            self._asked = experience
            stages.append((experience, tuple(self.stages())))
        self._asked = None
        self._plan, self._planned = plan_of(stages, epochs), epochs
        self._position = -1

    @property
    def _entry(self) -> Entry:
        """The one in course; before training the first."""
        return self._plan[max(self._position, 0)]

    def _begin(self, due: Callable[[Entry], bool]) -> None:
        """Begin the entries of the plan that are due, one after the other."""
        while self._position + 1 < len(self._plan) and due(self._plan[self._position + 1]):
            self._position += 1
            for (position, _), index in self._optimizer_of.items():
                if position < self._position:  # what the optimisers of finished entries remember is of no use to anyone
                    self._optimizers()[index].state.clear()
            if begin := self._entry.stage.begin:
                modes = [(module, module.training) for module in self.modules()]
                self.eval()
                with torch.enable_grad():
                    begin()
                for module, training in modes:
                    module.training = training

    def on_train_epoch_start(self) -> None:
        epoch = self.epoch
        self._begin(lambda entry: entry.start <= epoch)
        start, length = self._entry.start, self._entry.length
        assert self._weights is not None
        self._weight = {name: ramp.at(epoch - start, length) for name, ramp in self._weights.items()}
        factor = self.protocol.schedule.factor(epoch - start, length) if length else 1.0
        for (position, _), index in self._optimizer_of.items():
            if position == self._position:
                for group in self._optimizers()[index].param_groups:
                    group["lr"] = group["initial_lr"] * (factor if group["scheduled"] else 1.0)
        for teacher in self._teachers:
            teacher.eval()
        self._waiting: dict[str, Any] = {}
        self._tally = Tally()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.is_last_batch:
            self.close_epoch()

    def close_epoch(self) -> None:
        """Behind the last batch of an epoch, before it is evaluated: what belongs there by the plan."""
        # what has diverged ends with this epoch; that is asked last, as the device is waited for
        self._begin(lambda entry: entry.closes and entry.start == self.epoch + 1 and not self._tally.lost())

    def training_step(self, batch: Batch | Sequence[Tensor], batch_idx: int) -> None:
        if self.idle:
            return
        batch = Batch.of(batch).seen_by(self.needs)
        self.images_seen += batch.shown(self.needs)
        samples = len(batch)
        group = self._group(batch_idx) if self.protocol.accumulate > 1 else None
        batch = self.batch(batch)
        optimizers = self._optimizers()
        for player, terms in self.turns(batch):
            if (self._position, player) not in self._played:
                players = [name for position, name in self._optimizer_of if position == self._position]
                check_turn(type(self).__name__, player, players, terms, self.terms)
                self._played[self._position, player] = frozenset(terms)
            if self.crew:
                terms = self.crew.terms(terms, samples)
            optimizer = optimizers[self._optimizer_of[self._position, player]]
            loss = reduce(add, (self._weight[name] * value for name, value in terms.items()))
            if group:
                # into the player's own parameters alone: those of others wait for gradients of their own turns
                own = [parameter for parameter in _parameters(optimizer) if parameter.requires_grad]
                self._backward(group.share * loss, inputs=own)
                self._waiting[player] = optimizer
            else:
                optimizer.zero_grad(set_to_none=True)
                self._backward(loss)
                self._step(optimizer)
            self._tally.add(terms)
        if group and group.ends:
            scale = self._scale()
            for optimizer in self._waiting.values():
                if (now := self._scale()) != scale:  # the step of the player before has moved it
                    for parameter in _parameters(optimizer):
                        parameter.grad = None if parameter.grad is None else parameter.grad * (now / scale)
                self._step(optimizer)
                optimizer.zero_grad(set_to_none=True)
            self._waiting.clear()
        if not self._tally.steps and self._played.keys() == self._optimizer_of.keys():
            check_terms(type(self).__name__, self.terms, self._played.values())
        self._tally.steps += 1
        self.after_step(batch)

    def _group(self, batch_idx: int) -> _Group:
        """The group of batches that a batch makes a step with."""
        batches = self.protocol.accumulate
        start = batch_idx - batch_idx % batches
        if self.data.n_train:
            length, seen = self.protocol.batch_size, self.protocol.images(self._epoch_size())
        else:  # a loader of the user's, which says how many batches it has
            length, seen = 1, int(self.trainer.num_training_batches)
        end = min((start + batches) * length, seen)
        size = min(length, seen - batch_idx * length)
        return _Group(share=size / (end - start * length), ends=(batch_idx + 1) * length >= end)

    def _epoch_size(self) -> int:
        return self.data.epoch_size(self.experience.number)

    def _backward(self, loss: Tensor, **kwargs: Any) -> None:
        with torch.autocast(self.device.type, enabled=False):  # gradients have the types of what they are taken of
            self.manual_backward(loss, **kwargs)

    def _step(self, optimizer: Any) -> None:
        if self.crew:
            self.crew.gradients(_parameters(optimizer))
        if self.protocol.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(_parameters(optimizer), self.protocol.clip_norm * self._scale())
        optimizer.step()

    def _scale(self) -> float:
        """What gradients are multiplied by until an optimiser's step, in 16-mixed."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        return scaler.get_scale() if scaler else 1.0

    def on_train_epoch_end(self) -> None:
        means = self.term_means()
        self.log_dict(means | self.epoch_bounds(means))
        self.finish_epoch(means)

    def term_means(self) -> dict[str, float]:
        """The mean of every term over the steps of this epoch, as ``loss/TERM``."""
        return {f"loss/{name}": value for name, value in self._tally.means().items()}

    def epoch_bounds(self, means: Mapping[str, float]) -> dict[str, float]:
        """What follows from the epoch's `term_means`, as ``bound/NAME``."""
        told = self.bounds({name.removeprefix("loss/"): value for name, value in means.items()})
        return {f"bound/{name}": value for name, value in told.items()}

    def finish_epoch(self, means: Mapping[str, float]) -> None:
        """Raises `Diverged` if one of the epoch's `term_means` is not finite; else the epoch counts."""
        if not all(map(math.isfinite, means.values())):
            raise self._diverged()
        self.epoch += 1

    def _diverged(self) -> Diverged:
        """Which term was lost first, and what most likely made it so."""
        lost, before = self._tally.lost(), self._tally.finite_means()
        first = min(lost.values())
        sizes = {name: abs(self._weight[name] * mean) for name, mean in before.items()}
        # where several are lost in one step the networks were, by the step before: then the largest term is to blame
        term = max((name for name in lost if lost[name] == first), key=sizes.__getitem__)
        player, terms = next((name, terms) for (_, name), terms in self._played.items() if term in terms)
        largest = max(terms, key=sizes.__getitem__)
        share = sizes[largest] / (sum(sizes[name] for name in terms) or 1.0)
        own = next(p.optimizer for p in self.players() if p.name == player)
        rate = f"the learning rate of its {player}" if own else "the learning rate (protocol.optimizer.lr)"
        if self.epoch == 0 and first < self.protocol.accumulate:
            cause = f"nothing was learned before, so mend the settings of '{term}', or the data"
        elif share > 0.9 and len(terms) > 1:
            cause = f"'{largest}' made {share:.0%} of the loss before, so lower its weight or {rate}"
        else:
            cause = f"lower {rate}"
        if self.protocol.precision == "16-mixed":
            cause += ", or take a precision that overflows later (protocol.precision=bf16-mixed)"
        return Diverged(term, self.epoch, first, cause)

    def _optimizers(self) -> list[Any]:
        optimizers = self.optimizers()
        return optimizers[self._first_optimizer :] if isinstance(optimizers, list) else [optimizers]

    # ---- evaluation ---------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the deployed network."""
        return self.deployed()(x)

    def on_validation_epoch_start(self) -> None:
        for split in SPLITS:
            self.meter(split).experience = self.experience.number
            self.meter(split).begin()
        self._judged: set[str] = set()

    def validation_step(self, batch: Batch | Sequence[Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loaders are [test] or [test, val]."""
        split = SPLITS[dataloader_idx]
        self._judged.add(split)
        self.meter(split).update(self.deployed(), Batch.of(batch))

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.scores())

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def on_test_epoch_end(self) -> None:
        self.on_validation_epoch_end()

    def test_step(self, batch: Batch | Sequence[Tensor], batch_idx: int) -> None:
        """Of one loader, as ``test/MEASURE``; the bench evaluates in `validation_step`."""
        self.validation_step(batch, batch_idx)

    def scores(self) -> dict[str, Tensor]:
        """What was evaluated since `on_validation_epoch_start`, as ``test/MEASURE`` and ``val/MEASURE``."""
        return {
            f"{split}/{name}": value
            for split in SPLITS
            if split in self._judged
            for name, value in self.meter(split).compute().items()
        }

    def meter(self, split: str) -> Meter:
        """Of ``test`` or ``val``."""
        meter = self.meters[SPLITS.index(split)]
        assert isinstance(meter, Meter)
        return meter

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["kdbench"] = {
            "epoch": self.epoch,
            "rng": self.rng.get_state(),
            "forwards": dict(self.forwards),
            "images_seen": self.images_seen,
            "taken": self.taken,
            "position": self._position,
            "kept": self.kept,
        }
        if self._given[0] is not None:  # outside the bench, which knows these itself
            checkpoint["kdbench"]["data"] = to_jsonable_python(self.data)
            checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY] = settings = {}
            for key, value in self._given_settings.items():
                with suppress(PydanticSerializationError):  # what is no plain value is to be given again
                    settings[key] = to_jsonable_python(value)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["kdbench"]
        if not self._bound:
            if "data" not in state:
                raise UserError("this checkpoint does not say what data it is of: bind the method before it is loaded.")
            self._bind_given(TypeAdapter(DataSpec).validate_python(state["data"]))
        self.rng.set_state(state["rng"])
        self.epoch, self.forwards, self.images_seen = state["epoch"], dict(state["forwards"]), state["images_seen"]
        self.taken, self.kept, self._position = state["taken"], state["kept"], state["position"]


def _tap(net: nn.Module, x: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    return net.tap(x, names)  # type: ignore[operator]


def _parameters(optimizer: Any) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _ramp(weight: float | Ramp) -> Ramp:
    return weight if isinstance(weight, Ramp) else Ramp(weight, weight)


def _reset(net: nn.Module) -> nn.Module:
    """Fresh parameters, by each layer's own default initialisation."""
    for module in net.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    return net


def _data_spec(trainer: pl.Trainer, student: nn.Module) -> DataSpec:
    """What the datamodule says of itself, or else what its first batch, and the student of that, shows."""
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    spec = getattr(datamodule, "spec", None)
    if isinstance(spec, DataSpec):
        return spec
    name = f"the student ({type(student).__name__})"
    shape = tuple(Batch.of(next(iter(_loader(trainer)))).x.shape[1:])
    (classes, *_) = probe(name, plain(name, student, shape), shape).shapes["logits"]
    return DataSpec("custom", shape, classes, n_train=0, n_test=0)


def _loader(trainer: pl.Trainer) -> Any:
    """The loader that the trainer is about to use, or the first of several."""
    stages = {"fit": "train_dataloader", "validate": "val_dataloader", "test": "test_dataloader"}
    stage = trainer.state.fn.value if trainer.state.fn else "fit"
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    loops: dict[str, Any] = {"fit": trainer.fit_loop, "validate": trainer.validate_loop, "test": trainer.test_loop}
    loader = getattr(datamodule, stages[stage])() if datamodule else loops[stage]._data_source.dataloader()
    return loader[0] if isinstance(loader, (list, tuple)) else loader


__all__ = ["NEEDS", "Experience", "Method", "Player", "Ramp", "Samples", "Snapshot", "Stage"]
