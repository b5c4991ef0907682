"""Networks that train together, against their equations written out by hand."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from test_methods import PLAIN, SPEC, batches, bind, close, fit, sgd
from test_peers import softened
from torch import Tensor, nn

from kdbench.errors import UserError
from methods.online.afd import AFD, AFDDirect, fooling_loss, telling_loss
from methods.online.cl_ilr import CLILR
from methods.online.codistillation import Codistillation
from methods.online.dml_joint import DMLJoint
from methods.online.ffl import FFL
from methods.online.mcl import mutual_contrast, similarities
from methods.online.okddip_networks import OKDDipNetworks
from methods.online.transfer_graph import TransferGraph, transfer_loss
from methods.teacher_free.self_regression import SelfRegression

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


def test_contrast_within_and_across_networks() -> None:
    """By loops over anchors and their positives."""
    torch.manual_seed(0)
    y = torch.tensor([0, 1, 0, 2, 1, 0])  # of class 2 there is one sample, which is no anchor
    v = [F.normalize(torch.randn(6, 4), dim=1) for _ in range(3)]
    found = mutual_contrast(similarities(v, 0.5), y, temperature=2.0)

    def contrast(a: Tensor, b: Tensor) -> float:
        losses = []
        for i in (0, 1, 2, 4, 5):
            s = (a[i] @ b.T / 0.5).exp()
            below = s.sum() - s[i]
            losses.append(sum(-(s[p] / below).log() for p in range(6) if p != i and y[p] == y[i]))
            losses[-1] = losses[-1] / int((y == y[i]).sum() - 1)  # type: ignore[operator]
        return float(sum(losses) / 5)

    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    own = [a @ a.T / 0.5 for a in v]
    assert found[0].item() == pytest.approx(sum(contrast(a, a) for a in v), rel=1e-5)
    assert found[1].item() == pytest.approx(sum(softened(own[j], own[i], 2.0).item() for i, j in pairs), rel=1e-5)
    assert found[2].item() == pytest.approx(sum(contrast(v[i], v[j]) for i, j in pairs), rel=1e-5)
    across = [softened(v[j] @ v[i].T / 0.5, v[i] @ v[j].T / 0.5, 2.0).item() for i, j in pairs]
    assert found[3].item() == pytest.approx(sum(across), rel=1e-5)


def test_a_batch_without_two_of_a_class_has_no_contrast_and_whole_gradients() -> None:
    for y in (torch.tensor([0]), torch.tensor([0, 1, 2])):
        v = torch.randn(2, len(y), 4, requires_grad=True)
        vcl, _, icl, _ = mutual_contrast(similarities([*F.normalize(v, dim=2)]), y)
        assert vcl.item() == icl.item() == 0
        (gradient,) = torch.autograd.grad(vcl + icl, v)
        assert not gradient.any()


def test_codistilling_peers_see_images_of_their_own_and_stale_copies() -> None:
    protocol = PLAIN.model_copy(update={"epochs": 2, "batch_size": 8})
    method = bind(Codistillation(peers=2, burn_in=0.5, exchange=2, protocol=protocol))
    assert isinstance(method, Codistillation)
    mine = [copy.deepcopy(peer) for peer in method.peers]
    train = batches(3)
    fit(method, train, 2)

    stale = [copy.deepcopy(net) for net in mine]
    for step, batch in enumerate([*train, *train]):
        z = [net(batch.x[k::2]) for k, net in enumerate(mine)]
        losses = [F.cross_entropy(out, batch.y[k::2]) for k, out in enumerate(z)]
        if step >= 3:  # the second of two epochs
            for k in range(2):
                target = stale[1 - k].eval()(batch.x[k::2]).softmax(1).detach()
                losses[k] = losses[k] - (target * z[k].log_softmax(1)).sum(1).mean()
        for net, loss in zip(mine, losses, strict=True):
            sgd(net, loss, lr=0.1)
        if step % 2 == 1:
            stale = [copy.deepcopy(net) for net in mine]
    assert all(close(a, b) for a, b in zip(method.peers, mine, strict=True))
    assert method.forwards == {"student": 6 * 8, "teacher": 3 * 8}


def test_gates_of_a_graph_let_through_what_they_should() -> None:
    own, source = torch.randn(4, 3), torch.tensor([[2.0, 0, 0], [2.0, 0, 0], [0, 2.0, 0], [0, 0, 2.0]])
    y = torch.tensor([0, 1, 1, 0])  # the source is right about the first and the third
    q, log_p = source.div(2).softmax(1), own.div(2).log_softmax(1)
    each = 4 * (q * (q.log() - log_p)).sum(1)
    expected = {"through": each.mean(), "cutoff": torch.zeros(()), "linear": each.mean() / 4}
    expected["correct"] = (each[0] + each[2]) / 4
    for gate, value in expected.items():
        torch.testing.assert_close(transfer_loss(own, source, y, gate, 0.25, 2.0), value)  # type: ignore[arg-type]
    own.requires_grad_()
    (gradient,) = torch.autograd.grad(transfer_loss(own, source, y, "correct", 0.25), own)
    assert gradient[[1, 3]].abs().max() < 1e-7  # of rounding
    assert gradient[[0, 2]].any()


def test_nodes_of_a_graph_step_together() -> None:
    gates = (("linear", "through"), ("cutoff", "through"))
    protocol = PLAIN.model_copy(update={"epochs": 2})
    method = bind(TransferGraph(gates=gates, protocol=protocol))  # type: ignore[arg-type]
    assert isinstance(method, TransferGraph)
    a, b = (copy.deepcopy(node) for node in method.nodes)
    (batch,) = batches(1)
    fit(method, [batch], 2)
    for time in (0.5, 1.0):
        z, other = a(batch.x), b(batch.x)
        sgd(a, time * F.cross_entropy(z, batch.y) + softened(other.detach(), z, 1.0), lr=0.1)
        sgd(b, F.cross_entropy(other, batch.y), lr=0.1)
    assert close(method.nodes[0], a)
    assert close(method.nodes[1], b)


@pytest.mark.parametrize("gates", [[["through"]], [["through", "linear"]], [["through", "linear"], ["cutoff"] * 2]])
def test_a_graph_that_is_none_is_refused(gates: list[list[str]]) -> None:
    with pytest.raises(UserError, match=r"mend method\.gates|node 1 learns nothing"):
        TransferGraph(gates=gates)  # type: ignore[arg-type]


def test_later_rounds_of_regression_see_no_labels() -> None:
    weights = {"first": 0.5, "regression": 2.0}
    protocol = PLAIN.model_copy(update={"epochs": 2})
    method = bind(SelfRegression(rounds=2, weights=weights, protocol=protocol))
    first, second = copy.deepcopy(method.student), method.spawn(1)
    (batch,) = batches(1)
    fit(method, [batch], 2)
    sgd(first, 0.5 * (first(batch.x) - torch.eye(6)[batch.y]).square().sum(1).mean(), lr=0.1)
    target = first.eval()(batch.x).detach()
    sgd(second, 2 * (second.train()(batch.x) - target).square().sum(1).mean(), lr=0.1)
    assert close(method.student, second)


def test_discriminators_take_the_next_networks_maps_for_real() -> None:
    own, next_ = torch.tensor([0.25, 0.5]), torch.tensor([0.5, 1.0])
    assert fooling_loss(own).item() == pytest.approx((0.75**2 + 0.5**2) / 2)
    assert telling_loss(own, next_).item() == pytest.approx((0.5**2 + 0 + 0.25**2 + 0.5**2) / 2)


def test_a_ring_learns_logits_and_maps_of_the_next_network() -> None:
    weights = {"ce": 1.0, "kd": 0.5, "alignment": 2.0}
    method = bind(AFDDirect(peers=3, temperature=2.0, weights=weights, protocol=PLAIN))
    assert isinstance(method, AFDDirect)
    mine = copy.deepcopy(method.peers)
    (batch,) = batches(1)
    fit(method, [batch], 1)
    taps = [net.tap(batch.x) for net in mine]  # type: ignore[operator]
    for net, own, next_ in zip(mine, taps, [*taps[1:], taps[0]], strict=True):
        kd = softened(next_["logits"].detach(), own["logits"], 2.0)
        alignment = (own["stage3"] - next_["stage3"].detach()).abs().mean()
        sgd(net, F.cross_entropy(own["logits"], batch.y) + 0.5 * kd + 2 * alignment, lr=0.1)
    assert close(method.peers, mine)


def test_networks_step_on_logits_then_on_maps_before_discriminators_do() -> None:
    """By Adam's first step, which is the rate times the sign of a gradient that is not tiny."""
    method = bind(AFD(peers=2, map_lr=0.01, map_decay=0.0, weights=dict.fromkeys(AFD.terms, 1.0), protocol=PLAIN))
    assert isinstance(method, AFD)
    peers, discriminators = copy.deepcopy(method.peers), copy.deepcopy(method.discriminators)
    (batch,) = batches(1)
    fit(method, [batch], 1)

    def adam(net: nn.Module, loss: Tensor) -> None:
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        parameters = list(net.parameters())
        for p, gradient in zip(parameters, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True):
            p.grad = gradient
        optimizer.step()

    z = [peer(batch.x) for peer in peers]
    for k, peer in enumerate(peers):
        sgd(peer, F.cross_entropy(z[k], batch.y) + softened(z[1 - k].detach(), z[k], 3.0), lr=0.1)
    maps = [peer.tap(batch.x)["stage3"] for peer in peers]  # type: ignore[operator]
    for k, peer in enumerate(peers):
        adam(peer, (1 - discriminators[k](maps[k])).square().mean())
    for k, discriminator in enumerate(discriminators):
        fake, real = discriminator(maps[k].detach()), discriminator(maps[1 - k].detach())
        adam(discriminator, (1 - real).square().mean() + fake.square().mean())
    assert close(method.peers, peers)
    assert close(method.discriminators, discriminators)
    assert method.forwards["student"] == 4 * len(batch)


