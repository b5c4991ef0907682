"""What teaches more strictly, more laxly, or under noise: losses by hand, and who teaches when."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_methods import BATCH, CLASSES, PLAIN, STUDENT, batches, bind, fit, network, same, state, watch
from torch import Tensor, nn

from kdbench.data.batch import Batch
from kdbench.method import Method
from kdbench.protocol import Protocol
from methods.controls.scratch import Scratch
from methods.learning.bss import base_samples, boundary_samples, soft_cross_entropy, target_classes
from methods.logits.cc import correlation_loss, correlations, neighbours_loss
from methods.logits.darkrank import rank_loss
from methods.logits.embedding_teachers import absolute_loss, relative_loss
from methods.logits.ensemble_distillation import EnD
from methods.logits.multi_exit import MultiExit, annealed
from methods.logits.noisy_collaboration import MessyCollaboration, SoftRandomization, another_class
from methods.logits.noisy_student import NoisyStudent
from methods.logits.pu_compression import PUCompression, again, class_weights, pu_loss, robust_loss
from methods.logits.rco import RCO
from methods.logits.tolerant_teacher import TolerantTeacher, score_gap
from methods.teacher_free.snapshot_distillation import SnapshotDistillation, asymmetric_loss

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|many workers|logging interval|no `val_dataloader)")


def random(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tensor(*values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def log_odds(*p: float) -> Tensor:
    """Logits of which the softmax is p."""
    return tensor(*p).log()


# ---- relations ----------------------------------------------------------------------------------------------------


def test_the_series_of_cc_ends_at_the_gaussian_kernel() -> None:
    x = random(5, 7)
    unit = x / x.norm(dim=1, keepdim=True)
    kernel = (-0.4 * (unit[:, None] - unit[None]).square().sum(2)).exp()
    assert torch.allclose(correlations(x, 0.4, 20), kernel, rtol=1e-12)
    # of three terms at an angle of 90 degrees the first is left, at 0 degrees all: e^-0.8 (1 + 0.8 + 0.32)
    found = correlations(tensor([1, 0], [0, 2], [3, 0]), 0.4, 2)
    assert found[0].tolist() == pytest.approx([2.12 * math.exp(-0.8), math.exp(-0.8), 2.12 * math.exp(-0.8)])


def test_neighbours_alone_meet_in_repdistillers_cc() -> None:
    e_s, e_t = tensor([1, 2], [0, 0], [5, 1]), tensor([0, 0], [3, -1], [5, 0])
    assert neighbours_loss(e_s, e_t).item() == pytest.approx(((1 * 3 + 2 * 1) + (3 * 0 + 1 * 1)) / 2)


def test_darkrank_is_the_chance_of_the_teachers_order() -> None:
    """Three points on a line, the query left out: by hand for α = β = 1."""
    teacher, student = tensor([0], [1], [3]), tensor([0], [2], [1])
    # queries 0 and 2: the nearer one for the teacher is 1; query 1: 0
    first = -math.log(math.exp(-2) / (math.exp(-2) + math.exp(-1)))
    second = -math.log(math.exp(-2) / (math.exp(-2) + math.exp(-1)))
    third = -math.log(math.exp(-1) / (math.exp(-1) + math.exp(-1)))
    found = rank_loss(student, teacher, alpha=1, beta=1, length=4)
    assert found.item() == pytest.approx((first + second + third) / 3)


@pytest.mark.parametrize("loss", [rank_loss, correlation_loss, neighbours_loss, absolute_loss, relative_loss])
def test_of_one_sample_or_of_equal_ones_gradients_are_finite(loss: Any) -> None:
    for x in (random(1, 3), tensor([1, 2], [1, 2], [1, 2])):
        x.requires_grad_()
        value = loss(x, x.detach().clone())
        assert value.isfinite()
        assert torch.autograd.grad(value, x)[0].isfinite().all()


def test_absolute_and_relative_teachers_take_no_squares() -> None:
    s, t = tensor([0, 0], [3, 4]), tensor([1, 0], [1, 0])
    assert absolute_loss(s, t).item() == pytest.approx((1 + math.sqrt(20)) / 2, rel=1e-5)
    assert relative_loss(s, t).item() == pytest.approx(math.sqrt(25 + 25))


# ---- samples at the boundary --------------------------------------------------------------------------------------


def test_base_samples_are_right_for_both_and_differ_most_where_there_are_many() -> None:
    y = torch.tensor([0, 0, 0, 0])
    t = torch.stack(
        [log_odds(0.8, 0.1, 0.1), log_odds(0.8, 0.2, 1e-9), log_odds(0.1, 0.8, 0.1), log_odds(0.8, 0.1, 0.1)]
    )
    s = torch.stack(
        [log_odds(0.8, 0.1, 0.1), log_odds(0.8, 0.1, 0.1), log_odds(0.9, 0.05, 0.05), log_odds(0.9, 0.1, 1e-9)]
    )
    rows, base = base_samples(s, t, y, size=4)
    assert rows[base].tolist() == [0, 1, 3]
    rows, base = base_samples(s, t, y, size=2)
    # Σ over the wrong classes: 0; 0.1² + 0.1²; the teacher is wrong; 0 + 0.1²
    assert (rows.tolist(), base.tolist()) == ([1, 3], [True, True])


def test_the_class_to_go_to_is_drawn_by_the_teachers_other_probabilities() -> None:
    t = log_odds(0.1, 0.6, 0.0001, 0.2999).expand(5, 4)
    drawn = target_classes(t, tensor(0.0, 0.7, 0.76, 0.999, 0.9999))
    assert drawn.tolist() == [3, 3, 0, 0, 2]  # of 0.4: 3 to 0.74975, 0 to 0.99975


def test_a_sample_stops_behind_the_boundary_and_moves_by_its_gap() -> None:
    """Two classes z = (x, 0): the gap is x, the slope of length one, so a step leaves x (1 - η) - η · 1e-4."""

    def net(x: Tensor) -> Tensor:
        return torch.stack([x.flatten(1)[:, 0], torch.zeros(len(x), dtype=x.dtype)], dim=1)

    x = tensor(2.0, -1.0)[:, None, None, None]
    found = boundary_samples(net, x, torch.tensor([1, 0]), step=0.5, steps=2, limit=2.5).flatten()
    gap = 2.0
    for _ in range(2):
        gap -= 0.5 * (gap + 1e-4)
    assert found.tolist() == pytest.approx([gap, -(0.25 - 0.75e-4)])
    over = boundary_samples(net, x, torch.tensor([1, 0]), step=1.0, steps=9, limit=2.5).flatten()
    assert over.tolist() == pytest.approx([-1e-4, 1e-4])


def test_samples_that_are_no_base_do_not_count() -> None:
    s, t, base = random(3, 4), random(3, 4, seed=1), torch.tensor([True, False, True])
    expected = -(F.softmax(t / 3, 1) * F.log_softmax(s / 3, 1)).sum(1)[[0, 2]].mean()
    assert soft_cross_entropy(s, t, 3.0, base).item() == pytest.approx(expected.item())
    assert soft_cross_entropy(s, t, 3.0, torch.zeros(3, dtype=torch.bool)).item() == 0


# ---- exits --------------------------------------------------------------------------------------------------------


def test_the_temperature_rises_while_the_last_exit_is_sharp() -> None:
    last = torch.stack([log_odds(0.9, 0.1), log_odds(0.5, 0.5)])  # 0.7 on average; at T = 2, 0.75 and 0.5
    assert annealed(tensor(1.0)[0], last, confidence=0.69, factor=1.05).item() == pytest.approx(1.05)
    assert annealed(tensor(1.0)[0], last, confidence=0.71, factor=1.05).item() == 1
    assert annealed(tensor(2.0)[0], last, confidence=0.63, factor=1.05).item() == 2


def test_multi_exit_keeps_its_temperature_for_the_next_step() -> None:
    method = bind(MultiExit(confidence=0.0, factor=2.0, protocol=PLAIN))
    fit(method, batches(3), 1)
    assert isinstance(method, MultiExit)
    assert method.state_dict()["heat"].item() == 8


# ---- who teaches, and when ----------------------------------------------------------------------------------------


def of(epochs: int) -> Protocol:
    return PLAIN.model_copy(update={"epochs": epochs})


def test_each_anchor_of_rco_teaches_its_share_of_the_epochs() -> None:
    method = bind(RCO(temperature=2.0, weights={"ce": 0.0, "kd": 1.0}, protocol=of(4)))
    turns, (batch,) = watch(method), batches(1)
    asked = [teacher(batch.x).softmax(1) for teacher in method._teachers]
    expected: list[list[float]] = []
    original = method.losses

    def losses(s: Any, t: Any, batch: Any) -> dict[str, Tensor]:
        q = [(each.logits / 2).softmax(1) for each in t.each]
        p = (s.logits.detach() / 2).softmax(1)
        expected.append([float(4 * (a * (a / p).log()).sum(1).mean()) for a in q])
        return original(s, t, batch)

    method.losses = losses  # type: ignore[method-assign]
    fit(method, [batch], 4)
    assert [turn.stage for turn in turns] == ["anchor1", "anchor1", "anchor2", "anchor2"]
    assert not torch.allclose(*asked)
    found = [turn.terms["kd"] for turn in turns]
    assert found == pytest.approx([expected[0][0], expected[1][0], expected[2][1], expected[3][1]], rel=1e-4)


def test_only_the_snapshot_is_softened() -> None:
    s, t = random(4, 5), random(4, 5, seed=1)
    expected = -(F.softmax(t / 3, 1) * F.log_softmax(s, 1)).sum(1).mean()
    assert asymmetric_loss(s, t, 3.0).item() == pytest.approx(expected.item())


def begins_with(method: Method, stage: str) -> dict[str, dict[str, Tensor]]:
    """A mapping that holds the states of the method's networks as the first turn of a stage finds them."""
    seen: dict[str, dict[str, Tensor]] = {}
    original = method.turns

    def turns(batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        if method.stage == stage and not seen:
            seen.update((name, state(net)) for name, net in method.named_children())
        yield from original(batch)

    method.turns = turns  # type: ignore[method-assign]
    return seen


def test_a_snapshot_is_the_student_at_the_end_of_a_cycle_which_goes_on() -> None:
    method = bind(SnapshotDistillation(cycles=2, protocol=of(2)))
    seen = begins_with(method, "cycle2")
    fit(method, batches(2), 2)
    once = fit(bind(Scratch(protocol=of(1))), batches(2), 1)
    assert same(seen["student"], state(once.student))
    assert {f"net.{name}" for name in seen["student"]} == set(seen["snapshot"])
    assert all(torch.equal(seen["snapshot"][f"net.{name}"], value) for name, value in seen["student"].items())
    assert same(seen["snapshot"], state(method.get_submodule("snapshot")))
    assert not same(seen["student"], state(method.student))


def test_the_gap_is_between_the_first_class_and_the_mean_of_the_next() -> None:
    z = torch.stack([log_odds(0.5, 0.1, 0.3, 0.08, 0.02), log_odds(0.2, 0.2, 0.2, 0.2, 0.2)])
    assert score_gap(z, classes=3).item() == pytest.approx((0.5 - (0.3 + 0.1) / 2) / 2)
    assert score_gap(z, classes=9).item() == pytest.approx((0.5 - 0.5 / 4) / 2)


def test_the_first_generation_alone_is_tolerant() -> None:
    method = bind(TolerantTeacher(protocol=of(2)))
    turns = watch(method)
    fit(method, batches(1), 2)
    assert [set(turn.terms) for turn in turns] == [{"first", "gap"}, {"ce", "kd"}]


def test_end_is_the_divergence_from_the_mean_member() -> None:
    method = bind(EnD(temperature=2.0, protocol=of(1)))
    (batch,) = batches(1)
    with torch.no_grad():
        t, s = method.teach(batch), method.student_out(batch.x)
    assert t is not None
    mean = torch.stack([(each.logits.double() / 2).softmax(1) for each in t.each]).mean(0)
    expected = 4 * (mean * (mean.log() - (s.logits.double() / 2).log_softmax(1))).sum(1).mean()
    assert method.losses(s, t, batch)["kd"].item() == pytest.approx(expected.item(), rel=1e-4)


# ---- under noise --------------------------------------------------------------------------------------------------


def test_a_noisy_student_begins_anew_and_its_teacher_drops_nothing() -> None:
    method = bind(NoisyStudent(generations=2, dropout=0.5, protocol=of(2)))
    assert isinstance(method, NoisyStudent)
    turns, seen = watch(method), begins_with(method, "generation2")
    fit(method, batches(1), 2)
    assert [set(turn.terms) for turn in turns] == [{"first"}, {"ce", "pseudo"}]
    (batch,) = batches(1)
    taught = batch["unlabelled"].x
    asked = [method.teacher_out(taught, method.parent).logits for _ in range(2)]
    assert torch.equal(*asked)
    assert not torch.equal(method.noisy_logits(batch.x), method.noisy_logits(batch.x))
    assert same(seen["student"], state(network(STUDENT, 0, 1)))


def test_dropped_features_leave_the_mean_as_it_is() -> None:
    method = bind(NoisyStudent(generations=2, dropout=0.25, protocol=of(2)))
    assert isinstance(method, NoisyStudent)
    method.eval()
    (batch,) = batches(1)
    with torch.no_grad():
        found = torch.stack([method.noisy_logits(batch.x) for _ in range(4000)])
        clean = method.student(batch.x)
    error = found.std(0) / math.sqrt(len(found))
    assert ((found.mean(0) - clean).abs() < 5 * error + 1e-6).all()


class Recorder(nn.Module):
    """Remembers what a network is asked."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.asked = net, []

    def forward(self, x: Tensor) -> Any:
        return self.net(x)

    def tap(self, x: Tensor, names: Any = None) -> Any:
        self.asked.append(x.detach().clone())
        return self.net.tap(x, names)  # type: ignore[operator]


def test_soft_randomization_shows_noise_to_the_student_alone() -> None:
    method = bind(SoftRandomization(noise=0.5, protocol=of(1)))
    (batch,) = batches(1)
    method.student, method._teachers = Recorder(method.student), (Recorder(method._teachers[0]),)
    before = batch.x.clone()
    list(method.turns(batch))
    assert torch.equal(batch.x, before)
    assert torch.equal(method._teachers[0].asked[0], before)
    noise = method.student.asked[0] - before
    assert noise.std().item() == pytest.approx(0.5, rel=0.2)


def test_messy_labels_are_any_class_but_their_own() -> None:
    y = torch.arange(6).repeat_interleave(5)
    step = torch.arange(1, 6).repeat(6)
    found = another_class(y, torch.ones(30, dtype=torch.bool), step, 6).view(6, 5)
    assert [sorted(row) for row in found.tolist()] == [[c for c in range(6) if c != own] for own in range(6)]
    assert torch.equal(another_class(y, torch.zeros(30, dtype=torch.bool), step, 6), y)
    method, (batch,) = bind(MessyCollaboration(share=0.25, protocol=of(1))), batches(1)
    before = batch.y.clone()
    wrong = torch.stack([method.batch(batch).y != before for _ in range(2000)])
    assert torch.equal(batch.y, before)
    assert wrong.float().mean().item() == pytest.approx(0.25, abs=0.02)


# ---- positives among the unlabelled -------------------------------------------------------------------------------


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_risk_of_negatives_counts_while_it_is_above_zero() -> None:
    positive, unlabelled = tensor(1.0, 2.0).requires_grad_(), tensor(0.5, -1.0).requires_grad_()
    own = 0.2 * (sigmoid(-1) + sigmoid(-2)) / 2
    negative = (sigmoid(0.5) + sigmoid(-1)) / 2 - 0.2 * (sigmoid(1) + sigmoid(2)) / 2
    assert pu_loss(positive, unlabelled, 0.2).item() == pytest.approx(own + negative)


def test_a_risk_below_zero_is_raised_and_nothing_else() -> None:
    positive, unlabelled = tensor(3.0).requires_grad_(), tensor(-3.0).requires_grad_()
    loss = pu_loss(positive, unlabelled, 0.9)
    assert loss.item() == pytest.approx(0.9 * sigmoid(-3))
    slope = sigmoid(3) * sigmoid(-3)
    g_p, g_u = torch.autograd.grad(loss, (positive, unlabelled))
    assert (g_p.item(), g_u.item()) == pytest.approx((0.9 * slope, -slope))


def test_rare_classes_weigh_more_and_the_worst_weights_count() -> None:
    weights = class_weights(tensor(1.0, 2.0, 4.0))
    assert weights.tolist() == pytest.approx([12 / 7, 6 / 7, 3 / 7])
    s, t = random(4, 3), random(4, 3, seed=1)
    several = torch.stack([weights, weights.flip(0)])
    p, q = F.softmax(s, 1).numpy(), F.softmax(t, 1).numpy()
    rows, label = (q * np.log(q / p)).sum(1), t.argmax(1).numpy()
    expected = max((w.numpy()[label] * rows).mean() for w in several)
    assert robust_loss(s, t, several).item() == pytest.approx(expected)


def test_the_chosen_fill_the_batch_again() -> None:
    chosen = torch.tensor([True, False, True, False, True, False, False])
    assert again(chosen).tolist() == [0, 2, 4, 0, 2, 4, 0]


def test_the_student_sees_positives_alone_and_the_teacher_stays() -> None:
    method = bind(PUCompression(select=0.5, protocol=of(2)))
    assert isinstance(method, PUCompression)
    before, began = state(method._teachers[0]), state(method.classifier.net)
    turns = watch(method)
    fit(method, batches(2), 2)
    assert [(turn.player, set(turn.terms)) for turn in turns] == [("classifier", {"pu"})] * 2 + [
        ("student", {"kd"})
    ] * 2
    assert same(before, state(method._teachers[0]))
    assert not same(began, state(method.classifier.net))
    (batch,) = batches(1)
    method.selector.net.score.bias.data.fill_(-1e6)  # type: ignore[union-attr]
    method.student = Recorder(method.student)
    list(method.turns(batch))
    assert torch.equal(method.student.asked[-1], torch.cat([batch.x, batch.x]))
    assert ((method.noise[1:] >= 0) & (method.noise[1:] <= 0.1)).all()
    assert (method.noise[0] == 0).all()
    # all images in two epochs of two batches, the unlabelled among them where they were taken
    assert 2 * BATCH <= method.mass.sum().item() <= 4 * BATCH
    assert len(method.mass) == CLASSES
