"""Methods that teach themselves (7.2): what is permuted, paired and remembered, who is a constant, and when."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from test_methods import PLAIN, batches, bind, close, fit, network, sgd, watch
from torch import Tensor
from worlds import STUDENT

from methods.logits.tf_kd_self import TfKDSelf
from methods.teacher_free.cwtm import CWTM, confidence_weighted_loss
from methods.teacher_free.dkpp import DKPP, permuted

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|many workers|logging interval|no `val_dataloader)")


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    s, t = student / temperature, teacher / temperature
    return temperature**2 * (t.softmax(1) * (t.log_softmax(1) - s.log_softmax(1))).sum(1).mean()


# ---- born again -----------------------------------------------------------------------------------------------------


def test_confidence_weighs_samples_and_nothing_else() -> None:
    s = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    t = torch.tensor([[0.0, 0.0], [0.0, math.log(3.0)]])  # sure by 1/2 of one, by 3/4 of the other, if wrongly
    expected = (0.5 * math.log(2) + 0.75 * math.log(4 / 3)) / (0.5 + 0.75)
    y = torch.tensor([1, 0])
    assert confidence_weighted_loss(s, t, y).item() == pytest.approx(expected, rel=1e-6)
    assert confidence_weighted_loss(s, t.flip(1), y).item() == pytest.approx(expected, rel=1e-6)


def test_dark_knowledge_changes_places_but_for_the_likeliest() -> None:
    logits = torch.tensor([[5.0, 1.0, 2.0, 3.0], [1.0, 2.0, 9.0, 4.0]])
    keys = torch.tensor([[0.1, 0.9, 0.2, 0.5], [0.3, 0.2, 0.9, 0.1]])
    # others in the order of their keys: of the first 2, 3, 1; of the second 4, 2, 1
    assert permuted(logits, keys).tolist() == [[5.0, 2.0, 3.0, 1.0], [4.0, 2.0, 9.0, 1.0]]
    draws = torch.rand(3000, 4, generator=torch.Generator().manual_seed(0))
    orders = permuted(logits[:1].expand(3000, 4), draws)[:, 1:].unique(dim=0, return_counts=True)[1]
    assert len(orders) == 6
    assert (orders / 3000 - 1 / 6).abs().max() < 0.03


@pytest.mark.parametrize("cls", [TfKDSelf, CWTM, DKPP])
def test_a_fresh_student_learns_from_the_one_before(cls: type[TfKDSelf | CWTM | DKPP]) -> None:
    method = bind(cls(protocol=PLAIN))
    turns = watch(method)
    (batch,) = batches(1)
    fit(method, [batch], 2)
    first, second = network(STUDENT, 0), network(STUDENT, 0, 1)
    sgd(first, F.cross_entropy(first(batch.x), batch.y), lr=0.1)
    assert close(method.parent.net, first)
    assert [turn.stage for turn in turns] == ["generation1", "generation2"]
    s, t = second(batch.x), first.eval()(batch.x).detach()
    if cls is TfKDSelf:
        expected = {"ce": F.cross_entropy(s, batch.y), "kd": divergence(s, t, 6.0)}
        assert turns[1].terms == pytest.approx({name: value.item() for name, value in expected.items()}, rel=1e-3)
        sgd(second, expected["ce"] + expected["kd"], lr=0.1)
        assert close(method.student, second)
    else:
        assert set(turns[1].terms) == set(method.terms) - {"first"}  # no labels beside what the paper has
