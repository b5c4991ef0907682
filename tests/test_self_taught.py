"""Methods that teach themselves (7.2): what is permuted, paired and remembered, who is a constant, and when."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_methods import BATCH, CLASSES, PLAIN, SPEC, Batch, batches, bind, close, fit, network, same, sgd, state, watch
from torch import Tensor
from worlds import STUDENT, WORLDS

from kdbench.data.batch import AGAIN
from kdbench.taps import Out
from methods.logits.kd_permuted import PermutedKD
from methods.logits.tf_kd_self import TfKDSelf
from methods.teacher_free.bake import BAKE, ensembled
from methods.teacher_free.byot_final import BYOTFinal
from methods.teacher_free.cs_kd import CSKD, partners
from methods.teacher_free.cwtm import CWTM, confidence_weighted_loss
from methods.teacher_free.dkpp import DKPP, permuted
from methods.teacher_free.dks import DKS
from methods.teacher_free.dlb import DLB
from methods.teacher_free.frskd import FRSKD, SelfTeacher
from methods.teacher_free.ps_kd import PSKD
from methods.teacher_free.sad import SAD, attention_step_loss
from methods.teacher_free.sla_sd import SLASD, aggregated, joint_labels

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|many workers|logging interval|no `val_dataloader)")


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    s, t = student / temperature, teacher / temperature
    return temperature**2 * (t.softmax(1) * (t.log_softmax(1) - s.log_softmax(1))).sum(1).mean()


def logits(values: Tensor) -> Out:
    return Out({"logits": values})


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
    likeliest = logits.argmax(1)
    assert permuted(logits, likeliest, keys).tolist() == [[5.0, 2.0, 3.0, 1.0], [4.0, 2.0, 9.0, 1.0]]
    draws = torch.rand(3000, 4, generator=torch.Generator().manual_seed(0))
    orders = permuted(logits[:1].expand(3000, 4), likeliest[:1].expand(3000), draws)[:, 1:].unique(
        dim=0, return_counts=True
    )[1]
    assert len(orders) == 6
    assert (orders / 3000 - 1 / 6).abs().max() < 0.03


def test_without_dark_knowledge_kd_keeps_the_teachers_confidence_in_the_label() -> None:
    """Its divergence is that to some order of the other classes, and of two classes it is KD's."""
    s, t = torch.tensor([[0.0, 1.0, 3.0]]), torch.tensor([[2.0, 5.0, 1.0]])
    method = bind(PermutedKD(temperature=2.0, protocol=PLAIN))
    batch = Batch(torch.zeros(1, *SPEC.shape), torch.tensor([2]), torch.tensor([0]), torch.zeros(1, 3).long())
    found = {round(method.losses(logits(s), logits(t), batch)["kd"].item(), 5) for _ in range(30)}
    assert found == {round(divergence(s, torch.tensor([order]), 2.0).item(), 5) for order in ([2, 5, 1], [5, 2, 1])}
    pair = Batch(batch.x, torch.tensor([1]), batch.index, batch.view)
    assert method.losses(logits(s[:, :2]), logits(t[:, :2]), pair)["kd"].item() == pytest.approx(
        divergence(s[:, :2], t[:, :2], 2.0).item()
    )


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


# ---- data augmentation ----------------------------------------------------------------------------------------------


def test_a_rotation_is_a_part_of_the_label() -> None:
    assert joint_labels(torch.tensor([2, 0])).tolist() == [8, 9, 10, 11, 0, 1, 2, 3]
    joint = torch.arange(2 * 4 * 3 * 4).reshape(8, 12).double()
    expected = [[sum(joint[4 * i + j, 4 * k + j].item() for j in range(4)) / 4 for k in range(3)] for i in range(2)]
    assert aggregated(joint).tolist() == expected


