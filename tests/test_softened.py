"""Softened labels and what stands near them: numbers by hand that golden files do not have."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from worlds import BATCH, CLASSES, IMAGES, SPEC, Data, batches, network

from kdbench.data.batch import Batch
from kdbench.errors import DoesNotFit
from kdbench.method import Method
from kdbench.taps import Out
from methods.intermediate.jacobian import JacobianMatching
from methods.intermediate.kdpp import KDpp
from methods.intermediate.sobolev import Sobolev
from methods.logits.dist import dist_terms
from methods.logits.dynamic_temperature import confusion, temperatures, tempered_loss
from methods.logits.eskd import ESKD
from methods.logits.kd_unlabelled import KDUnlabelled
from methods.logits.knowledge_adjustment import adjusted_loss, shifted
from methods.logits.mlkd import OneViewMLKD, batch_relation_loss, class_relation_loss, uncertain
from methods.logits.model_compression import munged
from methods.logits.shuffled_kd import ShuffledKD
from methods.logits.tf_kd_reg import virtual_teacher_loss
from methods.logits.warm_mimic import WarmMimic, dropped_logits
from methods.logits.wsld import sample_weights


def bound(method: Method, **change: Any) -> Method:
    """In the smallest world, of students half as wide as their teacher."""
    return method.bind(network("resnet8x0.25"), network("resnet8x0.5", "teacher"), replace(SPEC, **change))


def entropy_gap(q: Tensor, p: Tensor) -> float:
    return float((q * (q / p).log()).sum())


def test_without_labels_it_is_the_term_of_kd_alone() -> None:
    """3² · KL( softmax(t / 3) || softmax(s / 3) ) of what both say of a batch whose labels are not known."""
    method = bound(KDUnlabelled(temperature=3.0))
    batch = batches(1)[0].seen_by(method.needs)
    assert batch.y.tolist() == [-1] * BATCH
    s, t = method.student_out(batch.x), method.teach(batch)
    assert t is not None
    p, log_q = (t.logits.double() / 3).softmax(1), (s.logits.double() / 3).log_softmax(1)
    expected = 9 * (p * (p.log() - log_q)).sum() / BATCH
    found = method.losses(s, t, batch)
    assert found.keys() == {"kd"}
    assert found["kd"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_biases_are_offset_in_what_is_judged_alone() -> None:
    method = bound(KDUnlabelled(shifted=[1, 4], offset=-7.5))
    x = batches(1)[0].x
    with torch.no_grad():
        want = method.student(x)
        want[:, [1, 4]] -= 7.5
        assert torch.equal(method.deployed()(x), want)
    assert bound(KDUnlabelled()).deployed() is not None
    with pytest.raises(DoesNotFit, match="shifts"):
        bound(KDUnlabelled(shifted=[CLASSES], offset=1.0))


def test_shuffled_targets_are_the_teachers_of_other_images() -> None:
    method, batch = bound(ShuffledKD()), batches(1)[0]
    own, said = method.teacher_out(batch.x).logits, method.teach(batch).logits
    assert not torch.equal(said, own)
    assert torch.equal(said.sum(1).sort().values, own.sum(1).sort().values)


def test_a_warm_start_knows_labels_before_logits() -> None:
    """Logits 0, 2 of a teacher, masked and noisy by hand: 2 · (1 / .75 + .5 · .1) is kept, and 0 stays 0."""
    z, kept, noise = torch.tensor([[0.0, 2.0, 4.0]]), torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[3.0, 0.1, 1.0]])
    found = dropped_logits(z, kept, noise, 0.25, 0.5)
    torch.testing.assert_close(found, torch.tensor([[0.0, 2 * (1 / 0.75 + 0.05), 4 * 0.5]]))
    method, batch = bound(WarmMimic(start=0.5, variant="mean")), batches(1)[0]
    s = method.student_out(batch.x)
    assert [(stage.name, stage.share) for stage in method.stages()] == [("start", 0.5), ("mimic", 0.5)]
    assert method.losses(s, None, batch).keys() == {"start"}
    t = Out({"logits": s.logits.detach() + 2.0})
    assert method.losses(s, t, batch)["mimic"].item() == pytest.approx(4.0)


def test_the_virtual_teacher_of_the_paper_is_softened_once() -> None:
    """Three classes, T = 2: square roots of .98, .01, .01, as of a teacher whose probabilities these are."""
    s, y = torch.tensor([[0.0, 1.0, -1.0]], dtype=torch.float64), torch.tensor([1])
    q = torch.tensor([0.01, 0.98, 0.01], dtype=torch.float64).sqrt()
    p = (s[0] / 2).exp()
    expected = 4 * entropy_gap(q / q.sum(), p / p.sum())
    assert virtual_teacher_loss(s, y, 2.0, 0.98, "paper").item() == pytest.approx(expected)


def test_a_map_is_a_batch_of_pixels() -> None:
    s, t = (torch.randn(2, 5, 3, 4, generator=torch.Generator().manual_seed(k)) for k in range(2))
    rows = [z.permute(0, 2, 3, 1).reshape(-1, 5) for z in (s, t)]
    torch.testing.assert_close(dist_terms(s, t, 2.0), dist_terms(*rows, 2.0))


def test_a_sample_counts_by_how_much_more_the_student_has_to_learn() -> None:
    """Losses of ln 4 and ln 2 have the ratio 2; a student that is right has nothing to learn."""
    s = torch.tensor([[0.0, math.log(3)], [60.0, 0.0]])
    t = torch.zeros(2, 2)
    assert sample_weights(s, t, torch.tensor([0, 0])).tolist() == pytest.approx([1 - math.exp(-2), 0.0], abs=1e-6)


def test_relations_at_a_temperature() -> None:
    p, q = torch.tensor([[0.5, 0.5], [0.2, 0.8]]), torch.tensor([[0.9, 0.1], [0.3, 0.7]])
    samples, classes = q @ q.T - p @ p.T, q.T @ q - p.T @ p
    s, t = 3 * p.log(), 3 * q.log()
    assert batch_relation_loss(s, t, 3.0).item() == pytest.approx(samples.square().sum().item() / 2, rel=1e-5)
    assert class_relation_loss(s, t, 3.0).item() == pytest.approx(classes.square().sum().item() / 2, rel=1e-5)
    terms = OneViewMLKD(temperatures=(3.0, 3.0)).losses(
        Out({"logits": s}), Out({"logits": t}), Batch.of([s, torch.tensor([0, 1])])
    )
    assert terms["batch"].item() == pytest.approx(samples.square().sum().item(), rel=1e-5)


def test_half_of_the_samples_and_classes_are_uncertain() -> None:
    q = torch.tensor([[0.9, 0.05, 0.05], [0.4, 0.5, 0.1], [0.2, 0.2, 0.6]])
    samples, classes = uncertain(q.log())
    assert samples.tolist() == [False, True, True]  # .9 .5 .6
    assert classes.tolist() == [False, True, True]  # 1.5 .75 .75


def test_a_wrong_teacher_changes_places_with_the_label() -> None:
    t, y = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]]), torch.tensor([2, 1])
    assert shifted(t, y).tolist() == [[2.0, 1.0, 3.0], [0.0, 5.0, 4.0]]


def test_a_wrong_teacher_becomes_a_smoothed_label() -> None:
    t, y = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 4.0]], dtype=torch.float64), torch.tensor([2, 1])
    right = (t[1] / 2).softmax(0)
    uniform = torch.full((3,), 1 / 3, dtype=torch.float64)
    wrong = entropy_gap(torch.tensor([0.1, 0.1, 0.8], dtype=torch.float64), uniform)
    expected = 4 * (wrong + entropy_gap(right, uniform)) / 2
    assert adjusted_loss(torch.zeros_like(t), t, y, 2.0, "smoothing", 0.8).item() == pytest.approx(expected)


def test_confusing_samples_have_sharper_targets() -> None:
    s = torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]])
    t = torch.tensor([[2.0, 0.0], [5.0, 0.0], [1.0, 0.0]])
    w = confusion(s, t, "flsw", 2.0)
    assert w.tolist() == pytest.approx([0.0, 1.0, 4.0])  # the angles' cosines are 1, 0, -1
    assert temperatures(w, 4.0, 0.6).tolist() == pytest.approx([5.0, 4.4, 2.6])
    assert temperatures(w, 4.0, 6.0).tolist() == pytest.approx([14.0, 8.0, 1.0])  # not below 1
    sure = confusion(torch.tensor([[0.0, 0.0], [math.log(3), 0.0]]), torch.zeros(2, 2), "cwsm", 2.0)
    assert sure.tolist() == pytest.approx([2.0, 4 / 3])


def test_each_sample_has_its_own_temperature() -> None:
    s = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    t = torch.tensor([[0.0, 3.0], [4.0, 0.0]], dtype=torch.float64)
    each = [
        temperature**2 * entropy_gap((t[i] / temperature).softmax(0), (s[i] / temperature).softmax(0))
        for i, temperature in enumerate((2.0, 5.0))
    ]
    assert tempered_loss(s, t, torch.tensor([2.0, 5.0])).item() == pytest.approx(sum(each) / 2)


def test_eskd_asks_its_teacher_until_it_stops() -> None:
    method = bound(ESKD(stop=0.5))
    method.protocol = method.protocol.model_copy(update={"epochs": 4})
    (batch,) = batches(1)
    for epoch, taught in ((0, True), (1, True), (2, False), (3, False)):
        method.epoch = epoch
        ((_, terms),) = method.turns(batch)
        assert set(terms) == ({"ce", "kd", "alone"} if taught else {"alone"})
        assert (terms["alone"].item() == 0) == taught
    assert method.forwards["teacher"] == 2 * BATCH


def test_class_centres_are_means_of_the_teachers_features() -> None:
    method = bound(KDpp())
    assert isinstance(method, KDpp)
    found = batches(2)
    method.samples = Data(found, None, IMAGES)
    method.find_centres()
    x, y = torch.cat([batch.x for batch in found]), torch.cat([batch.y for batch in found])
    features = method.teacher.tap(x, ("embed",))["embed"]  # type: ignore[operator]
    for label in range(CLASSES):
        own = features[y == label]
        expected = own.mean(0) if len(own) else torch.zeros_like(method.centres[label])
        torch.testing.assert_close(method.centres[label], expected, rtol=1e-4, atol=1e-5)


class Linear(nn.Module):
    """z = W x, whose Jacobian is W."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


