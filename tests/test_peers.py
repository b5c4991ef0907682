"""Students that share a trunk, and views that teach each other."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from test_methods import PLAIN, SPEC, batches, bind, changed, close, fit, network, run_of, sgd, state
from torch import Tensor, nn

from kdbench.errors import DoesNotFit
from methods.online.okddip import OKDDip
from methods.online.one import ONE
from methods.teacher_free.ddgsd import DDGSD, mean_feature_loss

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|many workers|logging interval|no `val_dataloader)")


def softened(target: Tensor, z: Tensor, temperature: float) -> Tensor:
    """T² · KL( softmax(target / T) || softmax(z / T) ), written out."""
    q, p = (x.div(temperature).log_softmax(1) for x in (target, z))
    return temperature**2 * (q.exp() * (q - p)).sum(1).mean()


def test_branches_learn_from_their_gated_ensemble() -> None:
    method = bind(ONE(branches=3, temperature=2.0, weights={"ce": 1.0, "kd": 0.5}, protocol=PLAIN))
    assert isinstance(method, ONE)
    assert method.trunk == "stage2"  # of three stages
    whole = nn.ModuleDict({"student": method.student, "branches": method.branches, "gate": method.gate})
    mine = copy.deepcopy(whole)
    (batch,) = batches(1)
    fit(method, [batch], 1)

    student, gate = mine["student"], mine["gate"]
    trunk = student.stages[1][-1]  # type: ignore[index]
    seen: list[Tensor] = []
    handle = trunk.register_forward_hook(lambda *args: seen.append(args[-1].relu()))
    z = [student(batch.x)]
    handle.remove()
    z += [branch(seen[0]) for branch in mine["branches"]]  # type: ignore[union-attr]
    weights = gate.norm(gate.linear(seen[0].mean((2, 3)))).relu().softmax(1)
    ensemble = sum(weights[:, i : i + 1] * logits for i, logits in enumerate(z))
    loss = sum(F.cross_entropy(logits, batch.y) for logits in (*z, ensemble))
    loss = loss + 0.5 * sum(softened(ensemble.detach(), logits, 2.0) for logits in z)
    sgd(mine, loss, lr=0.1)
    assert close(whole, mine)
    assert method.deployed() is method.student


def test_peers_attend_to_one_another_and_a_leader_follows_their_mean() -> None:
    weights = {"ce": 1.0, "group": 0.5, "leader": 2.0}
    method = bind(OKDDip(peers=2, temperature=2.0, weights=weights, protocol=PLAIN))
    assert isinstance(method, OKDDip)
    whole = nn.ModuleDict({"student": method.student, "peers": method.peers, "attention": method.attention})
    mine = copy.deepcopy(whole)
    (batch,) = batches(1)
    fit(method, [batch], 1)

    taps = mine["student"].tap(batch.x)  # type: ignore[operator]
    peers = [peer.tap(taps["stage2"]) for peer in mine["peers"]]  # type: ignore[operator,union-attr]
    z = [peer["logits"] for peer in peers]
    query, key = mine["attention"].query, mine["attention"].key
    loss = sum(F.cross_entropy(logits, batch.y) for logits in (*z, taps["logits"]))
    for i in range(2):
        energy = torch.stack([(query(peers[i]["embed"]) * key(other["embed"])).sum(1) for other in peers], dim=1)
        attention = energy.softmax(1)
        target = attention[:, :1] * z[0] + attention[:, 1:] * z[1]
        loss = loss + 0.5 * softened(target, z[i], 2.0)  # its gradient reaches the target, too
    loss = loss + 2 * softened((z[0] + z[1]) / 2, taps["logits"], 2.0)
    sgd(mine, loss, lr=0.1)
    assert close(whole, mine)
    assert method.deployed() is method.student


@pytest.mark.parametrize("name", ["one", "okddip"])
def test_the_deployed_network_is_a_plain_one(name: str) -> None:
    method = run_of(name).method
    assert method.deployed().state_dict().keys() == network("resnet8x0.25", 0).state_dict().keys()
    ends = [state(module) for module in (method.branches if name == "one" else method.peers)]  # type: ignore[union-attr]
    assert all(changed(method.student.tail("stage2"), end) for end in ends)  # type: ignore[operator]


@pytest.mark.parametrize("cls", [ONE, OKDDip])
def test_a_network_that_cannot_be_cut_is_told(cls: type[ONE] | type[OKDDip]) -> None:
    class Foreign(nn.Module):
        """Any network with taps."""

        def __init__(self) -> None:
            super().__init__()
            self.net = network("resnet8x0.25", 0)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.net(x)
            return out

        def tap(self, x: Tensor, names: tuple[str, ...] | None = None) -> dict[str, Tensor]:
            taps: dict[str, Tensor] = self.net.tap(x, names)  # type: ignore[operator]
            return taps

    with pytest.raises(DoesNotFit, match="cannot be cut behind a stage"):
        cls().bind(Foreign(), None, SPEC)


# ---- two views ----------------------------------------------------------------------------------------------------


def test_views_go_through_the_student_together_and_teach_each_other() -> None:
    method = bind(DDGSD(temperature=2.0, weights={"ce": 1.0, "kd": 0.5, "mmd": 3.0}, protocol=PLAIN))
    student = copy.deepcopy(method.student)
    (batch,) = batches(1)
    fit(method, [batch], 1)
    taps = student.tap(torch.cat([batch.x, batch["again"].x]))  # type: ignore[operator]
    n = len(batch)
    (a, b), (f, g) = ((taps[key][:n], taps[key][n:]) for key in ("logits", "embed"))
    ce = (F.cross_entropy(a, batch.y) + F.cross_entropy(b, batch.y)) / 2
    kd = softened(b.detach(), a, 2.0) + softened(a.detach(), b, 2.0)
    sgd(student, ce + 0.5 * kd + 3 * (f.mean(0) - g.mean(0)).square().sum(), lr=0.1)
    assert close(method.student, student)
    assert method.forwards["student"] == 2 * n
    assert method.images_seen == n  # another view of the same image is no other image


def test_features_are_compared_one_by_one() -> None:
    """Swapped features have the same mean over all numbers, and are not the same."""
    a = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert mean_feature_loss(a, a.flip(1)).item() == 8.0
    assert a.mean() == a.flip(1).mean()