def test_the_joint_head_sees_all_rotations_and_the_plain_one_none() -> None:
    method = bind(SLASD(protocol=PLAIN))
    assert isinstance(method, SLASD)
    (batch,) = batches(1)
    student, head = copy.deepcopy(method.student), copy.deepcopy(method.joint)
    ((_, terms),) = method.turns(batch)
    views = torch.stack([torch.rot90(batch.x, k, (2, 3)) for k in range(4)], 1).flatten(0, 1)
    taps = student.tap(views)  # type: ignore[operator]
    plain, joint = taps["logits"][::4], head(taps["embed"])
    mean = sum(joint[j::4, j::4] for j in range(4)) / 4
    assert terms["ce"].item() == pytest.approx(F.cross_entropy(plain, batch.y).item(), rel=1e-5)
    assert terms["kd"].item() == pytest.approx(divergence(plain, mean, 1.0).item(), rel=1e-4)
    (gradient,) = torch.autograd.grad(terms["kd"], method.joint.weight, allow_unused=True)
    assert gradient is None
    assert method.forwards["student"] == 4 * BATCH
    assert method.student.state_dict().keys() == student.state_dict().keys()


def test_partners_are_others_of_the_class_or_itself() -> None:
    y = torch.tensor([0, 1, 0, 2, 0, 1])
    counts = torch.zeros(6, 6)
    rng = torch.Generator().manual_seed(1)
    for _ in range(600):
        counts[torch.arange(6), partners(y, torch.rand(6, 6, generator=rng))] += 1 / 600
    assert counts[1, 5] == counts[5, 1] == counts[3, 3] == pytest.approx(1)
    assert counts[0, 2].item() == pytest.approx(0.5, abs=0.1)
    assert counts[0, 4].item() == pytest.approx(0.5, abs=0.1)
    assert partners(torch.tensor([3]), torch.rand(1, 1)).tolist() == [0]


def test_a_partner_is_a_constant_in_its_other_view() -> None:
    method = bind(CSKD(protocol=PLAIN))
    (batch,) = batches(1)
    batch.y = torch.arange(BATCH) // 2  # pairs: each has one other
    student = copy.deepcopy(method.student)
    s, other = student(batch.x), copy.deepcopy(student)(batch[AGAIN].x).detach()
    swapped = torch.arange(BATCH) ^ 1
    fit(method, [batch], 1)
    sgd(student, F.cross_entropy(s, batch.y) + divergence(s, other[swapped], 4.0), lr=0.1)
    assert close(method.student, student)


def test_targets_are_refined_by_what_was_said_an_epoch_ago() -> None:
    weights = {"ce": {"start": 1.0, "end": 0.2}, "past": {"start": 0.0, "end": 0.8}}
    method = bind(PSKD(weights=weights, protocol=PLAIN))
    assert isinstance(method, PSKD)
    student = copy.deepcopy(method.student)
    (batch,) = batches(1)
    fit(method, [batch], 3)
    past: Tensor = F.one_hot(batch.y, CLASSES).float()
    for epoch in (1, 2, 3):
        alpha, s = 0.8 * epoch / 3, student(batch.x)
        target = (1 - alpha) * F.one_hot(batch.y, CLASSES) + alpha * past
        sgd(student, -(target * s.log_softmax(1)).sum(1).mean(), lr=0.1)
        past = s.detach().softmax(1)
    assert close(method.student, student)
    assert torch.allclose(method.predictions[batch.index], past, atol=1e-4)
    assert not method.predictions[BATCH:].any()


def test_knowledge_is_passed_on_between_alike_images() -> None:
    rng = torch.Generator().manual_seed(0)
    embed, logits = (torch.randn(5, 7, generator=rng, dtype=torch.float64) for _ in range(2))
    direction = embed / embed.norm(dim=1, keepdim=True)
    alike = (direction @ direction.T).exp().fill_diagonal_(0)
    alike = alike / alike.sum(1, keepdim=True)
    said = (logits / 4).softmax(1)
    target = said
    for _ in range(200):  # once more, for ever
        target = 0.5 * alike @ target + 0.5 * said
    assert torch.allclose(ensembled(embed, logits, 4.0, 0.5), target, rtol=1e-10)
    assert torch.allclose(ensembled(embed[:1], logits[:1], 4.0, 0.5), said[:1])  # alone it hears itself
    assert torch.allclose(ensembled(embed, logits, 4.0, 0.0), said)
    with pytest.raises(Exception, match="less than 1"):
        BAKE(omega=1.0)