def linear(method: Method) -> tuple[dict[str, Tensor], Tensor, Tensor, Batch]:
    """Terms of two linear networks, and their weights."""
    w_s, w_t = (torch.randn(3, 4, generator=torch.Generator().manual_seed(k)) for k in range(2))
    batch = method.batch(Batch.of([torch.randn(5, 1, 2, 2), torch.arange(5) % 3]))
    student = Linear(w_s)
    s, t = (Out({"logits": net(batch.x)}) for net in (student, Linear(w_t)))
    terms = method.losses(s, t, batch)
    sum(terms.values(), start=torch.zeros(())).backward()  # type: ignore[no-untyped-call]
    assert student.weight.grad is not None
    return terms, w_s, w_t, batch


@pytest.mark.parametrize("variant", ["paper", "zoo"])
def test_jacobians_of_linear_networks_are_their_weights(variant: Any) -> None:
    terms, w_s, w_t, batch = linear(JacobianMatching(variant=variant))
    output = batch.y if variant == "zoo" else (batch.x.flatten(1) @ w_t.T).argmax(1)
    apart = (w_s / w_s.norm(dim=1, keepdim=True) - w_t / w_t.norm(dim=1, keepdim=True)).square().sum(1)[output]
    expected = apart.mean() / (4 if variant == "zoo" else 1)
    assert terms["jacobian"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_derivatives_of_linear_networks_along_a_direction() -> None:
    method = Sobolev()
    method.rng.manual_seed(7)
    terms, w_s, w_t, _ = linear(method)
    v = torch.randn(5, 3, generator=torch.Generator().manual_seed(7))
    expected = ((v / v.norm(dim=1, keepdim=True)) @ (w_s - w_t)).square().sum(1).mean()
    assert terms["sobolev"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_munged_attributes_are_those_of_the_nearest_neighbour() -> None:
    x = torch.tensor([[0.0, 0.0], [1.0, 4.0], [9.0, 9.0]])
    swapped, noise = torch.tensor([[True, False]] * 3), torch.tensor([[1.0, 9.0], [0.0, 9.0], [-2.0, 9.0]])
    assert munged(x, swapped, noise, 2.0).tolist() == [[1.5, 0.0], [0.0, 4.0], [-7.0, 9.0]]
    assert munged(x[:1], swapped[:1], noise[:1], 2.0).tolist() == [[0.0, 0.0]]