class Ridge(nn.Module):
    """Outputs that are linear in the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 6, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.linear(x.flatten(1))
        return outputs

    def tap(self, x: Tensor, names: object = None) -> dict[str, Tensor]:
        return {"logits": self(x)}


def test_rounds_shrink_every_direction_as_in_closed_form() -> None:
    """Of ridge regression each round multiplies targets by G (G + c)^-1, G the kernel of the images (Mobahi, 2020)."""
    decay, n = 8.0, 8
    optimizer = {"_target_": "torch.optim.SGD", "lr": 0.02, "weight_decay": decay}
    protocol = PLAIN.model_copy(update={"epochs": 3, "optimizer": optimizer})
    method = SelfRegression(rounds=3, protocol=protocol).bind(Ridge(), None, SPEC)
    (batch,) = batches(1)
    fit(method, [batch] * 150, 3)
    x = batch.x.flatten(1).double()
    eigenvalues, basis = torch.linalg.eigh(x @ x.T)
    shrunk = (eigenvalues / (eigenvalues + n * decay / 2)) ** 3  # of Σ ‖f - y‖² / n + decay / 2 · ‖w‖²
    expected = basis @ (shrunk[:, None] * (basis.T @ torch.eye(6, dtype=torch.float64)[batch.y]))
    torch.testing.assert_close(method.student(batch.x).double(), expected, atol=1e-5, rtol=1e-4)
