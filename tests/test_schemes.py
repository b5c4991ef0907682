"""Cross-modal methods (6.3), games, graphs and ensembles (9.1, 9.2, 9.4) by hand: who learns what, and when."""

from __future__ import annotations

import copy
import math
from itertools import combinations, permutations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_methods import PLAIN, batches, bind, close, fit, network, same, sgd, state, watch
from torch import Tensor, nn
from worlds import CLASSES, SPEC, STUDENT

from methods.cross_modal.cross_quality import CrossQuality
from methods.cross_modal.generalised_distillation import GeneralisedDistillation, imitation_loss
from methods.cross_modal.graph_distillation import Graph, GraphDistillation, imitation_terms, regularizer
from methods.cross_modal.hallucination import Hallucination, hallucination_loss
from methods.cross_modal.supervision_transfer import Adapter, FineTuned, SupervisionTransfer
from methods.intermediate.irg_forms import IRGChanges, IRGEdges, change_loss
from methods.learning.conditional_adversarial import ConditionalAdversarial
from methods.learning.cooperation import Cooperation, relation_in_code, relation_loss
from methods.learning.gan_tsc import GANTSC
from methods.learning.kdgan import KDGAN, concrete
from methods.learning.mhgd import MHGD, Attention, attention_graph_loss
from methods.learning.portable_student import PortableStudent

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(LeafSpec|many workers|logging interval|no `val_dataloader|eval mode)"
)


def logs(*p: float) -> Tensor:
    """Logits of one sample with these probabilities."""
    return torch.tensor([[math.log(each) for each in p]])


def log_sigmoid(x: Tensor) -> Tensor:
    return -(1 + (-x).exp()).log()


# ---- across modalities ----------------------------------------------------------------------------------------------


def test_soft_labels_are_softened_and_the_student_is_not() -> None:
    s, t = logs(0.25, 0.75), logs(0.9, 0.1)  # at T = 2 the teacher has odds of 3
    expected = -(0.75 * math.log(0.25) + 0.25 * math.log(0.75))
    assert imitation_loss(s, t, 2.0).item() == pytest.approx(expected, rel=1e-6)
    own = logs(math.sqrt(0.25), math.sqrt(0.75)).softmax(1)[0]
    both = -(0.75 * own[0].log() + 0.25 * own[1].log())
    assert imitation_loss(s, t, 2.0, own=2.0).item() == pytest.approx(both.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("method", "factor", "own"),
    [
        (GeneralisedDistillation(temperature=3.0, protocol=PLAIN), 1.0, 1.0),
        (GeneralisedDistillation(temperature=3.0, variant="code", protocol=PLAIN), 9.0, 1.0),
        (CrossQuality(temperature=3.0, protocol=PLAIN), 1.0, 3.0),
    ],
)
def test_imitation(method: Any, factor: float, own: float) -> None:
    bind(method)
    turns = watch(method)
    (batch,) = batches(1)
    fit(method, [batch], 1)
    student, t = network(STUDENT, 0), method.teacher(batch.x)
    s, q = student(batch.x), (t / 3).softmax(1)
    expected = {"ce": F.cross_entropy(s, batch.y), "imitation": -factor * (q * (s / own).log_softmax(1)).sum(1).mean()}
    assert turns[0].terms == pytest.approx({name: value.item() for name, value in expected.items()}, rel=1e-4)
    sgd(student, expected["ce"] + expected["imitation"], lr=0.1)
    assert close(method.student, student)


def test_edges_weigh_teachers_for_each_sample() -> None:
    s = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    t = [torch.tensor([[2.0, 0.0], [0.0, 3.0]]), torch.tensor([[0.0, 1.0], [-1.0, 0.0]])]  # 1 - cos: 0, 1; 1, 2
    edges = torch.tensor([[0.75, 0.25], [0.5, 0.5]])
    expected = ((1.25 * 0 + 0.75 * 1) + (1 * 1 + 1 * 2)) / 2
    assert imitation_terms([s, s], t, edges).item() == pytest.approx(expected)
    assert regularizer(edges).item() == pytest.approx(2 * 0.125**2)


def test_an_edge_knows_both_of_its_ends() -> None:
    graph = Graph(classes=3, widths=[4, 4, 5], size=2, sharpness=0.5)
    logits, features = [torch.randn(6, 3) for _ in range(3)], [torch.randn(6, width) for width in (4, 4, 5)]
    assert set(graph.features) == {"4", "5"}
    z = [
        torch.cat([graph.logits(a), graph.features[str(b.shape[1])](b)], 1)
        for a, b in zip(logits, features, strict=True)
    ]
    raw = torch.stack([graph.edge(torch.cat([z[0], other], 1))[:, 0] for other in z[1:]], 1)
    assert torch.allclose(graph(logits, features), (raw / 2).softmax(1), atol=1e-6)


def test_teachers_of_other_widths_are_met_halfway() -> None:
    method = bind(GraphDistillation(protocol=PLAIN))
    width = method.teachers[0].channels("embed")
    assert [tuple(adapt.weight.shape) for adapt in method.adapters] == [(width, width // 2)] * 2


def test_the_teachers_upper_layers_are_deployed() -> None:
    method = bind(SupervisionTransfer(protocol=PLAIN))
    (batch,) = batches(1)
    tap = method.teacher.tap(batch.x, (method.taught,))
    assert torch.allclose(method.net.upper(tap[method.taught]), tap["logits"], atol=1e-4)
    feature = method.student.eval().tap(batch.x, (method.own,))[method.own]
    expected = method.net.upper(method.net.adapter(feature))
    assert torch.equal(method.deployed().eval()(batch.x), expected)


def test_maps_are_pooled_or_repeated_to_the_size_of_the_teachers() -> None:
    x = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
    assert Adapter((1, 2, 2), (1, 1, 1))(x).tolist() == [[[[3.0]]]]
    assert Adapter((1, 2, 2), (1, 4, 4))(x)[0, 0, 0].tolist() == [1.0, 1.0, 2.0, 2.0]
    assert Adapter((1, 2, 2), (3, 1, 1))(x).shape == (1, 3, 1, 1)


def test_a_transferred_student_has_its_own_head_afterwards() -> None:
    method = bind(FineTuned(protocol=PLAIN))
    turns = watch(method)
    (batch,) = batches(1)
    start = state(method.student)
    heads = []

    def note(*_: Any) -> None:
        heads.append(method.student.head.weight.clone())

    method.after_step = note  # type: ignore[method-assign]
    fit(method, [batch], 2)
    assert [set(turn.terms) for turn in turns] == [{"transfer"}, {"ce"}]
    assert torch.equal(heads[0], start["head.weight"])
    assert not torch.equal(heads[1], start["head.weight"])
    assert method.deployed() is method.student


def test_hallucinated_maps_meet_the_teachers_behind_a_sigmoid() -> None:
    a, b = torch.zeros(2, 1, 1, 2), torch.tensor([[[[0.0, math.log(3.0)]]], [[[math.log(3.0), -math.log(3.0)]]]])
    assert hallucination_loss(a, b).item() == pytest.approx((0.25**2 + 2 * 0.25**2) / 2, rel=1e-6)


def test_image_and_hallucination_are_judged_alone_and_together() -> None:
    method = bind(Hallucination(protocol=PLAIN))
    turns = watch(method)
    (batch,) = batches(1)
    s, h = copy.deepcopy(method.student), copy.deepcopy(method.net.hallucination)
    assert not same(state(s), state(h))
    fit(method, [batch], 1)
    a, b, t = s(batch.x), h(batch.x), method.teacher(batch.x)
    ce = sum(F.cross_entropy(logits, batch.y).item() for logits in (a, b, (a + b) / 2, (a + t) / 2))
    assert turns[0].terms["ce"] == pytest.approx(ce, rel=1e-4)
    s, h = method.student.eval(), method.net.hallucination.eval()
    assert torch.allclose(method.deployed()(batch.x), (s(batch.x) + h(batch.x)) / 2)


# ---- games ----------------------------------------------------------------------------------------------------------


def test_a_conditional_discriminator_helps_with_classes() -> None:
    method = bind(ConditionalAdversarial(protocol=PLAIN))
    turns = watch(method)
    (batch,) = batches(1)
    judge, student = copy.deepcopy(method.discriminator), network(STUDENT, 0)
    fit(method, [batch], 1)
    s, t = student(batch.x), method.teacher(batch.x)
    (fake, fake_label), (real, real_label) = judge(s), judge(t)
    classified = F.cross_entropy(fake_label, batch.y)
    assert [turn.player for turn in turns] == ["student", "discriminator"]
    assert turns[0].terms["l1"] == pytest.approx((s - t).abs().mean().item(), rel=1e-4)
    adversarial = (log_sigmoid(-fake).mean() + classified) / 2  # log D(student | s): the student wants it small
    assert turns[0].terms["adversarial"] == pytest.approx(adversarial.item(), rel=1e-3)
    apart = -log_sigmoid(real).mean() - log_sigmoid(-fake).mean()
    expected = (apart + classified + F.cross_entropy(real_label, batch.y)) / 2
    assert turns[1].terms["discriminator"] == pytest.approx(expected.item(), rel=1e-3)


def test_a_portable_student_plays_its_assistants_game() -> None:
    method = bind(PortableStudent(protocol=PLAIN))
    turns = watch(method)
    (batch,) = batches(1)
    judge, adapter, student = copy.deepcopy(method.discriminator), copy.deepcopy(method.adapter), network(STUDENT, 0)
    fit(method, [batch], 1)
    fake = judge(adapter(student.tap(batch.x, ("embed",))["embed"]))
    real = judge(method.teacher.tap(batch.x, ("embed",))["embed"])
    assert turns[0].terms["adversarial"] == pytest.approx(log_sigmoid(-fake).mean().item(), rel=1e-3)
    expected = -(log_sigmoid(real) + log_sigmoid(-fake)).mean()
    assert turns[1].terms["discriminator"] == pytest.approx(expected.item(), rel=1e-3)


def test_concrete_labels_are_those_that_noise_makes_likeliest() -> None:
    z, u = logs(0.5, 0.3, 0.2), torch.tensor([[0.5, 0.9, 0.2]])
    keys = torch.tensor(
        [math.log(p) - math.log(-math.log(v)) for p, v in zip((0.5, 0.3, 0.2), u[0].tolist(), strict=True)]
    )
    assert torch.allclose(concrete(z, u, 2.0)[0], (keys / 2).softmax(0), atol=1e-6)
    assert concrete(z, u, 1e-3)[0].tolist() == [0.0, 1.0, 0.0]
    draws = concrete(z.expand(4000, 3), torch.rand(4000, 3, generator=torch.Generator().manual_seed(0)), 1e-4)
    assert torch.allclose(draws.mean(0), torch.tensor([0.5, 0.3, 0.2]), atol=0.03)


def test_three_players_and_a_teacher_that_goes_on_learning() -> None:
    method = bind(KDGAN(alpha=0.25, temperature=8.0, end_temperature=2.0, protocol=PLAIN))
    turns = watch(method)
    (batch,) = batches(1)
    frozen = state(method.teacher)
    assert same(state(method.mentor), frozen)
    student, mentor, judge = (copy.deepcopy(net) for net in (method.student, method.mentor, method.discriminator))
    draws = copy.deepcopy(method.rng)
    fit(method, [batch], 2)
    assert [turn.player for turn in turns[:3]] == ["discriminator", "teacher", "student"]
    assert same(state(method.teacher), frozen)
    assert not same(state(method.mentor), frozen)
    c, t, scores = student(batch.x), mentor(batch.x), judge(batch.x)
    noise = [torch.rand(c.shape, generator=draws) for _ in range(2)]
    y_c, y_t = (((z.log_softmax(1) - (-u.log()).log()) / 8).softmax(1) for z, u in zip((c, t), noise, strict=True))
    real = scores.gather(1, batch.y[:, None])[:, 0]
    fake_c, fake_t = ((scores * y).sum(1) for y in (y_c, y_t))
    value = log_sigmoid(real) + 0.25 * log_sigmoid(-fake_c) + 0.75 * log_sigmoid(-fake_t)
    assert turns[0].terms["discriminator"] == pytest.approx(-value.mean().item(), rel=1e-3)
    half = (c - t).square().sum(1).mean().item() / 2
    assert turns[1].terms["teacher_distillation"] == pytest.approx(half, rel=1e-3)
    assert turns[2].terms["distillation"] == pytest.approx(half, rel=1e-3)
    method.epoch = 0
    assert method.cooled() == pytest.approx(8.0)
    method.epoch = 1  # of two
    assert method.cooled() == pytest.approx(2.0)


def test_a_gan_learns_images_and_then_the_student_sees_both() -> None:
    method = bind(GANTSC(p_fake=0.5, noise=6, protocol=PLAIN.model_copy(update={"epochs": 16})))
    for layer in method.discriminator.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0  # its draws are torch's own
    judge, maker, rng = copy.deepcopy(method.discriminator), copy.deepcopy(method.generator), torch.Generator()
    rng.set_state(method.rng.get_state())
    turns, seen, original = watch(method), [], method.student_out
    method.student_out = lambda x: (seen.append(x), original(x))[1]  # type: ignore[method-assign,assignment,func-returns-value]
    (batch,) = batches(1)
    fit(method, [batch], 16)

    assert [turn.player for turn in turns] == ["discriminator", "generator"] * 8 + ["student"] * 8
    z, c = torch.randn(len(batch), 6, generator=rng), torch.randint(CLASSES, (len(batch),), generator=rng)
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (SPEC.mean, SPEC.std))
    images = (maker(z, F.one_hot(c, CLASSES).float()) - mean) / std
    assert images.shape == batch.x.shape
    (real, label), (fake, fake_label) = judge(batch.x), judge(images.detach())
    expected = F.cross_entropy(label, batch.y) + F.cross_entropy(fake_label, c)
    expected -= log_sigmoid(real).mean() + log_sigmoid(-fake).mean()
    assert turns[0].terms["discriminator"] == pytest.approx(expected.item(), rel=1e-3)
    adam = torch.optim.Adam(judge.parameters(), lr=2e-4, betas=(0.5, 0.999))
    expected.backward()
    adam.step()
    fake, fake_label = judge(images)
    fooled = F.cross_entropy(fake_label, c) - log_sigmoid(fake).mean()
    assert turns[1].terms["generator"] == pytest.approx(fooled.item(), rel=1e-3)

    originals = [torch.equal(x, batch.x) for x in seen]
    assert 0 < sum(originals) < len(seen) == 8
    made = torch.cat([x for x, real in zip(seen, originals, strict=True) if not real]) * std + mean
    assert -1e-6 < made.min() < made.max() < 1 + 1e-6
    half = (network(STUDENT, 0)(seen[0]) - method.teacher(seen[0])).square().sum(1).mean() / 2
    assert turns[16].terms["logits"] == pytest.approx(half.item(), rel=1e-4)


# ---- graphs ---------------------------------------------------------------------------------------------------------


def test_edges_in_the_reduction_of_caffe() -> None:
    method = bind(IRGEdges(protocol=PLAIN))
    turns = watch(method)
    (batch,) = batches(1)
    fit(method, [batch], 1)
    s, t = (net.tap(batch.x, ("embed",))["embed"] for net in (network(STUDENT, 0), method.teacher))
    graphs = []
    for x in (s, t):
        far = torch.stack([torch.stack([(a - b).square().sum() for a in x]) for b in x])
        graphs.append(far / far.max())
    expected = (graphs[0] - graphs[1]).square().sum() / (2 * len(s))
    assert turns[0].terms["edge"] == pytest.approx(expected.item(), rel=1e-3)


def test_a_change_is_one_number_for_all_instances() -> None:
    s = torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([[0.0], [1.0], [2.0]])
    # edges of the first: 1, 9, 4 of 9; of the second: 1, 4, 1 of 4
    far = 2 * ((1 / 9 - 1 / 4) ** 2 + 0 + (4 / 9 - 1 / 4) ** 2) / 9
    same_twice = s[0], s[0]
    assert change_loss(s, same_twice).item() == pytest.approx(far**2 + (1 / 3) ** 2, rel=1e-5)
    wider = s[0], torch.cat([s[1], torch.zeros(3, 1)], 1)  # no shape is kept, so the maps have no term of their own
    assert change_loss(wider, same_twice).item() == pytest.approx(far**2, rel=1e-5)


def test_stages_change_in_disjoint_pairs() -> None:
    method = bind(IRGChanges(protocol=PLAIN))
    assert method.ways == [(("stage1", "stage1"), ("stage2", "stage2"))]


def test_graphs_of_attention_by_hand() -> None:
    s, t = torch.tensor([[[0.5, -0.2], [0.1, 2.0]]]), torch.tensor([[[0.0, 0.3], [1.0, -1.0]]])
    expected = 0.0
    for a, b in zip(s[0].tolist(), t[0].tolist(), strict=True):
        p, q = ([math.exp(math.tanh(x)) for x in row] for row in (a, b))
        p, q = [x / sum(p) for x in p], [x / sum(q) for x in q]
        expected += sum(x * math.log(x / y) for x, y in zip(p, q, strict=True)) / 2
    assert attention_graph_loss(s, t).item() == pytest.approx(expected, rel=1e-5)
    assert attention_graph_loss(s.repeat(3, 1, 1), t.repeat(3, 1, 1)).item() == pytest.approx(3 * expected, rel=1e-5)


def test_attention_that_is_learned_becomes_a_constant() -> None:
    attention = Attention(width=6, before=4, heads=3)
    vectors, before = torch.randn(8, 6), torch.randn(8, 4, requires_grad=True)
    for _ in range(3):
        attention(vectors, before)
    found = attention.constant(vectors, before)
    assert torch.allclose(found, attention.eval()(vectors, before), atol=1e-5)
    assert found.shape == (3, 8, 8)
    (gradient,) = torch.autograd.grad(found.sum(), before)
    assert gradient.abs().sum() > 0
    method = bind(MHGD(attention_share=0.5, protocol=PLAIN))
    turns = watch(method)
    after = []
    method.after_step = lambda *_: after.append((state(method.student), state(method.attention)))  # type: ignore[method-assign]
    start = state(method.student)
    fit(method, batches(1), 2)
    assert [set(turn.terms) for turn in turns] == [{"attention"}, {"ce", "graph"}]
    assert same(after[0][0], start)
    assert not same(after[1][0], start)
    assert same(after[1][1], after[0][1])


# ---- ensembles ------------------------------------------------------------------------------------------------------


def others(z: Tensor, y: int, temperature: float) -> Tensor:
    p = torch.cat([z[:y], z[y + 1 :]]) / temperature
    return p.softmax(0)


@pytest.mark.parametrize("relation", ["cooperation", "diversity"])
def test_members_compare_what_they_say_of_wrong_classes(relation: Any) -> None:
    members, y = [torch.randn(4, 5, dtype=torch.float64) for _ in range(3)], torch.tensor([0, 4, 2, 2])
    found = []
    for a, b in combinations(members, 2):
        for i, label in enumerate(y.tolist()):
            p, q = others(a[i], label, 2.0), others(b[i], label, 2.0)
            symmetric = ((p - q) * (p.log() - q.log())).sum() / 2
            found.append(symmetric if relation == "cooperation" else (p @ q) / (p.norm() * q.norm()))
    loss = relation_loss(members, y, relation, 2.0)
    assert loss.item() == pytest.approx(torch.stack(found).mean().item(), rel=1e-9)
    shifted = [z.scatter_add(1, y[:, None], torch.full((4, 1), 3.0, dtype=z.dtype)) for z in members]
    assert relation_loss(shifted, y, relation, 2.0).item() == pytest.approx(loss.item(), rel=1e-9)


@pytest.mark.parametrize("relation", ["cooperation", "diversity"])
def test_the_authors_relation_keeps_the_mass_of_the_true_class(relation: Any) -> None:
    members, y = [torch.randn(4, 5, dtype=torch.float64) for _ in range(3)], torch.tensor([0, 4, 2, 2])
    whole = [(z / 2).softmax(1) for z in members]
    cut = [p.scatter(1, y[:, None], 0.0) for p in whole]
    found = []
    for i, j in permutations(range(3), 2):
        if relation == "cooperation":
            found.append(-(cut[i] * (cut[j] + 1e-7).log()).sum(1).mean())
        else:
            found.append(((cut[i] * cut[j]).sum(1) / (whole[i].norm(dim=1) * whole[j].norm(dim=1))).mean())
    loss = relation_in_code(members, y, relation, 2.0)
    assert loss.item() == pytest.approx(torch.stack(found).mean().item(), rel=1e-6)


def test_all_members_learn_and_the_first_is_deployed() -> None:
    method = bind(Cooperation(members=3, temperature=2.0, protocol=PLAIN))
    turns = watch(method)
    (batch,) = batches(1)
    nets = [copy.deepcopy(net) for net in (method.student, *method.others)]
    fit(method, [batch], 1)
    logits = [net(batch.x) for net in nets]
    ce = sum(F.cross_entropy(z, batch.y) for z in logits)
    assert turns[0].terms["ce"] == pytest.approx(float(ce), rel=1e-4)
    assert method.deployed() is method.student
    assert not any(same(state(a), state(b)) for a, b in zip((method.student, *method.others), nets, strict=True))
