"""Networks that train together, against their equations written out by hand."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from test_methods import PLAIN, batches, bind, close, fit, sgd
from test_peers import softened
from torch import Tensor, nn

from methods.online.cl_ilr import CLILR
from methods.online.dml_joint import DMLJoint
from methods.online.ffl import FFL
from methods.online.okddip_networks import OKDDipNetworks

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|many workers|logging interval|no `val_dataloader)")


class Halved(torch.autograd.Function):
    """The identity, whose gradient is halved."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient / 2


def test_heads_learn_from_the_others_and_share_what_lies_in_front_of_them_by_halves() -> None:
    method = bind(CLILR(forks=2, temperature=2.0, weights={"ce": 0.25, "consensus": 0.75}, protocol=PLAIN))
    assert isinstance(method, CLILR)
    whole = nn.ModuleDict({"student": method.student, "ends": method.ends})
    mine = copy.deepcopy(whole)
    (batch,) = batches(1)
    fit(method, [batch], 1)

    student, (shallow, deep, deep_of_shallow) = mine["student"], mine["ends"]
    fork = student.tap(batch.x)["stage1"]  # type: ignore[operator]
    first = Halved.apply(fork)
    heads = []
    for net, end in ((student.tail("stage1"), deep), (shallow, deep_of_shallow)):  # type: ignore[operator]
        second = Halved.apply(net.tap(first)["stage2"])  # type: ignore[operator]
        heads += [net.tail("stage2")(second), end(second)]  # type: ignore[operator]
    loss = torch.zeros(())
    for i, z in enumerate(heads):
        target = sum(other for j, other in enumerate(heads) if j != i) / 3
        loss = loss + 0.25 * F.cross_entropy(z, batch.y) + 0.75 * softened(target.detach(), z, 2.0)  # type: ignore[union-attr]
    sgd(mine, loss, lr=0.1)
    assert close(whole, mine)
    assert method.deployed() is method.student


def test_a_student_that_had_heads_keeps_whole_gradients_afterwards() -> None:
    method = bind(CLILR(forks=1, protocol=PLAIN))
    (batch,) = batches(1)
    loose = copy.deepcopy(method.student)
    fit(method, [batch], 1)
    loose.load_state_dict(method.student.state_dict())
    for net in (loose, method.student):
        net.zero_grad()
        F.cross_entropy(net.train()(batch.x), batch.y).backward()
    pairs = zip(method.student.parameters(), loose.parameters(), strict=True)
    assert all(torch.equal(a.grad, b.grad) for a, b in pairs if a.grad is not None and b.grad is not None)


@pytest.mark.parametrize("targets", ["ensemble", "pairwise"])
def test_peers_that_step_together_also_learn_by_what_they_teach(targets: str) -> None:
    weights = {"ce": 1.0, "mutual": 0.5}
    method = bind(DMLJoint(peers=3, temperature=2.0, targets=targets, weights=weights, protocol=PLAIN))  # type: ignore[arg-type]
    assert isinstance(method, DMLJoint)
    whole = nn.ModuleDict({"student": method.student, "others": method.others})
    mine = copy.deepcopy(whole)
    (batch,) = batches(1)
    fit(method, [batch], 1)

    a, b, c = (net(batch.x) for net in (mine["student"], *mine["others"]))  # type: ignore[misc]
    loss = sum(F.cross_entropy(z, batch.y) for z in (a, b, c))
    for own, others in ((a, (b, c)), (b, (a, c)), (c, (a, b))):
        if targets == "ensemble":
            loss = loss + 0.5 * softened((others[0] + others[1]) / 2, own, 2.0)
        else:
            loss = loss + 0.25 * (softened(others[0], own, 2.0) + softened(others[1], own, 2.0))
    sgd(mine, loss, lr=0.1)
    assert close(whole, mine)
    assert method.forwards["student"] == 3 * len(batch)


def test_a_fused_classifier_learns_from_the_ensemble_and_teaches_the_peers() -> None:
    method = bind(FFL(peers=2, temperature=2.0, weights={"ce": 1.0, "kd": 0.5}, protocol=PLAIN))
    assert isinstance(method, FFL)
    whole = nn.ModuleDict({"student": method.student, "peers": method.peers, "fusion": method.fusion})
    mine = copy.deepcopy(whole)
    (batch,) = batches(1)
    fit(method, [batch], 1)

    own = mine["student"].tap(batch.x)  # type: ignore[operator]
    other = mine["peers"][0].tap(own["stage2"])  # type: ignore[index]
    fusion, a, b = mine["fusion"], own["logits"], other["logits"]
    x = torch.cat([own["stage3"], other["stage3"]], dim=1)
    x = F.relu(fusion.depthwise_norm(fusion.depthwise(x)))
    fused = fusion.head(F.relu(fusion.pointwise_norm(fusion.pointwise(x))).mean((2, 3)))
    assert fusion.pointwise.weight.shape == (own["stage3"].shape[1], 2 * own["stage3"].shape[1], 1, 1)
    loss = sum(F.cross_entropy(z, batch.y) for z in (a, b, fused))
    loss = loss + 0.5 * (softened(fused.detach(), a, 2.0) + softened(fused.detach(), b, 2.0))
    loss = loss + 0.5 * softened(((a + b) / 2).detach(), fused, 2.0)
    sgd(mine, loss, lr=0.1)
    assert close(whole, mine)


def test_diverse_peers_may_be_networks_of_their_own() -> None:
    weights = {"ce": 1.0, "group": 0.5, "leader": 2.0}
    method = bind(OKDDipNetworks(peers=2, temperature=2.0, weights=weights, protocol=PLAIN))
    assert isinstance(method, OKDDipNetworks)
    whole = nn.ModuleDict({"student": method.student, "peers": method.peers, "attention": method.attention})
    mine = copy.deepcopy(whole)
    (batch,) = batches(1)
    fit(method, [batch], 1)

    leader = mine["student"](batch.x)
    taps = [peer.tap(batch.x) for peer in mine["peers"]]  # type: ignore[operator,union-attr]
    z, h = [each["logits"] for each in taps], [each["embed"] for each in taps]
    query, key = mine["attention"].query, mine["attention"].key
    loss = sum(F.cross_entropy(logits, batch.y) for logits in (*z, leader))
    loss = loss + 2 * softened((z[0] + z[1]) / 2, leader, 2.0)
    for i in range(2):
        attention = torch.stack([(query(h[i]) * key(other)).sum(1) for other in h], dim=1).softmax(1)
        target = attention[:, :1] * z[0] + attention[:, 1:] * z[1]
        loss = loss + 0.5 * softened(target, z[i], 2.0)
    sgd(mine, loss, lr=0.1)
    assert close(whole, mine)
    assert method.forwards["student"] == 3 * len(batch)
    assert method.deployed() is method.student