def test_the_last_batch_is_seen_again_beside_the_next_within_an_epoch() -> None:
    method = bind(DLB(protocol=PLAIN))
    student = copy.deepcopy(method.student)
    turns = watch(method)
    one, two = batches(2)
    fit(method, [one, two], 2)
    for _ in range(2):
        said = student(one.x)
        sgd(student, F.cross_entropy(said, one.y), lr=0.1)
        s = student(two.x)
        again = student(one[AGAIN].x)
        ce = F.cross_entropy(torch.cat([again, s]), torch.cat([one.y, two.y]))
        sgd(student, ce + divergence(again, said.detach(), 3.0), lr=0.1)
    assert close(method.student, student)
    assert [turn.terms["kd"] == 0 for turn in turns] == [True, False, True, False]
    assert method.forwards["student"] == 2 * 3 * BATCH


# ---- deep supervision -----------------------------------------------------------------------------------------------


def test_branches_and_the_last_exit_teach_one_another() -> None:
    method = bind(DKS(temperature=2.0, protocol=PLAIN))
    assert isinstance(method, DKS)
    assert method.inner == ("stage1", "stage2")
    (batch,) = batches(1)
    spawned = [network(STUDENT, 0, k) for k in (1, 2)]  # each branch has a start of its own
    starts = [state(net.tail(tap)) for net, tap in zip(spawned, method.inner, strict=True)]  # type: ignore[operator]
    assert all(same(state(branch), start) for branch, start in zip(method.branches, starts, strict=True))
    s = method.student_out(batch.x)
    exits = [s.logits, *(branch(s[tap]) for branch, tap in zip(method.branches, method.inner, strict=True))]
    pairs = [divergence(a, b, 2.0) for a in exits for b in exits if a is not b]
    terms = method.losses(s, s, batch)
    assert terms["synergy"].item() == pytest.approx(sum(pair.item() for pair in pairs), rel=1e-4)
    head = method.student.head.weight  # type: ignore[union-attr]
    (learns,) = torch.autograd.grad(terms["synergy"], head, retain_graph=True)
    (expected,) = torch.autograd.grad(sum(divergence(exits[0], z.detach(), 2.0) for z in exits[1:]), head)
    assert torch.allclose(learns, expected, atol=1e-5)


def test_attention_of_the_paper_is_that_of_enlarged_maps() -> None:
    feature, deeper = torch.zeros(1, 2, 2, 2), torch.zeros(1, 3, 1, 1)
    feature[0, 0, 0, 0] = feature[0, 1, 0, 0] = 1.0  # strength 2 at one place of four
    e = math.e**2
    sure, others = e / (e + 3), 1 / (e + 3)
    expected = ((sure - 0.25) ** 2 + 3 * (others - 0.25) ** 2) / 4
    assert attention_step_loss(feature, deeper, "maps").item() == pytest.approx(expected, rel=1e-5)
    e = math.e  # the mean over two channels
    sure, others = e / (e + 3), 1 / (e + 3)
    expected = ((sure - 0.25) ** 2 + 3 * (others - 0.25) ** 2) / 4
    assert attention_step_loss(feature, deeper, "features").item() == pytest.approx(expected, rel=1e-5)
    # enlarging before squaring is not enlarging what is squared
    deeper = torch.tensor([[[[1.0, -1.0], [1.0, -1.0]]]])
    flat = torch.ones(1, 1, 4, 4)
    assert attention_step_loss(flat, deeper, "maps").item() == pytest.approx(0, abs=1e-12)
    assert attention_step_loss(flat, deeper, "features").item() > 1e-5


