"""What is told of a training before it costs time, and of one that diverged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_methods import (
    BALANCED,
    BATCH,
    CLASSES,
    PLAIN,
    PROTOCOL,
    SPEC,
    batches,
    bind,
    fit,
    home,
    network,
    same,
    settings_of,
    state,
    teachers,
)
from torch import Tensor, nn

from kdbench import models
from kdbench.data.batch import Batch, DataSpec
from kdbench.engine.seeding import seeded
from kdbench.errors import Diverged, UserError
from kdbench.losses import cross_entropy
from kdbench.method import Method, Player
from kdbench.registry import methods
from kdbench.rehearsal import _play
from kdbench.tally import Tally
from kdbench.taps import Out, Taps
from methods.applications.self_ensembling import SelfEnsembling
from methods.controls.replay import Replay
from methods.controls.scratch import Scratch
from methods.data_free.dafl import DAFL
from methods.learning.mean_teacher import MeanTeacher
from methods.logits.kd import KD

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|many workers|logging interval|no `val_dataloader)")

ODD = replace(SPEC, name="odd", n_train=2 * BATCH + 1)
"""Batches of `BATCH` leave a last one of a single image."""
ENTRIES = {entry.name: entry for entry in methods()}


def bound(method: Method, spec: DataSpec = ODD, student: str = "resnet8x0.25") -> Method:
    with seeded(0):
        net, *pool = [models.create(each, spec.shape, CLASSES) for each in (student, *["resnet8x0.5"] * 2)]
    return method.bind(
        net, pool[: len(teachers(method.needs))], spec, spawn=lambda k: models.create(student, spec.shape, CLASSES)
    )


# ---- the last batch -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Scratch, KD])
def test_batch_normalisation_over_one_value_is_told_before_training(cls: type[Method]) -> None:
    with pytest.raises(UserError) as told:
        bound(cls(protocol=PROTOCOL), student="vgg8")  # 8x8 pixels end as maps of 1x1
    assert str(told.value) == (
        "the last batch of 17 images in batches of 8 has one, and training fails on it (batch normalisation has one "
        "value per channel): leave it out (protocol.drop_last=true), or take another protocol.batch_size."
    )
    for n_train in (2 * BATCH, 2 * BATCH + 2):
        bound(cls(protocol=PROTOCOL), DataSpec("even", SPEC.shape, CLASSES, n_train, BATCH), student="vgg8")


def test_adapters_are_rehearsed_too() -> None:
    class Normalised(Scratch):
        def build(self, *args: Any) -> None:
            self.norm = nn.BatchNorm1d(CLASSES)

        def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
            return {"ce": cross_entropy(self.norm(s.logits), batch.y)}

    with pytest.raises(UserError, match="one value per channel"):
        bound(Normalised(protocol=PROTOCOL))


def test_whatever_fails_on_one_image_alone_is_told() -> None:
    net = network("resnet8x0.25", 0)
    plain = net.tap  # then with all axes of length one dropped

    def tap(x: Tensor, names: Any = None) -> dict[str, Tensor]:
        return {name: value.squeeze() for name, value in plain(x, names).items()}  # type: ignore[operator]

    net.tap = tap  # type: ignore[method-assign,assignment]
    with pytest.raises(UserError, match=r"has one, and training fails on it \(\w+Error: .*protocol\.drop_last=true"):
        KD(protocol=PROTOCOL).bind(net, network("resnet8x0.5", 0), ODD)


def test_streams_are_rehearsed_too() -> None:
    bound(MeanTeacher(protocol=PROTOCOL), student="vgg8")  # the images of both streams are normalised together
    with pytest.raises(UserError, match="one value per channel"):  # and here each domain for itself
        bound(SelfEnsembling(protocol=PROTOCOL), student="vgg8")


def test_the_last_batch_is_that_of_an_epoch() -> None:
    """Of an experience, or of several laps."""
    scratch = Scratch(protocol=PROTOCOL)
    for spec in (replace(ODD, per_epoch=(2 * BATCH,)), replace(SPEC, per_epoch=(2 * BATCH + 2,))):
        bound(scratch, spec, student="vgg8")
    with pytest.raises(UserError, match="last batch of 25 images"):
        bound(scratch, replace(SPEC, per_epoch=(3 * BATCH + 1,)), student="vgg8")
    method = Replay(protocol=PROTOCOL)
    arriving = replace(SPEC, task="class-incremental", experiences=(3, 6), per_epoch=(2 * BATCH, BATCH + 1))
    with pytest.raises(UserError, match="last batch of 9 images"):
        bound(method, arriving, student="vgg8")


def test_gradients_between_taps_are_rehearsed() -> None:
    class Slopes(KD):
        taps = Taps(student=("stage2",), teacher=("stage2",))

        def teach(self, batch: Batch) -> Out:
            return self.teacher_out(batch.x.detach().requires_grad_(), grad=True)

        def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
            s, t = self.student_out(batch.x), self.teach(batch)
            slopes = [torch.autograd.grad(out.logits.sum(), out["stage2"], create_graph=True)[0] for out in (s, t)]
            assert slopes[0].requires_grad
            yield "student", {"ce": slopes[0].square().mean(), "kd": slopes[1].detach().sum()}

    assert _play(bound(Slopes(protocol=PROTOCOL)), ODD, 2) is None


@pytest.mark.parametrize("name", ENTRIES)
def test_every_method_is_rehearsed(name: str) -> None:
    """Nothing that a rehearsal lacks keeps it from seeing what would fail."""
    method = odd(name, drop_last=True)
    # maps are not blank as labels are, and of exemplars there are none
    if home(name).zoo in ("classification", "policy") and name not in BALANCED:
        assert _play(method, method.data, 2) is None


NORMALISED = {"byol", "kdpp", "finetuning"}
"""Whose own layers, or pruned networks, normalise one value per sample, so that no batch may be of one."""


def odd(name: str, **protocol: Any) -> Method:
    """A method of the registry in its tiny world, with a last batch of one sample."""
    world = home(name)
    spec = replace(world.spec, n_train=world.spec.n_train + 1)
    settings = PROTOCOL.model_copy(update={"epochs": 2 * world.experiences, **protocol})
    return bind(ENTRIES[name].cls(**settings_of(name), protocol=settings), spec=spec, world=world)


def first(batch: Batch) -> Batch:
    """The first sample alone, and beside it those of the streams."""
    parts = (getattr(batch, key)[:1] for key in ("x", "y", "index", "view"))
    return Batch(*parts, beside={name: first(stream) for name, stream in batch.beside.items()})


@pytest.mark.parametrize("name", ENTRIES)
def test_a_rehearsal_leaves_no_trace(name: str) -> None:
    if name in NORMALISED:
        with pytest.raises(UserError, match=r"protocol\.drop_last=true"):
            odd(name)
        return

    def start(rehearsed: bool) -> tuple[dict[str, Tensor], Tensor, Tensor, dict[str, int]]:
        torch.manual_seed(5)
        method = odd(name, drop_last=not rehearsed)
        return state(method), torch.get_rng_state(), method.rng.get_state(), method.forwards

    with_one, without = start(True), start(False)
    assert same(with_one[0], without[0])
    assert all(torch.equal(a, b) for a, b in zip(with_one[1:3], without[1:3], strict=True))
    assert with_one[3] == {"student": 0, "teacher": 0}


@pytest.mark.parametrize("name", sorted(ENTRIES.keys() - NORMALISED))
def test_a_batch_of_one_trains(name: str) -> None:
    """Every method finishes an epoch whose last batch is of one image, if it is not told that it cannot."""
    method, world = odd(name), home(name)
    fit(method, [part for batch in batches(1, world=world) for part in (batch, first(batch))], 2 * world.experiences)
    assert all(value.isfinite().all() for value in method.state_dict().values())
    assert all(math.isfinite(value) for value in method.term_means().values())


def test_rkd_in_the_bench_with_a_last_batch_of_one(kd: Any) -> None:
    settings = ("protocol.batch_size=199", "pair.student=resnet8x0.25")
    assert kd.run("method=[rkd,scratch]", *settings).code == 0
    (left,) = [r for r in kd.records() if r.cell.method == "rkd"]
    assert all(value is not None for curve in left.curves.values() for value in curve)
    result = kd.run("method=[scratch]", "protocol.batch_size=199", "pair.student=vgg8")
    assert result.code == 1
    assert [line for line in result.messages if "protocol.drop_last=true" in line]
    assert "Traceback" not in result.err + result.out


# ---- the first turns ----------------------------------------------------------------------------------------------


class Own(Method):
    leaf, paper, title = "controls", "", "Own"
    needs = frozenset({"labels"})
    terms = ("ce", "backward")

    def __init__(self, make: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.make = make

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        made: dict[str, Tensor] = self.make(s.logits, batch.y)
        return made


ce = cross_entropy


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda z, y: {"ce": ce(z, y), "bakward": ce(z, y)}, "its losses return 'bakward', but its terms are ce, back"),
        (lambda z, y: {"ce": ce(z, y)}, "its losses never return 'backward', one of its terms"),
        (lambda z, y: {"ce": ce(z, y), "backward": z.sum(1)}, r"'backward' is of shape \(8,\).*not a scalar tensor"),
        (lambda z, y: {"ce": ce(z, y), "backward": 0.5}, "'backward' is 0.5, not a scalar tensor"),
        (lambda z, y: {"ce": ce(z, y), "backward": y.sum()}, r"'backward' is of shape \(\) and torch.int64"),
        (lambda z, y: {k: ce(z.detach(), y) for k in ("ce", "backward")}, "has no gradient: compute it from"),
        (lambda z, y: ce(z, y), "return terms by name"),
        (lambda z, y: {}, r"its losses are \{\}: return terms by name"),
    ],
)
def test_losses_that_are_none_are_told_on_the_first_step(make: Callable[[Tensor, Tensor], Any], sentence: str) -> None:
    method = bound(Own(make, protocol=PROTOCOL), SPEC)
    with pytest.raises(UserError, match=rf"^Own: .*{sentence}"):
        fit(method, batches(1), 1)


def test_an_unknown_player_is_told() -> None:
    class Lonely(Own):
        def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
            yield "critic", self.losses(self.student_out(batch.x), None, batch)  # type: ignore[arg-type]

    method = bound(Lonely(lambda z, y: {"ce": ce(z, y), "backward": ce(z, y)}, protocol=PROTOCOL), SPEC)
    with pytest.raises(UserError, match="a turn of 'critic', but its players are student"):
        fit(method, batches(1), 1)


def test_a_term_may_belong_to_one_player_and_stage() -> None:
    """One plays in every batch, the other in every second one: its term is not missed meanwhile."""

    class Two(Own):
        def build(self, *args: Any) -> None:
            self.extra = nn.Linear(CLASSES, 1)
            self.played = 0

        def players(self) -> list[Player]:
            return [Player("student", list(self.student.parameters())), Player("critic", list(self.extra.parameters()))]

        def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
            logits = self.student_out(batch.x).logits
            yield "student", {"ce": cross_entropy(logits, batch.y)}
            self.played += 1
            if self.played % 2 == 0:
                yield "critic", {"backward": self.extra(logits.detach()).mean()}

    method = fit(bound(Two(None, protocol=PROTOCOL), SPEC), batches(3), 2)
    assert method.epoch == 2


# ---- what diverged ------------------------------------------------------------------------------------------------


def reason(method: Method, train: list[Batch] | None = None) -> str:
    with pytest.raises(Diverged) as told:
        fit(method, train or batches(6), 2)
    return str(told.value)


class Bursting(Own):
    """A term that overflows in a given step."""

    def __init__(self, step: int, size: float = 1.0, **kwargs: Any) -> None:
        super().__init__(None, **kwargs)
        self.step, self.size, self.steps = step, size, 0

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        self.steps += 1
        burst = s.logits.square().mean() * self.size
        return {"ce": cross_entropy(s.logits, batch.y), "backward": burst / (0.0 if self.steps > self.step else 1.0)}


def test_the_term_that_was_lost_first_is_named() -> None:
    """It takes the weights with it, and all other terms in the next step; ``ce`` is declared before it."""
    told = reason(bound(Bursting(3, protocol=PROTOCOL), SPEC))
    assert told.startswith("the loss term 'backward' was not finite in epoch 1, from step 4 on; ")
    told = reason(bound(Bursting(8, protocol=PROTOCOL), SPEC))
    assert told.startswith("the loss term 'backward' was not finite in epoch 2, from step 3 on; ")


def test_in_the_first_step_no_learning_rate_is_to_blame() -> None:
    told = reason(bound(Bursting(0, protocol=PROTOCOL), SPEC))
    assert told.endswith("from step 1 on; nothing was learned before, so mend the settings of 'backward', or the data")


def test_a_rate_or_a_weight_that_is_too_high_is_told() -> None:
    wild = {"_target_": "torch.optim.SGD", "lr": 1e20}
    told = reason(bound(Scratch(protocol=PROTOCOL.model_copy(update={"optimizer": wild})), SPEC))
    assert told == (
        "the loss term 'ce' was not finite in epoch 1, from step 2 on; lower the learning rate (protocol.optimizer.lr)"
    )
    told = reason(bound(KD(weights={"ce": 1.0, "kd": 1e25}, protocol=PLAIN), SPEC))
    assert "the loss term 'kd' was not finite in epoch 1" in told
    assert told.endswith(
        "'kd' made 100% of the loss before, so lower its weight or the learning rate (protocol.optimizer.lr)"
    )
    told = reason(bound(DAFL(generator_lr=1e30, protocol=PLAIN), SPEC))
    assert told.endswith("lower the learning rate of its generator")


def test_a_tally_knows_means_and_what_was_lost() -> None:
    tally = Tally()
    for step in range(4):
        a, b = float(step), 10.0 / (1 if step < 2 else 0) if step < 2 else math.inf
        for _ in range(2):  # two turns a step
            tally.add({"a": torch.tensor(a), "b": torch.tensor(b)})
        tally.add({"c": torch.tensor(math.nan if step == 3 else 1.0, dtype=torch.bfloat16)})
        tally.steps += 1
    means = tally.means()
    assert means["a"] == 1.5
    assert means["b"] == math.inf
    assert math.isnan(means["c"])
    assert tally.lost() == {"b": 2, "c": 3}
    assert tally.finite_means() == {"a": 1.5, "b": 10.0, "c": 1.0}


def test_a_tally_sums_halves_in_float32() -> None:
    tally = Tally()
    for _ in range(1000):
        tally.add({"a": torch.tensor(1.0, dtype=torch.bfloat16)})  # whose sum would stop at 256
        tally.steps += 1
    assert tally.means() == {"a": 1.0}
