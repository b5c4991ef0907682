"""Every method of the registry, by name: what it declares, what its YAML says, how it trains.

A new method is tested by existing.
"""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep
from omegaconf import OmegaConf
from pytorch_lightning.loggers.logger import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from worlds import (
    BATCH,
    CHAIN,
    CLASSES,
    IMAGES,
    QUICK,
    SPEC,
    STUDENT,
    TEACHER,
    Data,
    World,
    batches,
    network,
    teachers,
    world_of,
)

import kdbench
from kdbench import models
from kdbench.data.batch import AGAIN, PAIRED, Batch, DataSpec
from kdbench.engine.binding import Lecturer
from kdbench.engine.binding import bind as bind_cell
from kdbench.engine.seeding import seeded
from kdbench.errors import Diverged, DoesNotFit, UserError
from kdbench.method import NEEDS, Method, Snapshot
from kdbench.models.base import TappedNet
from kdbench.paths import conf_dir
from kdbench.protocol import Protocol, Schedule
from kdbench.registry import Entry, methods
from kdbench.tasks import TASKS
from kdbench.taxonomy import load_taxonomy
from kdbench.tuned import looked_up
from methods.controls.scratch import Scratch
from methods.data_free.dafl import DAFL
from methods.intermediate.fitnet import FitNet
from methods.logits.kd import KD
from methods.logits.logits_mse import LogitsMSE
from methods.online.dml import DML
from methods.teacher_free.byot import BYOT

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|many workers|logging interval|no `val_dataloader)")

ENTRIES: dict[str, Entry] = {entry.name: entry for entry in methods()}
# Of one method all tests come one after the other, so that what they share is made in one process.
every_method = pytest.mark.parametrize("name", ENTRIES, scope="module")

STREAMS = {AGAIN, PAIRED, "unlabelled"}
"""What scenarios offer beside a batch."""

# Those that keep an embedding of every training image.
BANKS = ("crd", "crd_kd", "crd_infonce", "crd_bound")
# Those that play.
PLAYING = ("actor_critic", "actor_mimic", "gaussian_actor_critic", "gaussian_ppo", "piekd", "rnd")
PLAYING += tuple(f"policy_distillation{loss}" for loss in ("", "_mse", "_nll"))
PLAYING += tuple(f"gaussian_policy_distillation{loss}" for loss in ("", "_roots"))

# Those that have a stage on exemplars alone.
BALANCED = {"bic", "eeil", "eeil_facil", "podnet", "podnet_authors"}
# Players whose loss is sure to fall on one repeated batch. By default all of them; in an adversarial game only some,
# none where the targets move at first (the keys of a memory bank), and not a head that tells eight images apart by
# their cosines, too slowly to be seen.
SETTLING: dict[str, set[str]] = {
    "afd_online": {"peer0", "peer1"},
    "anc": {"student"},
    "conditional_adversarial": {"student"},
    "dafl": {"generator"},
    # whose student sees now the batch, now what the generator makes
    "gan_tsc": {"discriminator"},
    "kdgan": {"student"},
    # a generator that seeks what a student has not learned, and a student that has to learn what it finds
    "dfad": {"student"},
    "dfq": {"generator"},
    **{name: {"student"} for name in ("zskt", "zskt_paper")},
    "meal": {"student"},
    "portable_student": {"student"},
    "sskd": {"student"},
    **{name: set() for name in BANKS},
    # each batch of an environment is another play; those of a bias, and those of balanced classes, are drawn anew
    **{name: set() for name in PLAYING},
    **{name: {"student"} for name in BALANCED},
    # maps of classes under a head that was made a hundred times as large are too far away for this rate
    "catkd": set(),
    # its temperature rises, and with it the value of its loss
    "multi_exit": set(),
    # the entropy of soft targets is no less for the student's learning
    **{name: set() for name in ("replayed", "replayed_all_layers")},
}
# Those that must be told more of the data than a plain loader shows: how many images there are, and which is which; how
# pixels were normalised; another view of each image.
INFORMED = {
    *BANKS,
    *("pseudo_examples", "replayed", "replayed_all_layers"),
    *("ard", "adversarial_training"),
    "cluster_labels",
    "ddgsd",
    "kdpp",
    "lfme",
    "pate",
    "ps_kd",
    "warm_mimic",
}

# A pair of its own for what fits no other.
PAIRS = dict.fromkeys(("fskd", "cross_distillation", "finetuning"), CHAIN)
# Those whose teacher is nothing but where a network of their own begins.
BEGINNINGS = {"kdgan", "finetuning"}
# Parameters of the student that have no part in what a method trains and ships.
HEADLESS = ("lucir", "podnet", "podnet_authors", "simkd", "supervision_transfer")
IDLE = {name: {"head.weight", "head.bias"} for name in HEADLESS}
# Parameters of what is shipped that are the teacher's, and stay so.
TAKEN_OVER = {
    "simkd": {"head.weight", "head.bias"},
    "supervision_transfer": {"upper.net.head.weight", "upper.net.head.bias"},
}

PROTOCOL = Protocol(
    name="tiny",
    epochs=2,
    batch_size=BATCH,
    optimizer={"_target_": "torch.optim.SGD", "lr": 0.02, "momentum": 0.9, "weight_decay": 5e-4},
    schedule=Schedule(kind="constant"),
)
PLAIN = PROTOCOL.model_copy(update={"optimizer": {"_target_": "torch.optim.SGD", "lr": 0.1}})


# ---- a tiny world -------------------------------------------------------------------------------------------------


def bind(method: Method, *, seed: int = 0, spec: DataSpec | None = None, world: World | None = None) -> Method:
    """A method on the tiny pair, with as many teachers as it declares a need of."""
    world = world or world_of(type(method))

    def student(*key: object) -> nn.Module:
        return network(world.student, seed, *key, world=world)

    with seeded(seed, "adapters"):
        return method.bind(
            student(), teachers(method.needs, world), spec or world.spec, spawn=lambda k: student(k), seed=seed
        )


def settings_of(name: str) -> dict[str, Any]:
    return {**ENTRIES[name].settings, **QUICK.get(name, {})}


def home(name: str) -> World:
    return PAIRS.get(name) or world_of(ENTRIES[name].cls)


def make(name: str, *, seed: int = 0, protocol: Protocol = PROTOCOL) -> Method:
    protocol = protocol.model_copy(update={"epochs": 2 * home(name).experiences})
    return bind(ENTRIES[name].cls(**settings_of(name), protocol=protocol), seed=seed, world=home(name))


def trainer(epochs: int, **settings: Any) -> pl.Trainer:
    defaults = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet = {"enable_model_summary": False, "num_sanity_val_steps": 0, "accelerator": "cpu", "devices": 1}
    return pl.Trainer(max_epochs=epochs, **{**defaults, **quiet, **settings})


def fit(
    method: Method, train: Sequence[Batch], epochs: int, val: Sequence[Batch] | None = None, **settings: Any
) -> Method:
    world = replace(IMAGES, spec=getattr(method, "data", SPEC))
    data = Data(train, val, world)
    method.samples = method.samples or data
    with seeded("training"):
        trainer(epochs, reload_dataloaders_every_n_epochs=1, **settings).fit(method, datamodule=data)
    return method


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bitwise equality."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def changed(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Names of the parameters that differ from `before`."""
    return {name for name, value in module.named_parameters() if not torch.equal(value, before[name])}


class Memory(Logger):
    """Keeps what Lightning logs."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, list[float]] = {}

    @property
    def name(self) -> str:
        return "memory"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            self.values.setdefault(name, []).append(value)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


@dataclass
class Turn:
    """One optimiser step as the method asked for it."""

    epoch: int
    experience: int
    stage: str
    player: str
    terms: dict[str, float]
    total: float
    all_train: bool
    teacher_trains: bool
    learns: bool = False  # some parameter of the player has a gradient, and none is without end


def untrained(method: Method) -> set[nn.Module]:
    """The method's own networks that teach and are not trained, past selves and averages, with all their parts."""
    return {
        part
        for module in method.children()
        if (weights := list(module.parameters())) and not any(weight.requires_grad for weight in weights)
        for part in module.modules()
    }


def past_selves(method: Method) -> set[nn.Module]:
    """The method's own networks that teach, with all their parts."""
    return {part for module in method.modules() if isinstance(module, Snapshot) for part in module.modules()}


def watch(method: Method) -> list[Turn]:
    """A list that fills with the method's turns while it trains."""
    seen: list[Turn] = []
    original = method.turns

    def turns(batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        for player, terms in original(batch):
            values = {name: value.item() for name, value in terms.items()}
            past = past_selves(method)
            seen.append(
                Turn(
                    epoch=method.current_epoch,
                    experience=method.experience.number,
                    stage=method.stage,
                    player=player,
                    terms=values,
                    total=sum(method._weight[name] * value for name, value in values.items()),
                    all_train=all(module.training for module in method.modules() if module not in past),
                    teacher_trains=any(m.training for teacher in (*method._teachers, *past) for m in teacher.modules()),
                )
            )
            yield player, terms
            (parameters,) = (each.parameters for each in method.players() if each.name == player)
            gradients = [p.grad for p in parameters if p.grad is not None]
            finite = all(gradient.isfinite().all() for gradient in gradients)
            seen[-1].learns = finite and any(gradient.any() for gradient in gradients)

    method.turns = turns  # type: ignore[method-assign]
    return seen


# ---- declarations -------------------------------------------------------------------------------------------------


@every_method
def test_declares_its_place_and_its_source(name: str) -> None:
    cls = ENTRIES[name].cls
    module = importlib.import_module(cls.__module__)
    assert load_taxonomy().find(cls.leaf) is not None, f"{cls.leaf} is not in the taxonomy"
    folder = cls.leaf.split("/")[0].replace("-", "_")
    assert module.__name__.split(".")[:2] == ["methods", folder]
    assert cls.title
    assert (cls.__doc__ or "").strip()
    assert cls.__doc__ != Method.__doc__
    assert cls.needs <= NEEDS | STREAMS
    assert cls.tasks
    assert cls.tasks <= set(TASKS)
    if cls.control == "scratch":
        return
    assert cls.paper
    known = r"arXiv:\d{4}\.\d{4,5}|doi\.org/|DOI 10\.|OpenReview \w+|https://proceedings\."
    assert re.search(known, module.__doc__ or ""), "the source of the idea is missing"


@every_method
def test_extension_marks_what_the_survey_does_not_cite(name: str) -> None:
    cls = ENTRIES[name].cls
    cited = {work for leaf in load_taxonomy().leaves for work in leaf.cited}
    if cls.paper:
        assert cls.extension == (cls.paper not in cited)


def test_controls_stand_once_each() -> None:
    """In the tables of each task: images have all three, the others a baseline and perhaps plain distillation."""
    found: dict[str, Counter[str]] = {task: Counter() for task in TASKS}
    for entry in ENTRIES.values():
        for task in entry.cls.tasks if entry.cls.control else ():
            found[task][str(entry.cls.control)] += 1
    assert found["classification"] == {"scratch": 1, "smoothing": 1, "kd": 1}
    assert all(count == 1 for roles in found.values() for count in roles.values())
    assert {task: roles["scratch"] for task, roles in found.items()} == dict.fromkeys(TASKS, 1)
    tasks = {"classification", "segmentation", "policy", "gaussian-policy"}
    assert {task for task, roles in found.items() if roles["kd"]} == tasks


# ---- configs ------------------------------------------------------------------------------------------------------


def hyperparameters(cls: type[Method]) -> dict[str, Any]:
    """Constructor parameters and their defaults, but for those of every method."""
    common = inspect.signature(Method).parameters
    parameters = inspect.signature(cls).parameters.values()
    return {
        p.name: p.default for p in parameters if p.name not in common and p.kind is not inspect.Parameter.VAR_KEYWORD
    }


@every_method
def test_yaml_sets_every_hyperparameter_to_its_default(name: str) -> None:
    entry = ENTRIES[name]
    defaults = hyperparameters(entry.cls)
    settings = {key: value for key, value in entry.settings.items() if key != "weights"}
    settings = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    assert set(settings) == set(defaults)
    # of several YAMLs of one class, the one that is called like the file has the class's defaults
    siblings = [other for other in ENTRIES.values() if other.cls is entry.cls]
    if len(siblings) == 1 or name == entry.cls.__module__.rpartition(".")[2]:
        assert settings == defaults


@every_method
def test_every_value_in_the_yaml_has_a_source(name: str) -> None:
    text = (conf_dir() / "method" / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith(f"# @package method.{name}\n_target_: ") or re.match(
        rf"# @package method\.{name}\n(#.*\n)+_target_: ", text
    )
    settings = text.split("\nsearch:")[0]
    values = [line for line in settings.splitlines() if re.match(r"\s*(?!_target_|weights: \{\})\w+: *[^\s#]", line)]
    assert len(values) == len(hyperparameters(ENTRIES[name].cls)) + len(ENTRIES[name].settings["weights"])
    for line in values:
        assert re.search(r"\S +# \S", line) or re.fullmatch(r" +\w+: 1\.0", line), f"where is this from? {line}"


@every_method
def test_search_ranges_are_hydras_and_hold_the_default(name: str) -> None:
    entry = ENTRIES[name]
    for key, text in entry.search.items():
        override = OverridesParser.create().parse_override(f"{key}={text}")
        assert override.is_sweep_override(), f"{key}: {text}"
        default: Any = entry.settings
        for part in key.split("."):
            assert part in default, f"{key} is no setting"
            default = default[part]
        assert isinstance(default, (int, float, str)), f"{key} is not a value"
        sweep = override.value()
        if isinstance(sweep, ChoiceSweep):
            assert default in sweep.list
        else:
            assert isinstance(sweep, IntervalSweep)
            low, high = sweep.start, sweep.end
            assert low is not None
            assert high is not None
            assert float(low) <= float(default) <= float(high)


@every_method
def test_what_may_be_searched_for_may_be_tuned_for_a_pair(name: str) -> None:
    assert set(looked_up(ENTRIES[name].file)) == set(ENTRIES[name].search)


def test_values_tuned_per_pair_reach_the_method() -> None:
    tuned = 0
    for path in sorted((conf_dir() / "pair").glob("*.yaml")):
        pair: Any = OmegaConf.to_container(OmegaConf.load(path))
        for name, values in (pair.get("tuned") or {}).items():
            defaults = ENTRIES[name].defaults(pair["teacher"], pair["student"])
            for key, value in values.items():
                assert defaults[key] == value
                tuned += 1
    assert tuned >= 5


@every_method
def test_the_class_and_its_yaml_agree_on_the_terms(name: str) -> None:
    cls, settings = ENTRIES[name].cls, dict(ENTRIES[name].settings)
    weights = settings.pop("weights")
    assert set(weights) == set(cls(**settings).terms)
    with pytest.raises(UserError, match="unknown weight 'nonsense'"):
        bind(cls(**settings, weights={**weights, "nonsense": 1.0}))
    for term in weights:
        rest = {key: value for key, value in weights.items() if key != term}
        with pytest.raises(UserError, match=f"no weight for '{term}'"):
            bind(cls(**settings, weights=rest))


# ---- training -----------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """A short training and what was seen of it."""

    method: Method
    start: dict[str, Tensor]
    shipped: dict[str, Tensor]
    teachers: list[dict[str, Tensor]]
    epochs: int
    turns: list[Turn]
    log: dict[str, list[float]]
    forwards: Counter[str] = field(default_factory=Counter)
    shown: list[Batch] = field(default_factory=list)


@cache
def run_of(name: str) -> Run:
    """Two batches per epoch, with validation; as many epochs as stages, two at least."""
    method, world = make(name), home(name)
    teaching = {*method._teachers, *untrained(method)}
    logger = Memory()
    run = Run(
        method,
        state(method.student),
        state(method.deployed()),
        [state(teacher) for teacher in method._teachers],
        max(2, stages_of(method)) * world.experiences,
        watch(method),
        logger.values,
    )
    kind = type(method.student)
    original, made = kind.features, method.batch

    def batch(given: Batch) -> Batch:
        run.shown.append(given)
        return made(given)

    method.batch = batch  # type: ignore[method-assign]

    def features(self: TappedNet, x: Tensor) -> dict[str, Tensor]:
        if method.trainer.training and getattr(self, "stem", self) is not None:  # a tail is a part of a pass
            run.forwards["teacher" if self in teaching else "student"] += len(x)
        return original(self, x)  # type: ignore[operator]

    kind.features = features
    try:
        fit(method, batches(2, world=world), run.epochs, batches(1, seed=9, world=world), logger=logger)
    finally:
        kind.features = original
    return run


def stages_of(method: Method) -> int:
    """How many of them train, in the experience that has most; one at least."""
    trained = Counter(entry.experience.number for entry in method._plan if entry.length)
    return max(trained.values(), default=1)


@every_method
def test_the_student_learns_and_every_value_is_finite(name: str) -> None:
    run = run_of(name)
    assert all(math.isfinite(value) for turn in run.turns for value in turn.terms.values())
    assert run.method.epoch == run.epochs
    idle = IDLE.get(name, set())
    for net, before, without in (
        (run.method.student, run.start, idle),
        (run.method.deployed(), run.shipped, {f"student.{key}" for key in idle} | TAKEN_OVER.get(name, set())),
    ):
        assert changed(net, before) == {key for key, _ in net.named_parameters()} - without
    assert all(value.isfinite().all() for value in run.method.state_dict().values())


@every_method
def test_the_teacher_stays_as_it_is_and_outside(name: str) -> None:
    run = run_of(name)
    frozen = run.method._teachers
    assert len(frozen) == len(teachers(run.method.needs))
    assert (run.forwards["teacher"] > 0) == bool((frozen and name not in BEGINNINGS) or untrained(run.method))
    inside = {value.data_ptr() for value in (*run.method.parameters(), *run.method.buffers())}
    inside |= {value.data_ptr() for value in run.method.state_dict().values()}
    for teacher, before in zip(frozen, run.teachers, strict=True):
        assert same(state(teacher), before)
        assert not any(p.requires_grad or p.grad is not None for p in teacher.parameters())
        assert not inside & {value.data_ptr() for value in teacher.state_dict().values()}


@every_method
def test_modes_survive_validation(name: str) -> None:
    run = run_of(name)
    assert {turn.epoch for turn in run.turns} == set(range(0 if run.method.idle else run.epochs))
    assert all(turn.all_train and not turn.teacher_trains for turn in run.turns)
    assert len(run.log[f"test/{run.method.task.primary.name}"]) == run.epochs


@every_method
def test_terms_are_those_declared_and_are_logged(name: str) -> None:
    run = run_of(name)
    assert {term for turn in run.turns for term in turn.terms} == set(run.method.terms)
    assert {turn.stage for turn in run.turns} == {entry.stage.name for entry in run.method._plan if entry.length}
    assert {turn.player for turn in run.turns} == {player for _, player in run.method._optimizer_of}
    assert {key for key in run.log if key.startswith("loss/")} == {f"loss/{term}" for term in run.method.terms}
    for term in run.method.terms:
        means = []
        for epoch in range(run.epochs):
            values = [turn.terms[term] for turn in run.turns if turn.epoch == epoch and term in turn.terms]
            means += [sum(values) / len(values)] if values else []
        assert run.log[f"loss/{term}"] == pytest.approx(means, rel=1e-5)


@every_method
def test_every_player_learns_in_every_stage_that_trains(name: str) -> None:
    run = run_of(name)
    entries = {(entry.experience.number, entry.stage.name) for entry in run.method._plan if entry.length}
    assert {(turn.experience, turn.stage) for turn in run.turns} == entries
    assert bool(entries) != run.method.idle
    played = {(turn.experience, turn.stage, turn.player) for turn in run.turns}
    assert played == {(turn.experience, turn.stage, turn.player) for turn in run.turns if turn.learns}


@every_method
def test_what_is_not_declared_is_not_shown(name: str) -> None:
    run = run_of(name)
    needs = run.method.needs
    assert bool(run.shown) != run.method.idle
    for batch in run.shown:
        assert batch.beside.keys() <= ({*needs, AGAIN} if "no_data" not in needs else set())
        for part in (batch, *batch.beside.values()):
            assert bool(part.x.numel()) != ("no_data" in needs or home(name).zoo == "policy")
            if "labels" not in needs:
                assert (part.y == -1).all()


@every_method
def test_forwards_are_counted(name: str) -> None:
    run = run_of(name)
    shown = sum(batch.shown(run.method.needs) for batch in batches(2, world=home(name))[:2])
    trained = 0 if run.method.idle else run.epochs * shown
    assert run.method.images_seen == trained + run.method.taken
    assert run.forwards["student"] + run.forwards["teacher"] >= trained
    assert run.method.forwards == {"student": run.forwards["student"], "teacher": run.forwards["teacher"]}


@every_method
def test_the_same_seed_gives_the_same_student(name: str) -> None:
    """And evaluating it on the way changes nothing."""
    run = run_of(name)
    again = fit(make(name), batches(2, world=home(name)), run.epochs)
    first, second = (
        {key: value for key, value in state(method).items() if not key.startswith("meters.")}
        for method in (run.method, again)
    )
    assert same(first, second)


class Otherwise(Exception):
    """A training goes another way."""


def trains_the_same(name: str, others: Sequence[Batch]) -> bool:
    """Whether other batches leave each term and the student as in `run_of`; the first that differs ends it."""
    run, method = run_of(name), make(name)
    seen = watch(method)
    original = method.turns

    def turns(batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        for turn in original(batch):
            if seen[-1].terms != run.turns[len(seen) - 1].terms:
                raise Otherwise
            yield turn

    method.turns = turns  # type: ignore[method-assign]
    try:
        fit(method, others, run.epochs)
    except Otherwise:
        return False
    return same(state(method.student), state(run.method.student))


@every_method
def test_needs_are_what_is_used(name: str) -> None:
    """Labels and images matter where they are declared, and make no difference where they are not."""
    needs, world = run_of(name).method.needs, home(name)

    others = batches(2, world=world)
    for batch in others:
        batch.y = batch.y.flip(0)
    assert trains_the_same(name, others) == ("labels" not in needs)

    others = batches(2, world=world)
    for batch in others:
        batch.x = torch.zeros(BATCH, 0) if "no_data" in needs else batch.x.flip(0)
    assert trains_the_same(name, others) == ("no_data" in needs or world.zoo == "policy")


@every_method
def test_peers_are_declared(name: str) -> None:
    entry, world, asked = ENTRIES[name], home(name), []

    def spawn(k: int) -> nn.Module:
        asked.append(k)
        return network(world.student, 0, k, world=world)

    pool = teachers(entry.cls.needs, world)
    entry.cls(**settings_of(name)).bind(network(world.student, 0, world=world), pool, world.spec, spawn=spawn)
    assert bool(asked) == ("peers" in entry.cls.needs)
    assert 0 not in asked  # that is the student itself


@every_method
def test_the_loss_falls_on_one_batch(name: str) -> None:
    method = make(name)
    settling, totals = SETTLING.get(name), defaultdict[tuple[int, str, str], list[float]](list)
    original = method.turns

    def fallen(part: tuple[int, str, str]) -> bool:
        """By a twentieth, in the mean of the last five of at most 30 steps."""
        values = totals[part]
        return len(values) > 5 and sum(values[-5:]) / 5 < values[0] - 0.05 * abs(values[0])

    def turns(batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        here = [part for part in totals if part[:2] == (method.experience.number, method.stage)]
        if here and all(map(fallen, here)):
            return  # a method that learns at once is not watched any longer
        for player, terms in original(batch):
            if settling is None or player in settling:
                total = sum(method._weight[term] * value.item() for term, value in terms.items())
                totals[method.experience.number, method.stage, player].append(total)
            yield player, terms

    method.turns = turns  # type: ignore[method-assign]
    repeated = [batch for batch in batches(1, world=home(name)) for _ in range(30)]
    fit(method, repeated, stages_of(method) * home(name).experiences)
    assert bool(totals) != (method.idle or settling == set())
    assert not [part for part in totals if not fallen(part)]


@every_method
def test_works_without_the_bench(name: str) -> None:
    cls, world = ENTRIES[name].cls, home(name)
    student = network(world.student, 0, world=world)
    student.eval()  # as someone leaves it who has just evaluated it
    networks: dict[str, Any] = {"student": student, "teacher": teachers(cls.needs, world)}
    before = state(student)
    settings = {key: value for key, value in settings_of(name).items() if key != "weights"}
    method = cls(**settings, **networks, protocol=PROTOCOL.model_copy(update={"epochs": 2 * world.experiences}))
    turns = watch(method)
    plain = world is IMAGES and name not in INFORMED and cls.needs <= NEEDS
    if plain:
        x, y = torch.randn(16, *SPEC.shape, generator=torch.Generator().manual_seed(0)), torch.arange(16) % CLASSES
        loader = DataLoader(TensorDataset(x, y), batch_size=BATCH)
        data: dict[str, Any] = {"train_dataloaders": loader, "val_dataloaders": loader}
    else:
        data = {"datamodule": Data(batches(2, world=world), batches(1, world=world)[:1], world)}
    epochs = 2 * world.experiences
    trainer(epochs, reload_dataloaders_every_n_epochs=1).fit(method, **data)
    assert len({turn.epoch for turn in turns}) == (0 if method.idle else epochs)
    assert all(turn.all_train for turn in turns)
    assert changed(student, before) == {key for key, _ in student.named_parameters()} - IDLE.get(name, set())
    examples = method.meter("test").examples()
    assert len(examples) == (16 if plain else BATCH)


@every_method
def test_the_students_start_is_common_to_all_methods(name: str) -> None:
    """Common random numbers: the initial student is a function of seed and architecture alone."""
    torch.manual_seed(len(name))  # the global state does not matter
    first = next(other for other in ENTRIES if home(other) is home(name))
    assert same(start_of(name, 3), start_of(first, 3))
    assert not same(start_of(name, 3), start_of(name, 4))


@cache
def start_of(name: str, seed: int) -> dict[str, Tensor]:
    """The student as a cell of the bench has it before its first step."""
    world = home(name)
    lecturers = [Lecturer(f"t{k}", net) for k, net in enumerate(teachers({"teachers"}, world))]
    protocol = PROTOCOL.model_copy(update={"epochs": 2 * world.experiences})
    cell: Any = SimpleNamespace(
        name=name,
        student=world.student,
        seed=seed,
        start=None,
        make_method=lambda: ENTRIES[name].cls(**settings_of(name), protocol=protocol),
    )
    return state(bind_cell(cell, lecturers, world.spec).student)


# ---- the contract, by hand ----------------------------------------------------------------------------------------


def sgd(net: nn.Module, loss: Tensor, lr: float) -> None:
    """One plain step."""
    gradients = torch.autograd.grad(loss, list(net.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(net.parameters(), gradients, strict=True):
            parameter.sub_(lr * gradient)


def close(a: nn.Module, b: nn.Module) -> bool:
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return all(torch.allclose(p, q, rtol=1e-4, atol=1e-6) for p, q in pairs)


def test_weights_and_ramps_multiply_the_terms() -> None:
    weights = {"ce": 0.3, "kd": {"start": 0.0, "end": 2.0, "until": 0.5}}
    method = bind(KD(temperature=2.0, weights=weights, protocol=PLAIN))
    student, teacher = copy.deepcopy(method.student), copy.deepcopy(method.teacher)
    (batch,) = batches(1)
    fit(method, [batch], 4)
    for kd_weight in (1.0, 2.0, 2.0, 2.0):  # linear over the first two of four epochs
        s, t = student(batch.x) / 2, teacher(batch.x).detach() / 2
        kd = 4 * (t.softmax(1) * (t.log_softmax(1) - s.log_softmax(1))).sum(1).mean()
        sgd(student, 0.3 * F.cross_entropy(2 * s, batch.y) + kd_weight * kd, lr=0.1)
    assert close(method.student, student)


def test_the_schedule_moves_the_protocols_rate_but_not_a_players_own() -> None:
    protocol = PROTOCOL.model_copy(update={"schedule": Protocol().schedule, "lr_for": {"stud*": 0.04}})
    method = bind(DAFL(generator_lr=0.2, protocol=protocol))
    rates: list[list[float]] = []

    class Spy(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            rates.append([group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups])

    fit(method, batches(1), 8, callbacks=[Spy()])
    decay = [1] * 5 + [0.1, 0.01, 0.001]  # at 5/8, 6/8 and 7/8
    assert [rate[0] for rate in rates] == [0.2] * 8
    assert [rate[1] for rate in rates] == pytest.approx([0.04 * factor for factor in decay])


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    method = bind(Scratch(protocol=PROTOCOL))
    (batch,) = batches(1)
    batch.x[0] = torch.nan
    with pytest.raises(Diverged, match="'ce' was not finite in epoch 1"):
        fit(method, [batch], 2)


def test_what_does_not_fit_is_told_in_a_sentence() -> None:
    student, teacher = network(STUDENT, 0), network(TEACHER, 0)
    with pytest.raises(UserError, match="KD needs a teacher"):
        KD().bind(student, None, SPEC)
    with pytest.raises(UserError, match="KD has no student"):
        fit(KD(), batches(1), 1)
    with pytest.raises(DoesNotFit, match="the teacher has 7 classes, the student 6"):
        KD().bind(student, models.create(TEACHER, SPEC.shape, 7), SPEC)
    with pytest.raises(DoesNotFit, match="has no tap 'stage9'"):
        FitNet(hint="stage9").bind(student, teacher, SPEC)
    with pytest.raises(DoesNotFit, match="does not support the task 'depth'"):
        KD().bind(student, teacher, DataSpec("fake", SPEC.shape, CLASSES, 8, 8, task="depth"))
    with pytest.raises(UserError, match="2 stages"):
        fit(bind(FitNet(protocol=PROTOCOL)), batches(1), 1)
    for wrong in ({"begin": 0.0, "end": 1.0}, {"start": 0.0, "end": "much"}, "much"):
        with pytest.raises(UserError, match=r"weights\.kd"):
            KD(weights={"ce": 1.0, "kd": wrong})
    for make_wrong in (
        lambda: DML(peers=1),
        lambda: DML(variant="both"),  # type: ignore[arg-type]
        lambda: DAFL(logarithm="log2"),  # type: ignore[arg-type]
        lambda: LogitsMSE(variant="max"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UserError):
            make_wrong()


# ---- single methods -----------------------------------------------------------------------------------------------


class Snapshots(pl.Callback):
    """The module's parameters at the end of every epoch."""

    def __init__(self) -> None:
        self.states: list[dict[str, Tensor]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, method: pl.LightningModule) -> None:
        self.states.append({name: value.detach().clone() for name, value in method.named_parameters()})


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_fitnet_first_learns_the_hint_and_then_the_task() -> None:
    method = make("fitnet")
    start = {name: value.detach().clone() for name, value in method.named_parameters()}
    spy = Snapshots()
    fit(method, batches(2), 2, callbacks=[spy])
    first, second = moved(start, spy.states[0]), moved(spy.states[0], spy.states[1])
    until_hint = ("student.stem.", "student.stages.0.", "student.stages.1.")
    assert first == {name for name in start if name.startswith((*until_hint, "regressor."))}
    assert second == {name for name in start if name.startswith("student.")}


def test_fitnet_divides_its_epochs() -> None:
    method = make("fitnet")
    turns = watch(method)
    fit(method, batches(1), 8)
    assert [turn.stage for turn in turns] == ["hint"] + ["distil"] * 7
    # the weight of the KD term falls linearly from 4 to 1 over the second stage
    ramp = [(turn.total - turn.terms["ce"]) / turn.terms["kd"] for turn in turns[1:]]
    assert ramp == pytest.approx([4 - 3 * (e + 1) / 7 for e in range(7)], rel=1e-4)


def simulate_dml(peers: Sequence[nn.Module], batch: Batch, temperature: float, alternating: bool) -> None:
    """One batch of algorithm 1 of the paper, or of simultaneous learning, with plain steps of 0.1."""
    old = [peer(batch.x).detach() for peer in peers]
    for k, peer in enumerate(peers):
        z = peer(batch.x)
        loss = F.cross_entropy(z, batch.y)
        for j, other in enumerate(peers):
            if j != k:
                target = (other(batch.x).detach() if alternating else old[j]) / temperature
                divergence = (target.softmax(1) * (target.log_softmax(1) - (z / temperature).log_softmax(1))).sum(1)
                loss = loss + temperature**2 * divergence.mean() / (len(peers) - 1)
        sgd(peer, loss, lr=0.1)


@pytest.mark.parametrize("peers", [2, 3])
@pytest.mark.parametrize("variant", ["alternating", "simultaneous"])
def test_dml_peers_take_turns(variant: Any, peers: int) -> None:
    method = bind(DML(peers=peers, temperature=2.0, variant=variant, protocol=PLAIN))
    assert isinstance(method, DML)
    start = [state(peer) for peer in method.peers]
    assert not same(start[0], start[1])
    copies = {alternating: copy.deepcopy(list(method.peers)) for alternating in (True, False)}
    (batch,) = batches(1)
    fit(method, [batch], 1)
    for alternating, simulated in copies.items():
        simulate_dml(simulated, batch, 2.0, alternating)
        agree = [close(a, b) for a, b in zip(method.peers, simulated, strict=True)]
        # whoever steps first sees the same either way
        assert agree == [True] + [alternating == (variant == "alternating")] * (peers - 1)
    assert method.deployed() is method.peers[0]
    assert all(changed(peer, before) for peer, before in zip(method.peers, start, strict=True))
    assert method.forwards["student"] == BATCH * (peers + (peers - 1 if variant == "alternating" else 0))


def test_byot_deploys_the_plain_network() -> None:
    method = make("byot")
    assert isinstance(method, BYOT)
    assert method.deployed() is method.student
    assert method.student.state_dict().keys() == network(STUDENT, 0).state_dict().keys()
    assert len(method.exits) == 2
    taps = method.student_out(batches(1)[0].x)
    terms = method.losses(taps, taps, batches(1)[0])
    for term in ("kd", "feature"):
        # the last exit teaches and does not learn, though the layers below it do
        last = [taps.logits, taps.embed, *method.student.head.parameters()]  # type: ignore[union-attr]
        final = torch.autograd.grad(terms[term], last, retain_graph=True, allow_unused=True)
        assert final == (None,) * 4
        (below,) = torch.autograd.grad(terms[term], [taps["stage1"]], retain_graph=True)
        assert below.abs().sum() > 0


def test_dafl_teaches_the_images_of_the_generator_before_its_step() -> None:
    weights = {"one_hot": 1.0, "entropy": 5.0, "activation": 0.1, "kd": 1.0}
    method = bind(DAFL(noise=10, generator_lr=0.01, weights=weights, protocol=PLAIN))
    assert isinstance(method, DAFL)
    generator, teacher = copy.deepcopy(method.generator), method.teacher
    early, late = copy.deepcopy(method.student), copy.deepcopy(method.student)
    rng = torch.Generator()
    rng.set_state(method.rng.get_state())
    before = state(teacher)
    fit(method, batches(1), 1)

    z = torch.randn(BATCH, 10, generator=rng)
    images = generator(z)
    taps = teacher.tap(images)  # type: ignore[operator]
    t, p = taps["logits"], taps["logits"].softmax(1).mean(0)
    loss = F.cross_entropy(t, t.argmax(1)) + 5 * (p * p.log10()).sum() - 0.1 * taps["embed"].abs().mean()
    adam = torch.optim.Adam(generator.parameters(), lr=0.01)
    loss.backward()
    assert all(parameter.grad is not None for parameter in generator.parameters())
    adam.step()
    for student, x in ((early, images.detach()), (late, generator(z).detach())):
        s, target = student(x), teacher(x).detach()
        sgd(student, (target.softmax(1) * (target.log_softmax(1) - s.log_softmax(1))).sum(1).mean(), lr=0.1)

    # where a gradient is nearly zero, Adam's first step is the sign of a rounding error
    agree = [(a - b).abs() < 1e-5 for a, b in zip(method.generator.parameters(), generator.parameters(), strict=True)]
    assert torch.cat([x.flatten() for x in agree]).double().mean() > 0.98
    assert close(method.student, early)
    assert not close(method.student, late)
    assert same(state(teacher), before)
    assert all(parameter.grad is None for parameter in teacher.parameters())


# ---- the bench knows no method ------------------------------------------------------------------------------------

# Two control roles (`Method.control`) are called like methods. Where roles are declared and tables built around them,
# the words may stand, but be compared with a `.control` only.
ROLES = {"scratch", "kd", "KD"}  # the last as heads of columns write it
KNOW_ROLES = ("method.py", "results/record.py", "report/")
# What is called like a method and is none: the C compiler.
HOMONYMS = {"compute/route.py": Counter({"cc": 1})}


def mentions(path: Path, roles: Collection[str] = ()) -> Counter[str]:
    """Names of methods and of their classes in a module's strings, identifiers and imports; prose does not count."""
    classes = {entry.cls.__name__ for entry in ENTRIES.values()}
    names = set(ENTRIES) | classes
    found: Counter[str] = Counter()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if not any(isinstance(side, ast.Attribute) and side.attr == "control" for side in sides):
                constants = [leaf for side in sides for leaf in ast.walk(side) if isinstance(leaf, ast.Constant)]
                found.update(str(leaf.value) for leaf in constants if leaf.value in roles)
        elif isinstance(node, ast.Constant) and node.value in names and node.value not in roles:
            found[str(node.value)] += 1
        elif isinstance(node, (ast.Name, ast.Attribute)):
            word = node.id if isinstance(node, ast.Name) else node.attr
            found.update([word] if word in classes else [])
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found.update(module for module in modules if module.split(".")[0] == "methods")
    return found


def test_the_bench_names_no_method() -> None:
    root = Path(kdbench.__file__).parent
    files = sorted(root.rglob("*.py"))
    assert len(files) > 20
    for path in files:
        file = path.relative_to(root).as_posix()
        found = mentions(path, ROLES if file.startswith(KNOW_ROLES) else ())
        found -= HOMONYMS.get(file, Counter())
        assert not found, f"{file} names methods: {dict(found)}"


def test_a_branch_on_a_name_would_be_found(tmp_path: Path) -> None:
    source = tmp_path / "bad.py"
    source.write_text("from methods.logits.kd import KD\nif name == 'dkd' or isinstance(m, KD): pass\n")
    assert mentions(source) == {"methods.logits.kd": 1, "dkd": 1, "KD": 1}
    source.write_text("CONTROLS = ('kd',)\nrow.control == 'kd'\n")
    assert mentions(source) == {"kd": 2}
    assert not mentions(source, ROLES)
    source.write_text("row.name == 'kd' or row.method in ('kd', 'dkd')\n")
    assert mentions(source, ROLES) == {"kd": 2, "dkd": 1}
