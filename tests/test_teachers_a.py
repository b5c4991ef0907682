"""Pools of teachers (5.1, 5.2): what golden numbers do not cover, by hand."""

from __future__ import annotations

import math

import pytest
import torch
from worlds import BATCH, IMAGES, SPEC, Data, batches, network

from kdbench import models
from kdbench.errors import DoesNotFit
from kdbench.taps import Out
from methods.multi_teacher.aekd import AEKD, balanced_weights, min_norm_weights
from methods.multi_teacher.camkd import CAMKD, confidence_weights
from methods.multi_teacher.ebkd import EBKD, entropy_weights
from methods.multi_teacher.hydra import HydraKD
from methods.multi_teacher.lfme import LFME, expert_weights, instance_weights
from methods.multi_teacher.pate import PATE, laplace, noisy_votes
from methods.multi_teacher.switching import Switching, told_by
from methods.multi_teacher.triplets import triplet_voting_loss


@pytest.mark.parametrize(
    ("gradients", "tolerance", "weights"),
    [
        ([[1.0, 0.0], [0.0, 2.0]], 1.0, [0.8, 0.2]),  # w_1 : w_2 = ‖g_2‖² : ‖g_1‖²
        ([[1.0, 0.0], [0.0, 2.0]], 0.6, [0.6, 0.4]),
        ([[1.0, 0.0], [3.0, 0.0]], 1.0, [1.0, 0.0]),  # the shorter says it all
        ([[1.0, 0.0], [-1.0, 0.0], [0.0, 5.0]], 1.0, [0.5, 0.5, 0.0]),  # two who contradict each other
        ([[1.0, 0.0], [-1.0, 0.0], [0.0, 5.0]], 0.4, [0.4, 0.4, 0.2]),
        ([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]], 0.6, [1 / 3] * 3),
        ([[0.0, 0.0], [0.0, 0.0]], 0.6, [0.5, 0.5]),
        ([[1.0, 0.0], [0.0, 2.0]], 0.1, [0.5, 0.5]),  # less than 1/m cannot be asked of all
        ([[1.0, 0.0]], 0.6, [1.0]),
    ],
)
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
def test_the_shortest_mean_gradient(
    gradients: list[list[float]], tolerance: float, weights: list[float], scale: float
) -> None:
    found = min_norm_weights(scale * torch.tensor(gradients), tolerance)
    assert found.tolist() == pytest.approx(weights, abs=1e-6)


@pytest.mark.parametrize("m", [2, 5, 8])
def test_no_weight_can_be_moved_to_another_teacher_with_profit(m: int) -> None:
    """The slope (G w)_k is alike for all weights between 0 and C, no less for those at 0, no more for those at C."""
    for seed in range(20):
        g = torch.randn(m, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        w = min_norm_weights(g, 0.35)
        slope, cap = g @ g.T @ w, max(0.35, 1 / m)
        assert w.sum().item() == pytest.approx(1, abs=1e-9)
        assert ((w >= 0) & (w <= cap)).all()
        takers, givers = slope[w < cap - 1e-9], slope[w > 1e-9]
        if len(takers):
            assert takers.min() >= givers.max() - 1e-7


def test_gradients_of_length_one_are_weighed_by_their_lengths() -> None:
    """At length one the two count alike; divided by 1 and 4 that is 0.8 and 0.2."""
    found = balanced_weights(torch.tensor([[1.0, 0.0], [0.0, 4.0]]), 1.0)
    assert found.tolist() == pytest.approx([0.8, 0.2])
    assert balanced_weights(torch.zeros(3, 2), 1.0).tolist() == pytest.approx([1 / 3] * 3)


def test_who_is_in_doubt_or_errs_counts_less() -> None:
    sure, torn = torch.tensor([[1e4, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0]])
    half = torch.tensor([[0.0, 0.0, -50.0]])  # an entropy of log 2, beside log 3
    whole = math.log(2) + math.log(3)
    expected = [1.0, 1 - math.log(3) / whole, 1 - math.log(2) / whole]
    assert entropy_weights([sure, torn, half]).flatten().tolist() == pytest.approx(expected)
    assert entropy_weights([sure, sure]).flatten().tolist() == pytest.approx([1.0, 1.0])
    # errors of log 2 and 3 log 2: softmax 1/5 and 4/5, and the other's share is the weight
    logits = [torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, math.log(7)]])]
    found = confidence_weights(logits, torch.tensor([0]))
    assert found.flatten().tolist() == pytest.approx([0.8, 0.2])