@pytest.mark.parametrize("task", ["classification", "segmentation"])
def test_every_stage_but_the_deepest_attends_to_the_next(task: str) -> None:
    world = WORLDS[task]
    method = bind(SAD(protocol=PLAIN), world=world)
    (batch,) = batches(1, world=world)
    s = method.student_out(batch.x)
    terms = method.losses(s, s, batch)
    assert terms["task"].item() == pytest.approx(method.task.loss(s.logits, batch.y).item())
    steps = [attention_step_loss(s[f"stage{i}"], s[f"stage{i + 1}"]).item() for i in (1, 2)]
    assert terms["attention"].item() == pytest.approx(sum(steps))
    taps = [s["stage2"], s["stage3"]]
    learns, deepest = torch.autograd.grad(terms["attention"], taps, allow_unused=True)
    assert learns.any()
    assert deepest is None


@pytest.mark.parametrize("target", ["constant", "learning"])
def test_the_self_teacher_learns_from_labels(target: Any) -> None:
    method = bind(FRSKD(target=target, protocol=PLAIN))
    assert isinstance(method, FRSKD)
    (batch,) = batches(1)
    s = method.student_out(batch.x)
    terms = method.losses(s, s, batch)
    own = list(method.self_teacher.parameters())
    for term, learns in {"ce": False, "self_teacher": True, "kd": target == "learning", "attention": False}.items():
        found = torch.autograd.grad(terms[term], own, retain_graph=True, allow_unused=True)
        assert any(gradient is not None and gradient.any() for gradient in found) == learns, term
    (below,) = torch.autograd.grad(terms["self_teacher"], [s["stage1"]], retain_graph=True)
    assert below.any()  # and through it the student's layers


@pytest.mark.parametrize("sizes", [(8, 4, 2), (7, 4, 2), (8, 8, 2), (32, 8, 1), (4, 2)])
def test_refined_maps_have_the_sizes_of_the_stages(sizes: tuple[int, ...]) -> None:
    stages = [(3 + i, size, size) for i, size in enumerate(sizes)]
    teacher = SelfTeacher(stages, width=2, num_classes=5)
    refined, logits = teacher([torch.rand(2, *shape) for shape in stages])
    assert [tuple(x.shape) for x in refined] == [(2, 2 * c, h, w) for c, h, w in stages]
    assert logits.shape == (2, 5)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in teacher.parameters())


def test_features_of_all_inner_exits_but_the_last_are_adapted() -> None:
    method = bind(BYOTFinal(protocol=PLAIN))
    assert isinstance(method, BYOTFinal)
    (batch,) = batches(1)
    s = method.student_out(batch.x)
    terms = method.losses(s, s, batch)
    (first, z1), (_, z2) = (branch(s[tap]) for branch, tap in zip(method.exits, method.inner, strict=True))
    (adapt,) = method.adapters
    far = (adapt(first) - s.embed).square().sum().sqrt()
    soft = [-((s.logits / 3).softmax(1) * (z / 3).log_softmax(1)).sum(1).mean().item() for z in (z1, z2)]
    assert terms["feature"].item() == pytest.approx(far.item(), rel=1e-5)
    assert terms["kd"].item() == pytest.approx(sum(soft), rel=1e-5)
    assert terms["ce"].item() == pytest.approx(F.cross_entropy(s.logits, batch.y).item(), rel=1e-5)


def test_what_a_single_image_says_is_finite() -> None:
    spec_batch = batches(1)[0]
    one = Batch(*(getattr(spec_batch, part)[:1] for part in ("x", "y", "index", "view")))
    one.beside = Batch(one.x, one.y, one.index, one.view, {AGAIN: one}).beside
    for cls in (CSKD, PSKD, BAKE, DLB, SLASD):
        method = bind(cls(protocol=PLAIN), spec=SPEC)  # type: ignore[abstract]
        for _ in range(2):
            for _, terms in method.turns(one):
                assert all(value.isfinite() for value in terms.values()), cls
