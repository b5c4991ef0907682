"""Single methods of the further families: their parts against plain formulas, their plans by hand."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_methods import (
    BATCH,
    CLASSES,
    ENTRIES,
    PLAIN,
    PROTOCOL,
    SPEC,
    STUDENT,
    TEACHER,
    Snapshots,
    batches,
    bind,
    close,
    fit,
    make,
    moved,
    network,
    same,
    sgd,
    state,
    trainer,
    watch,
)
from torch import Tensor, nn

from kdbench.data.batch import Batch
from kdbench.engine.seeding import seeded
from kdbench.errors import DoesNotFit
from kdbench.method import Method
from kdbench.models.base import StagedNet, conv_bn_relu
from kdbench.taps import Out, Spec
from methods.applications.self_ensembling import SelfEnsembling
from methods.controls.actor_critic import actor_critic_losses, returns
from methods.controls.replay import Replay
from methods.data_free import deep_inversion, zskd
from methods.data_free.deep_inversion import DeepInversion
from methods.data_free.zskd import ZSKD, impression_loss
from methods.few_sample.finetuning import Finetuning
from methods.few_sample.fskd import FSKD, output_of, strongest
from methods.learning.bic import BiC
from methods.learning.icarl import ICaRL, herded
from methods.learning.lucir import LUCIR
from methods.learning.mean_teacher import MeanTeacher
from methods.learning.rehearsal import Mix
from methods.learning.sskd import ROTATIONS, SSKD, rotated, selected, sources, split

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|many workers|logging interval|no `val_dataloader)")

RNG = torch.Generator().manual_seed(0)


# ---- noise --------------------------------------------------------------------------------------------------------


def test_a_share_of_the_samples_have_noisy_logits_drawn_anew_each_time() -> None:
    method = bind(ENTRIES["noisy_teacher"].cls(**{**ENTRIES["noisy_teacher"].settings, "share": 0.5}))
    x = torch.randn(200, *SPEC.shape, generator=RNG)
    batch = Batch(x, torch.zeros(200).long(), torch.arange(200), torch.zeros(200, 3).long())
    clean = method.teacher_out(x).logits
    factors = [method.teach(batch).logits / clean for _ in range(2)]
    noisy = [(factor != 1).any(1) for factor in factors]
    for factor, rows in zip(factors, noisy, strict=True):
        assert 70 < rows.sum() < 130  # 100 ± 4.2 standard deviations
        assert factor[rows].std() == pytest.approx(0.1**0.5, rel=0.1)
    assert not torch.equal(*noisy)


# ---- self-supervision ---------------------------------------------------------------------------------------------


def test_each_image_is_followed_by_its_rotations() -> None:
    x = torch.randn(3, 2, 4, 4, generator=RNG)
    plain, turned = split(rotated(x))
    assert torch.equal(plain, x)
    for image, views in zip(x, turned.view(3, ROTATIONS - 1, 2, 4, 4), strict=True):
        for quarter, view in enumerate(views, start=1):
            assert torch.equal(view, torch.rot90(image, quarter, (1, 2)))
    assert sources(3).tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_of_the_wrong_rows_the_best_ranked_are_transferred() -> None:
    # ranks of class 0: 0, 1, 2, 0, 1, so three rows are wrong, and of two of these 75 % is one
    scores = torch.tensor([[3.0, 2, 1], [2, 3, 1], [1, 3, 2], [3, 1, 2], [2, 1, 3]])
    right = torch.zeros(5, dtype=torch.long)
    assert selected(scores, right, 0.0).tolist() == [True, False, False, True, False]
    assert selected(scores, right, 0.75).tolist() == [True, True, False, True, True]  # floor(.75 * 3) = 2
    assert selected(scores, right, 0.34).tolist() == [True, True, False, True, False]  # the first of equals
    assert selected(scores, right, 1.0).all()


def test_sskd_first_trains_the_teachers_projection_alone() -> None:
    method = make("sskd")
    start = {name: value.detach().clone() for name, value in method.named_parameters()}
    spy = Snapshots()
    fit(method, batches(2), 2, callbacks=[spy])
    first, second = moved(start, spy.states[0]), moved(spy.states[0], spy.states[1])
    assert first == {name for name in start if name.startswith("teacher_head.")}
    assert second == {name for name in start if name.startswith(("student.", "student_head."))}
    assert method.forwards == {"student": 2 * BATCH * ROTATIONS, "teacher": 4 * BATCH * ROTATIONS}
    with pytest.raises(DoesNotFit, match="not square"):
        SSKD().bind(network(STUDENT, 0), network(TEACHER, 0), replace(SPEC, shape=(1, 8, 16)))


# ---- incremental --------------------------------------------------------------------------------------------------

MEMORY, EACH = 12, 8
INCREMENTAL = replace(
    SPEC, task="class-incremental", n_train=CLASSES * EACH, experiences=(2, 4, 6), memory=MEMORY, num_classes=CLASSES
)


class World:
    """Classes that arrive two by two: `EACH` samples of each, around a point of its own."""

    def __init__(self) -> None:
        rng = torch.Generator().manual_seed(0)
        self.y = torch.arange(CLASSES).repeat_interleave(EACH)[torch.randperm(CLASSES * EACH, generator=rng)]
        centres = torch.randn(CLASSES, *SPEC.shape, generator=rng)
        self.x = centres[self.y] + 0.1 * torch.randn(len(self.y), *SPEC.shape, generator=rng)

    def positions(self, experience: int) -> Tensor:
        return (self.y // 2 == experience).nonzero()[:, 0]

    def take(self, index: Tensor, epoch: int, *, plain: bool) -> Batch:
        return Batch(self.x[index], self.y[index], index, torch.zeros(len(index), 3, dtype=torch.long))

    def batches(self, experience: int) -> list[Batch]:
        return [self.take(part, 0, plain=False) for part in self.positions(experience).split(BATCH)]


class Arriving:
    """A loader whose batches are those of the experience in course."""

    def __init__(self, world: World, method: Method, each: int) -> None:
        self.world, self.method, self.each = world, method, each

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.world.batches(self.method.epoch // self.each))

    def __len__(self) -> int:
        return 2 * EACH // BATCH


def learn(method: Method, each: int = 2) -> World:
    """Train over three experiences of `each` epochs; `method` sees samples of `World`."""
    method.protocol = method.protocol.model_copy(update={"epochs": 3 * each})
    bind(method, spec=INCREMENTAL)
    world = World()
    method.samples = world
    with seeded("training"):
        trainer(3 * each).fit(method, Arriving(world, method, each))
    return world


@pytest.mark.parametrize("name", ["replay", "lwf", "icarl", "lucir", "bic"])
def test_incremental_methods_learn_what_arrives(name: str) -> None:
    entry = ENTRIES[name]
    method = entry.cls(**entry.settings, protocol=PROTOCOL)
    turns = watch(method)
    world = learn(method)
    assert {term for turn in turns for term in turn.terms} == set(method.terms)
    first = [turn.terms.keys() for turn in turns if turn.epoch < 2]
    assert all(len(terms) == 1 for terms in first)  # there is no past self to learn from
    # the memory is full, and divided equally
    kept = world.y[method.kept]
    assert kept.bincount(minlength=CLASSES).tolist() == ([0] if name == "lwf" else [2]) * CLASSES
    scores = method.eval()(world.x)
    assert scores.shape == (len(world.x), CLASSES)
    assert (scores.argmax(1) >= 4).any()  # of the classes that came last, too


def test_without_memory_replay_is_fine_tuning() -> None:
    """Nothing joins the batch, and the scores of classes to come are left out of the loss."""
    method = Replay(protocol=PLAIN.model_copy(update={"epochs": 3}))
    bind(method, spec=replace(INCREMENTAL, memory=0))
    method.samples = World()
    student = copy.deepcopy(method.student)
    with seeded("training"):
        trainer(3).fit(method, Arriving(method.samples, method, 1))
    for experience in range(3):
        for batch in method.samples.batches(experience):
            sgd(student, F.cross_entropy(student(batch.x)[:, : 2 * experience + 2], batch.y), lr=0.1)
    assert close(method.student, student)
    assert method.images_seen == CLASSES * EACH + method.taken


@pytest.mark.parametrize(("mix", "joined"), [("equal", 16), ("union", 14)])
def test_exemplars_join_a_batch_as_often_as_the_mix_says(mix: Mix, joined: int) -> None:
    method = Replay(mix=mix, protocol=PLAIN)
    sizes: list[int] = []
    original = method.losses

    def losses(s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        sizes.append(len(batch))
        return original(s, t, batch)

    method.losses = losses  # type: ignore[method-assign]
    learn(method, each=1)
    assert sizes == [8, 8] + [joined] * 4  # 16 new samples and 12 kept ones: 6 of these to a batch of 8 new ones


def test_herding_takes_what_brings_the_mean_nearest() -> None:
    features = F.normalize(torch.randn(9, 4, generator=RNG), dim=1)
    mean, left, chosen = features.mean(0), list(range(9)), []
    for _ in range(5):  # algorithm 4 of the paper, by trying every candidate
        trials = {i: (mean - features[[*chosen, i]].mean(0)).norm().item() for i in left}
        best = min(trials, key=trials.__getitem__)
        chosen.append(best)
        left.remove(best)
    assert herded(features, 5).tolist() == chosen
    assert sorted(herded(features, 20).tolist()) == list(range(9))


def test_icarl_classifies_by_the_nearest_mean_of_its_exemplars() -> None:
    method = ICaRL(protocol=PROTOCOL)
    world = learn(method)
    net = method.student.eval()
    with torch.no_grad():
        features = F.normalize(net.tap(world.x, ("embed",))["embed"], dim=1)  # type: ignore[operator]
        means = []
        for label in range(CLASSES):
            exemplars = method.kept[world.y[method.kept] == label]
            means.append(F.normalize(features[exemplars].mean(0), dim=0))
        nearest = torch.stack([(features - mean).square().sum(1) for mean in means], 1).argmin(1)
        assert torch.equal(method.eval()(world.x).argmax(1), nearest)
    # old classes keep the beginning of what was chosen for them
    for label in range(CLASSES):
        assert method.ranked[label][method.ranked[label] >= 0].sort().values.tolist() == sorted(
            method.kept[world.y[method.kept] == label].tolist()
        )
    with pytest.raises(DoesNotFit, match="memory for 5"):
        bind(ICaRL(), spec=replace(INCREMENTAL, memory=5))


def test_lucir_imprints_the_weights_of_new_classes() -> None:
    method = LUCIR(protocol=PROTOCOL)
    imprinted: list[Tensor] = []
    original = method.welcome

    def welcome() -> None:
        original()
        imprinted.append(method.net.head.weight.detach().clone())
        if method.experience.old:
            length = imprinted[-1][: method.experience.old].norm(dim=1).mean()
            for label in range(method.experience.old, method.experience.seen):
                x = method.samples.x[method.samples.y == label]  # type: ignore[union-attr]
                maps = method.student.tap(x, (method.tap,))[method.tap]  # type: ignore[operator]
                mean = F.normalize(maps.mean((2, 3)), dim=1).mean(0)
                assert torch.allclose(imprinted[-1][label], length * mean / mean.norm(), atol=1e-6)

    method.welcome = welcome  # type: ignore[method-assign]
    world = learn(method)
    assert len(imprinted) == 3
    scores = method.eval()(world.x)
    assert scores.abs().max() <= method.net.head.scale.abs() + 1e-6  # cosines


@pytest.mark.parametrize("hold", [True, False])
def test_lucir_holds_the_weights_of_old_classes(hold: bool) -> None:
    method = LUCIR(hold=hold, protocol=PROTOCOL)
    moved: list[float] = []
    original = method.losses

    def losses(s: Out, t: Out | None, batch: Batch) -> dict[str, Tensor]:
        terms = original(s, t, batch)
        if old := method.experience.old:
            of_weight = torch.autograd.grad(sum(terms.values()), method.net.head.weight, retain_graph=True)[0]
            assert (of_weight[old : method.experience.seen] != 0).any()
            moved.append(of_weight[:old].abs().max().item())
        return terms

    method.losses = losses  # type: ignore[method-assign]
    learn(method)
    assert len(moved) > 1
    assert (max(moved) == 0) == hold


@pytest.mark.parametrize("corrections", ["newest", "all"])
def test_bic_learns_its_bias_on_held_out_samples_with_the_student_at_rest(corrections: Any) -> None:
    method = BiC(bias_share=0.5, corrections=corrections, protocol=PROTOCOL)
    remembered: list[list[float]] = []
    welcome = method.welcome
    method.welcome = lambda: (welcome(), remembered.append([float(scale) for scale in method.past.net.scales]))[0]  # type: ignore
    trained: set[int] = set()
    validated: set[int] = set()
    original = method.turns

    def turns(batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        before = state(method.student)
        (validated if method.stage == "bias" else trained).update(batch.index.tolist())
        yield from original(batch)
        assert same(state(method.student), before) == (method.stage == "bias")

    method.turns = turns  # type: ignore[method-assign]
    world = learn(method, each=4)
    assert trained.isdisjoint(validated)
    held = world.y[sorted(validated)].bincount(minlength=CLASSES)
    assert held.tolist() == [1] * CLASSES  # a tenth of two exemplars is one at least
    assert [scale.item() != 1 for scale in method.corrected.scales] == [corrections == "all", True]
    assert [[scale != 1 for scale in scales] for scales in remembered] == [[False] * 2] * 2 + [[True, False]]
    plain, deployed = method.student.eval()(world.x), method.eval()(world.x)
    assert torch.equal(plain[:, :2], deployed[:, :2])
    for k in (1, 2):
        columns = slice(2 * k, 2 * k + 2)
        expected = method.corrected.scales[k - 1] * plain[:, columns] + method.corrected.shifts[k - 1]
        assert torch.allclose(deployed[:, columns], expected)


# ---- without data, and from few -----------------------------------------------------------------------------------


def test_zskd_synthesises_what_the_teacher_takes_for_the_drawn_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(SPEC, mean=(0.5,), std=(0.25,))
    method = bind(
        ZSKD(impressions=24, iterations=30, image_lr=0.05, image_batch=12, temperature=2.0, protocol=PROTOCOL),
        spec=spec,
    )
    assert isinstance(method, ZSKD)
    losses: list[float] = []
    labels: list[Tensor] = []

    def spy(logits: Tensor, softmax: Tensor, temperature: float) -> Tensor:
        loss = impression_loss(logits, softmax, temperature)
        losses.append(loss.item())
        labels.append(softmax)
        return loss

    monkeypatch.setattr(zskd, "impression_loss", spy)
    fit(method, batches(2), 2)
    assert len(losses) == 2 * 30
    assert losses[29] < losses[0]
    assert losses[59] < losses[30]
    drawn = torch.cat([labels[0], labels[-1]])
    assert torch.allclose(drawn.sum(1), torch.ones(24))
    # with a concentration of 1 for its own class and less for all others, most draws are of that class
    assert (drawn.argmax(1) == torch.arange(24) % CLASSES).double().mean() > 0.5
    pixels = method.images * 0.25 + 0.5
    assert pixels.min() == pytest.approx(0, abs=1e-6)
    assert pixels.max() == pytest.approx(1, abs=1e-6)
    assert method.forwards == {"student": 4 * BATCH, "teacher": 4 * BATCH + 24 * 30}


def test_deep_inversion_dreams_in_rounds_and_competes_from_the_second_on(monkeypatch: pytest.MonkeyPatch) -> None:
    method = bind(DeepInversion(images=24, rounds=2, iterations=20, image_batch=6, protocol=PROTOCOL))
    assert isinstance(method, DeepInversion)
    losses: list[tuple[int, float]] = []
    original = method.image_loss

    def spy(x: Tensor, y: Tensor, seen: deep_inversion.Statistics) -> Tensor:
        loss = original(x, y, seen)
        losses.append((method.round, loss.item()))
        return loss

    method.image_loss = spy  # type: ignore[method-assign]
    fit(method, batches(2), 2)
    assert [k for k, _ in losses] == [0] * 40 + [1] * 40
    for start in range(0, 80, 20):
        assert losses[start + 19][1] < losses[start][1]
    norms = [module for module in method.teacher.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert not any(norm._forward_hooks for norm in norms)
    # each round shows its students 2 batches; the teacher sees all dreams, the student competes over the later ones
    assert method.forwards == {"student": 4 * BATCH + 12 * 20, "teacher": 4 * BATCH + 24 * 20}
    without = nn.Sequential(nn.Flatten(), nn.Linear(64, CLASSES))
    with pytest.raises(DoesNotFit, match="has none"):
        DeepInversion().build(Spec("student"), Spec("mlp", net=without), SPEC)


def chain(*widths: int) -> StagedNet:
    """A stem and stages of one convolution each."""
    channels = (SPEC.shape[0], *widths)
    layers = [conv_bn_relu(a, b, bias=True) for a, b in pairwise(channels)]
    stages = [[nn.Sequential(*layer[:-1])] for layer in layers[1:]]
    return StagedNet(nn.Sequential(*layers[0]), stages, nn.Linear(widths[-1], CLASSES))


def repaired(student: nn.Module, teacher: nn.Module, images: int = 48) -> tuple[FSKD, World]:
    spec = replace(SPEC, n_train=CLASSES * EACH)
    method = FSKD(images=images, weights={}, protocol=PROTOCOL)
    method.bind(student, teacher, spec)
    world = method.samples = Whole()
    fit(method, batches(1), 2)
    return method, world


class Whole(World):
    """The same samples, all at once."""

    def positions(self, experience: int) -> Tensor:
        return torch.arange(len(self.y))


def test_fskd_at_full_width_gives_the_teacher() -> None:
    torch.manual_seed(0)
    teacher = chain(6, 8, 8)
    teacher(torch.randn(64, *SPEC.shape))  # statistics
    method, world = repaired(chain(6, 8, 8), teacher)
    assert torch.allclose(method.student.eval()(world.x), teacher(world.x), atol=1e-3)
    assert method.forwards == {"student": 3 * 48, "teacher": 3 * 48}
    assert method.images_seen == 48


def test_fskd_repairs_what_pruning_broke() -> None:
    torch.manual_seed(0)
    teacher = chain(12, 16, 16)
    teacher(torch.randn(64, *SPEC.shape))
    errors = []
    for repair in (False, True):
        student = chain(6, 8, 8)
        method = FSKD(weights={}, protocol=PROTOCOL)
        if not repair:
            method.estimate = lambda: None  # type: ignore[method-assign]
        method.bind(student, teacher, replace(SPEC, n_train=CLASSES * EACH))
        world = method.samples = Whole()
        fit(method, batches(1), 2)
        kept = torch.cat([strongest(source, 8) for source, _ in method.whole.layers[-1:]])
        assert torch.equal(kept, kept.unique())
        last, whole = method.own.layers[-1][0], method.whole.layers[-1][0]
        s, t = output_of(last, partial(student.eval(), world.x)), output_of(whole, partial(teacher, world.x))
        errors.append((s - t[:, kept]).square().mean().item())
    assert errors[1] < 0.7 * errors[0]


def test_fine_tuning_begins_where_fskd_does_and_learns_from_labels() -> None:
    torch.manual_seed(0)
    teacher = chain(12, 16, 16)
    teacher(torch.randn(64, *SPEC.shape))
    method = Finetuning(weights={"ce": 1.0}, protocol=PLAIN)
    method.bind(chain(6, 8, 8), teacher, SPEC)
    method.samples = Whole()
    (batch,) = batches(1)
    start = FSKD(weights={}, protocol=PLAIN).bind(chain(6, 8, 8), teacher, SPEC)
    assert isinstance(start, FSKD)
    start.prune()
    fit(method, [batch], 1)
    pruned = start.student.train()
    sgd(pruned, F.cross_entropy(pruned(batch.x), batch.y), lr=0.1)
    assert close(method.student, pruned)
    assert method.forwards == {"student": BATCH, "teacher": 0}


def test_fskd_wants_a_chain_and_a_narrower_one() -> None:
    for student, teacher, message in (
        (chain(4, 4), network(TEACHER, 0), "no chain"),
        (chain(4, 4, 4), chain(4, 4), "no narrower version"),
        (chain(8, 4), chain(4, 4), "no narrower version"),
    ):
        with pytest.raises(DoesNotFit, match=message):
            FSKD(weights={}).bind(student, teacher, SPEC)


# ---- averages of the student --------------------------------------------------------------------------------------

STREAMED = replace(SPEC, streams=("again", "unlabelled"))


def streamed(seed: int = 0) -> Batch:
    """A labelled batch with its other view, and beside it unlabelled images in two views."""
    first, again, free, free_again = batches(4, seed=seed)
    hidden = replace(free, y=torch.full_like(free.y, -1), x=2 * free.x + 1, beside={"again": free_again})
    return replace(first, beside={"again": again, "unlabelled": hidden})


def averaged(student: nn.Module, average: nn.Module, decay: float) -> None:
    with torch.no_grad():
        for mine, theirs in zip(average.parameters(), student.parameters(), strict=True):
            mine.mul_(decay).add_((1 - decay) * theirs)


def test_mean_teacher_by_hand() -> None:
    weights = {"ce": 1.0, "consistency": 3.0}
    method = bind(MeanTeacher(decay=0.6, weights=weights, protocol=PLAIN), spec=STREAMED)
    student, average = copy.deepcopy(method.student), copy.deepcopy(method.student)
    steps = [streamed(seed) for seed in range(3)]
    fit(method, steps, 1)
    for batch, decay in zip(steps, (0.0, 0.5, 0.6), strict=True):  # min(1 - 1 / (step + 1), .6)
        free = batch["unlabelled"]
        z = student(torch.cat([batch.x, free.x]))
        with torch.no_grad():
            t = average(torch.cat([batch["again"].x, free["again"].x])).softmax(1)
        ce = F.cross_entropy(z[:BATCH], batch.y) / 2  # over the whole batch
        sgd(student, ce + 3 * ((z.softmax(1) - t) ** 2).mean(), lr=0.1)
        averaged(student, average, decay)
    assert close(method.student, student)
    assert close(method.deployed(), average)
    assert method.deployed() is not method.student
    for mine, theirs in zip(method.deployed().buffers(), average.buffers(), strict=True):
        assert torch.allclose(mine.double(), theirs.double(), rtol=1e-4)


def test_what_self_ensembling_deploys_has_the_targets_statistics() -> None:
    weights = {"ce": 1.0, "consistency": 3.0, "balance": 0.5}
    method = bind(SelfEnsembling(decay=0.9, threshold=0.2, weights=weights, protocol=PLAIN), spec=STREAMED)
    student, average = copy.deepcopy(method.student), copy.deepcopy(method.student)
    steps = [streamed(seed) for seed in range(2)]
    fit(method, steps, 1)
    for batch in steps:
        target = batch["unlabelled"]
        source, z = student(batch.x), student(target.x)
        with torch.no_grad():
            t = average(target["again"].x).softmax(1)
        mask = (t.amax(1) > 0.2).float()
        p = z.softmax(1)
        rows, mean = ((p - t) ** 2).mean(1), p.mean(0)
        balance = -(1 / 6 * (mean + 1e-6).log() + 5 / 6 * (1 - mean + 1e-6).log()).sum() * mask.mean()
        loss = F.cross_entropy(source, batch.y) + 3 * (rows * mask).mean() + 0.5 * balance
        sgd(student, loss, lr=0.1)
        averaged(student, average, 0.9)
    assert close(method.student, student)
    assert close(method.deployed(), average)
    for mine, theirs in zip(method.deployed().buffers(), average.buffers(), strict=True):
        assert torch.allclose(mine.double(), theirs.double(), rtol=1e-4)


# ---- policies -----------------------------------------------------------------------------------------------------


def test_returns_are_discounted_within_episodes_and_go_on_with_values() -> None:
    rng = torch.Generator().manual_seed(0)
    reward, following = torch.randn(5, 3, generator=rng), torch.randn(5, 3, generator=rng)
    ended = torch.tensor([[0, 0, 1], [1, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 1]]).bool()
    terminated = ended & torch.tensor([[0, 0, 1], [0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]]).bool()
    found = returns(reward, following, terminated, ended, 0.9)
    for env in range(3):
        for t in range(5):
            worth, factor = 0.0, 1.0
            for k in range(t, 5):
                worth += factor * reward[k, env].item()
                factor *= 0.9
                if ended[k, env] or k == 4:
                    worth += factor * following[k, env].item() * (not terminated[k, env])
                    break
            assert found[t, env].item() == pytest.approx(worth, rel=1e-5)


def test_actor_critic_losses_by_autograd_of_the_plain_formulas() -> None:
    rng = torch.Generator().manual_seed(0)
    logits, value = (
        torch.randn(6, 3, generator=rng, requires_grad=True),
        torch.randn(6, generator=rng, requires_grad=True),
    )
    action, target = torch.tensor([0, 1, 2, 0, 1, 2]), torch.randn(6, generator=rng)
    terms = actor_critic_losses(logits, value, action, target)
    p = logits.softmax(1)
    advantage = target - value
    expected = {
        "policy": -(advantage.detach() * p[range(6), action].log()).mean(),
        "value": (advantage**2).mean(),
        "entropy": (p * p.log()).sum(1).mean(),
    }
    for term, loss in terms.items():
        assert loss.item() == pytest.approx(expected[term].item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(terms["policy"], value, allow_unused=True)
    assert gradient is None  # the advantage is a constant of the policy's loss