def test_one_teacher_cannot_be_weighed_and_nine_are_too_many() -> None:
    student, teacher = network(IMAGES.student), network(IMAGES.teacher)
    for method in (EBKD(), CAMKD()):
        with pytest.raises(DoesNotFit, match="weighs teachers against one another"):
            method.bind(student, [teacher], IMAGES.spec)
    with pytest.raises(DoesNotFit, match="weighs up to 8 teachers, and there are 9"):
        AEKD().bind(student, [teacher] * 9, IMAGES.spec)


def test_an_expert_withdraws_as_the_student_catches_up() -> None:
    """Below 0.3 of the expert's 0.8 it is heard in full; (0.8 - 0.5) / (0.7 · 0.8) at 0.5; not at all beyond 0.8."""
    found = expert_weights(torch.tensor([0.2, 0.5, 0.9, 0.0]), torch.tensor([0.8, 0.8, 0.8, 0.0]), 0.3)
    assert found.tolist() == pytest.approx([1.0, 0.3 / 0.56, 0.0, 0.0])


def test_hard_samples_of_large_classes_wait() -> None:
    confidence, y = torch.tensor([0.2, 0.6, 1.0, 0.5]), torch.tensor([0, 0, 0, 1])
    found = instance_weights(confidence, y, torch.tensor([0.25, 1.0, 0.5]))
    assert found.tolist() == pytest.approx([0.25, 0.625, 1.0, 1.0])


def experts_of_three() -> LFME:
    """LFME with an expert for classes 0 to 2, and one for 3 to 5."""
    experts = [models.create(IMAGES.teacher, SPEC.shape, 3) for _ in range(2)]
    return LFME(threshold=0.5).bind(network(IMAGES.student), experts, SPEC, classes=[(0, 1, 2), (3, 4, 5)])  # type: ignore[return-value]


def test_lfme_weighs_experts_by_the_epoch_before() -> None:
    method, y = experts_of_three(), torch.tensor([0, 1, 3, 4])
    student = torch.eye(6)[[0, 5, 3, 4]]  # right of 1 in 2, and of 2 in 2
    experts = [torch.eye(3)[[0, 1, 2, 2]], torch.eye(3)[[2, 2, 0, 2]]]  # of their own: 2 in 2, and 1 in 2
    for epoch, lead in [(0, [1.0, 1.0]), (0, [1.0, 1.0]), (1, [1.0, 0.0])]:
        method.epoch = epoch
        method.count(student, experts, y)
        assert method.lead.tolist() == lead
    assert method.seen.tolist() == [2, 2]  # of this epoch alone
    assert method.hits.tolist() == [[1, 2], [2, 1]]


def test_lfme_asks_the_experts_which_samples_are_easy() -> None:
    """Ten samples of class 0 and two of each class 3 to 5: θ = 2 / (10 / 3), as classes 1 and 2 have none."""
    method = experts_of_three()
    train = batches(2)
    for batch, labels in zip(train, ([0] * 8, [0, 0, 3, 3, 4, 4, 5, 5]), strict=True):
        batch.y = torch.tensor(labels)
    method.samples = Data(train, None, IMAGES)
    method.order()
    v = method.instances
    assert len(v) == 2 * BATCH
    large = v[:10]
    assert (large.min().item(), large.max().item()) == pytest.approx((0.6, 1.0))
    assert v[10:].tolist() == pytest.approx([1.0] * 6)
    x = torch.cat([batch.x for batch in train])
    with torch.no_grad():
        easiest = method.teachers[0].net.eval()(x[:10]).softmax(1)[:, 0].argmax()  # type: ignore[misc,union-attr]
    assert large.argmax() == easiest


def test_hydra_is_one_head_at_first_and_then_the_mean_of_all() -> None:
    method = HydraKD(body_share=0.5)
    method.bind(network(IMAGES.student), [network(IMAGES.teacher, k) for k in range(3)], SPEC)
    net, x = method.deployed().eval(), batches(1)[0].x
    with torch.no_grad():
        first = method.student(x).softmax(1)
        assert torch.allclose(net(x).exp(), first, atol=1e-6)
        method.hydra.grow()
        assert torch.allclose(net(x).exp(), first, atol=1e-6)  # of three copies
        (head, _) = method.hydra.others
        head.head.bias += torch.arange(6.0)  # type: ignore[union-attr,operator]
        logits = method.student(x)
        mean = (2 * logits.softmax(1) + (logits + torch.arange(6.0)).softmax(1)) / 3
        assert torch.allclose(net(x).exp(), mean, atol=1e-6)


def test_hydra_trains_the_body_alone_before_there_are_heads() -> None:
    method = HydraKD(body_share=0.5)
    method.bind(network(IMAGES.student), [network(IMAGES.teacher, k) for k in range(2)], SPEC)
    trained = []
    for method._position in (0, 1):
        (player,) = method.players()
        trained.append({id(parameter) for parameter in player.parameters})
    assert trained[0] == {id(parameter) for parameter in method.student.parameters()}
    assert trained[1] == {id(parameter) for parameter in method.parameters()} > trained[0]


def test_teachers_take_turns() -> None:
    pool = [torch.full((4, 2), float(k)) for k in range(3)]
    assert told_by(pool, torch.tensor([2, 0, 0, 1])).tolist() == [[2.0, 2.0], [0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]
    batch = batches(1)[0]
    student = Out({"logits": torch.zeros(BATCH, 6)})
    say = [Out({"logits": 5 * torch.eye(6)[[k] * BATCH]}) for k in range(2)]
    losses = {}
    for each in ("batch", "sample"):
        method = Switching(each=each)
        method.bind(network(IMAGES.student), [network(IMAGES.teacher, k) for k in range(2)], SPEC)
        s = student.logits.clone().requires_grad_()
        target = set()
        for _ in range(20):
            loss = method.losses(Out({"logits": s}), Out(say[0].taps, (say[1],)), batch)["kd"]
            (slope,) = torch.autograd.grad(loss, s)
            target.add(tuple(slope.argmin(1).tolist()))  # the class of whoever was asked
        losses[each] = target
    assert losses["batch"] == {(0,) * BATCH, (1,) * BATCH}
    assert len(losses["sample"]) > 2


def test_a_noisy_vote() -> None:
    pool = [torch.eye(3)[[0, 1]], torch.eye(3)[[0, 2]], torch.eye(3)[[1, 2]]]
    assert noisy_votes(pool, torch.zeros(2, 3)).tolist() == [0, 2]
    assert noisy_votes(pool, torch.tensor([[0.0, 1.5, 0.0], [0.0, 0.0, -1.5]])).tolist() == [1, 1]
    noise = laplace((400, 500), 2.0, torch.Generator().manual_seed(0))
    assert noise.abs().mean().item() == pytest.approx(2.0, rel=0.02)  # the mean distance is the scale
    assert noise.mean().item() == pytest.approx(0.0, abs=0.03)


def test_pate_votes_once_for_each_image() -> None:
    method, train = PATE(noise=0.0), batches(2)
    pool = [network(IMAGES.teacher, k).eval() for k in range(3)]
    method.bind(network(IMAGES.student), pool, SPEC)
    method.samples = Data(train, None, IMAGES)
    method.vote()
    with torch.no_grad():
        said = torch.stack([net(torch.cat([batch.x for batch in train])).argmax(1) for net in pool])
    counts = torch.nn.functional.one_hot(said, 6).sum(0)
    assert torch.equal(method.voted, counts.argmax(1))
    assert method.teach(train[0]) is None


def test_the_majority_says_which_of_two_is_nearer() -> None:
    """Of the unit vectors at 0, 90 and 180 degrees squared distances from the first are 2 and 4."""
    near, far = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    triplet = torch.tensor([[0], [1], [2]])
    loss = [
        triplet_voting_loss(near, [near, near, far], triplet, 0.5),  # agrees by 2, more than the margin
        triplet_voting_loss(far, [near, near, far], triplet, 0.5),  # is wrong by 2
        triplet_voting_loss(3 * far, [near, near, far], triplet, 0.5),  # lengths do not matter
        triplet_voting_loss(far, [near, far], triplet, 0.5),  # a tie
        triplet_voting_loss(near, [near], torch.tensor([[0], [1], [1]]), 0.5),  # nothing to compare
    ]
    assert [value.item() for value in loss] == pytest.approx([0.0, 2.5, 2.5, 0.0, 0.0])
