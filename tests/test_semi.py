"""Semi- and self-supervised methods (9.3): what is remembered, who is a constant, which samples count, and when."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_methods import BATCH, PLAIN, SPEC, STUDENT, TEACHER, Batch, batches, bind, close, fit, network, sgd, watch
from torch import Tensor, nn

from kdbench.errors import DoesNotFit
from methods.learning.byol import BYOL
from methods.learning.cluster_labels import ClusterLabels
from methods.learning.compress import CompRess, CompRessOneQueue
from methods.learning.consistency import everything, everything_again
from methods.learning.dual_student import DualStudent, Stability, learns_from, stability
from methods.learning.linear_probe import Queue
from methods.learning.mean_teacher_distance import MeanTeacherDistance
from methods.learning.pi_model import PiModel
from methods.learning.seed_distillation import SEEDDistillation
from methods.learning.sntg import SNTG, PiSNTG, smooth_neighbours_loss
from methods.learning.temporal_ensembling import Ensemble, TemporalEnsembling
from methods.learning.vat import VAT, Form, adversarial_perturbation

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|many workers|logging interval|no `val_dataloader)")


# ---- consistency ----------------------------------------------------------------------------------------------------


def test_pi_model_by_hand() -> None:
    method = bind(PiModel(weights={"ce": 1.0, "consistency": 3.0}, protocol=PLAIN))
    student = copy.deepcopy(method.student)
    (batch,) = batches(1)
    free = batch["unlabelled"]
    short = replace(free, x=free.x[:2], y=free.y[:2], beside={"again": replace(free["again"], x=free["again"].x[:2])})
    batch = replace(batch, beside={"again": batch["again"], "unlabelled": short})
    fit(method, [batch], 1)
    a = student(torch.cat([batch.x, short.x]))
    b = student(torch.cat([batch["again"].x, short["again"].x]))
    ce = F.cross_entropy(a[:BATCH], batch.y, reduction="sum") / 10  # 8 of 10 images have a label
    sgd(student, ce + 3 * 0.8 * ((a.softmax(1) - b.softmax(1)) ** 2).mean(), lr=0.1)  # through both passes
    assert close(method.student, student)


def test_an_ensemble_is_of_the_last_predictions_of_past_epochs() -> None:
    ensemble, both = Ensemble(3, 2, decay=0.6), torch.tensor([0, 2])

    def said(p: float, q: float) -> Tensor:
        return torch.tensor([[p, 1 - p], [q, 1 - q]])

    assert ensemble.recall(both, 0).known.tolist() == [False, False]
    ensemble.remember(both, said(0.9, 0.2), 0)
    ensemble.remember(both, said(0.5, 0.2), 0)  # seen twice in an epoch: the last time counts
    assert ensemble.recall(both, 0).known.tolist() == [False, False]
    assert ensemble.recall(both, 1).target[:, 0].tolist() == pytest.approx([0.5, 0.2])
    ensemble.remember(both[:1], said(1.0, 0)[:1], 1)  # and one is not seen in epoch 1
    # (.6 · .4 · .5 + .4 · 1) / (1 - .6²), and (.4 · .2) / (1 - .6)
    target, known = ensemble.recall(torch.arange(3), 2)
    assert target[:, 0].tolist() == pytest.approx([0.52 / 0.64, 0.0, 0.2])
    assert known.tolist() == [True, False, True]
    assert target.sum(1).tolist() == pytest.approx([1.0, 0.0, 1.0])
    assert torch.equal(ensemble.recall(torch.arange(3), 2).target, target)  # to look changes nothing


def test_temporal_ensembling_by_hand() -> None:
    method = bind(TemporalEnsembling(decay=0.6, weights={"ce": 1.0, "consistency": 4.0}, protocol=PLAIN))
    student = copy.deepcopy(method.student)
    (batch,) = batches(1)
    turns = watch(method)
    fit(method, [batch], 3)
    past: list[Tensor] = []
    for epoch in range(3):
        z = student(everything(batch))
        loss = F.cross_entropy(z[:BATCH], batch.y) / 2
        if past:
            target = past[0] if epoch == 1 else (0.24 * past[0] + 0.4 * past[1]) / 0.64
            loss = loss + 4 * 0.5 * ((z.softmax(1) - target) ** 2).mean()
        past.append(z.softmax(1).detach())
        sgd(student, loss, lr=0.1)
    assert close(method.student, student)
    assert [turn.terms["consistency"] > 0 for turn in turns] == [False, True, True]


def test_memories_need_to_know_how_many_images_there_are() -> None:
    for spec in (replace(SPEC, beside={}), replace(SPEC, n_train=0)):
        with pytest.raises(DoesNotFit, match="Temporal ensembling remembers a prediction of every image"):
            bind(TemporalEnsembling(), spec=spec)


def test_neighbours_come_together_and_others_are_kept_apart() -> None:
    a, b = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0, 3.0], [0.3, 0.5], [4.0, 5.0]])
    squared = [5.0, 0.17, 12.5]  # means over two features
    same = torch.tensor([True, False, False])
    expected = (5.0 + (1.0 - 0.17**0.5) ** 2 + 0.0) / 3
    assert smooth_neighbours_loss(a, b, same).item() == pytest.approx(expected, rel=1e-6)
    unknown = torch.tensor([False, True, True])
    expected = (2.0 - 0.17**0.5) ** 2 / 3
    assert smooth_neighbours_loss(a, b, same, unknown, margin=2.0).item() == pytest.approx(expected, rel=1e-6)
    assert squared == pytest.approx(((a - b) ** 2).mean(1).tolist())
    still = a.clone().requires_grad_()
    smooth_neighbours_loss(still, a, ~same).backward()
    assert still.grad is not None
    assert still.grad.isfinite().all()


@pytest.mark.parametrize("cls", [SNTG, PiSNTG])
def test_neighbours_are_known_by_label_or_by_teacher(cls: type[SNTG | PiSNTG]) -> None:
    """All pairs of the batch, in turn, in the order that the method's generator draws."""
    method = bind(cls(weights={"ce": 0.0, "consistency": 0.0, "neighbours": 6.0}, protocol=PLAIN))
    (batch,) = batches(1)
    student, rng = copy.deepcopy(method.student), torch.Generator().manual_seed(0)
    fit(method, [batch], 2)
    teacher = None
    for _ in range(2):
        taps = student.tap(everything(batch))  # type: ignore[operator]
        scores = teacher if cls is SNTG else student(everything_again(batch))
        label = [*batch.y.tolist(), *([-1] * BATCH if scores is None else scores[BATCH:].argmax(1).tolist())]
        order = torch.randperm(2 * BATCH, generator=rng).tolist()
        terms = [taps["embed"].sum() * 0]
        for i, j in zip(order[:BATCH], order[BATCH:], strict=True):
            squared = ((taps["embed"][i] - taps["embed"][j]) ** 2).mean()
            if min(label[i], label[j]) >= 0:
                terms.append(squared if label[i] == label[j] else (1 - squared.sqrt()).clamp(min=0) ** 2)
        teacher = taps["logits"].softmax(1).detach()
        named = dict(student.named_parameters())
        parameters = [value for name, value in named.items() if not name.startswith("head")]
        gradients = torch.autograd.grad(6 * 0.5 * torch.stack(terms).sum() / BATCH, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(0.1 * gradient)
    assert close(method.student, student)


def test_mean_teacher_with_two_heads_by_hand() -> None:
    method = bind(MeanTeacherDistance(decay=0.6, weights=dict.fromkeys(MeanTeacherDistance.terms, 2.0), protocol=PLAIN))
    student, head = copy.deepcopy(method.student), copy.deepcopy(method.consistent)
    average = copy.deepcopy(student)
    (batch,) = batches(1)
    fit(method, [batch, batch], 1)
    for decay in (0.0, 0.5):
        taps = student.tap(everything(batch))  # type: ignore[operator]
        s, c, t = taps["logits"], head(taps["embed"]), average(everything_again(batch)).softmax(1).detach()
        ce = F.cross_entropy(s[:BATCH], batch.y) / 2
        loss = 2 * (ce + ((c.softmax(1) - t) ** 2).mean() + ((s - c) ** 2).mean())
        sgd(nn.ModuleList([student, head]), loss, lr=0.1)
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), student.parameters(), strict=True):
                mine.mul_(decay).add_((1 - decay) * theirs)
    assert close(method.student, student)
    assert close(method.consistent, head)
    assert close(method.deployed(), average)


# ---- virtual adversaries --------------------------------------------------------------------------------------------


def test_the_direction_is_the_one_that_changes_the_prediction_most() -> None:
    """Of a linear softmax the Hessian of KL is W diag(p) Wᵀ - (W p)(W p)ᵀ; many iterations find its largest value."""
    rng = torch.Generator().manual_seed(0)
    w, x, start = (torch.randn(*shape, generator=rng).double() for shape in ((5, 3), (4, 5), (4, 5)))

    def net(z: Tensor) -> Tensor:
        return z @ w

    for form in ("author", "pytorch"):
        r = adversarial_perturbation(net, x, net(x), start, xi=1e-3, eps=2.0, iterations=10, form=form)
        for row, p in zip(r, net(x).softmax(1), strict=True):
            hessian = w @ torch.diag(p) @ w.T - torch.outer(w @ p, w @ p)
            largest = torch.linalg.eigvalsh(hessian)[-1].item()
            assert (row @ hessian @ row / row.square().sum()).item() == pytest.approx(largest, rel=1e-6)
            # the port adds 1e-8 to a slope's length, which goes with ξ²
            assert row.norm().item() == pytest.approx(2.0, rel=1e-6 if form == "author" else 0.05)


@pytest.mark.parametrize("form", ["author", "pytorch"])
def test_vat_by_hand(form: Form) -> None:
    """Running statistics are those of the labelled batch alone."""
    method = bind(VAT(xi=0.1, eps=2.0, form=form, weights={"ce": 1.0, "vat": 3.0}, protocol=PLAIN))
    student, rng = copy.deepcopy(method.student), torch.Generator().manual_seed(0)
    (batch,) = batches(1)
    fit(method, [batch], 1)
    ce = F.cross_entropy(student(batch.x), batch.y)
    buffers = [buffer.clone() for buffer in student.buffers()]
    x = batch["unlabelled"].x
    draw = torch.randn if form == "author" else torch.rand
    d = draw(x.shape, generator=rng) - 0.5 * (form == "pytorch")
    d = (d / d.flatten(1).norm(dim=1)[:, None, None, None]).requires_grad_()
    clean = student(x).detach()

    def divergence(shift: Tensor) -> Tensor:
        return (clean.softmax(1) * (clean.log_softmax(1) - student(x + shift).log_softmax(1))).sum(1).mean()

    (slope,) = torch.autograd.grad(divergence(0.1 * d), d)
    r = 2.0 * slope / slope.flatten(1).norm(dim=1)[:, None, None, None]
    sgd(student, ce + 3 * divergence(r), lr=0.1)
    assert close(method.student, student)
    for mine, theirs in zip(method.student.buffers(), buffers, strict=True):
        assert torch.allclose(mine.double(), theirs.double(), rtol=1e-5)
    assert method.forwards == {"student": 4 * BATCH, "teacher": 0}


# ---- two students ---------------------------------------------------------------------------------------------------


def apart_of(p: Tensor, q: Tensor) -> Tensor:
    return ((p - q) ** 2).mean(1)


def test_who_is_stable_and_who_learns_from_whom() -> None:
    def of(*rows: float) -> Tensor:
        """Logits of two classes, by the probability of the first."""
        p = torch.tensor(rows)
        return torch.stack([p.log(), (1 - p).log()], 1)

    # sure in one view; of two minds; unsure; sure in the other view
    mine = stability(of(0.9, 0.9, 0.7, 0.6), of(0.7, 0.2, 0.7, 0.9), 0.8)
    assert mine.stable.tolist() == [
        True,
        False,
        False,
        True,
    ]
    assert mine.distance.tolist() == pytest.approx([0.04, 0.49, 0.0, 0.09], abs=1e-6)
    stable, not_stable = torch.tensor([True]), torch.tensor([False])
    near, far = torch.tensor([0.1]), torch.tensor([0.2])
    for me, other, learns in (
        (Stability(not_stable, near), Stability(stable, far), True),
        (Stability(not_stable, far), Stability(not_stable, near), False),
        (Stability(stable, far), Stability(not_stable, near), False),
        (Stability(stable, far), Stability(stable, near), True),
        (Stability(stable, near), Stability(stable, far), False),
        (Stability(stable, near), Stability(stable, near), True),  # and so does the other
    ):
        assert learns_from(me, other).tolist() == [learns]


def test_dual_students_by_hand() -> None:
    weights = {"ce": 1.0, "consistency": 2.0, "stabilisation": 5.0}
    method = bind(DualStudent(threshold=0.2, weights=weights, protocol=PLAIN))
    nets = [copy.deepcopy(method.student), copy.deepcopy(method.other)]
    (batch,) = batches(1)
    turns = watch(method)
    fit(method, [batch], 1)
    views = [everything(batch), everything_again(batch)]
    z = [net(view) for net, view in zip(nets, views, strict=True)]
    p = [each.softmax(1) for each in z]
    q = [net(view).softmax(1).detach() for net, view in zip(nets, views[::-1], strict=True)]
    apart = [apart_of(p[i], q[i]).detach() for i in range(2)]
    learned, losses = [0, 0], []
    for i in range(2):
        loss = F.cross_entropy(z[i][:BATCH], batch.y) / 2 + 2 * apart_of(p[i], q[i]).mean()
        for n in range(BATCH, 2 * BATCH):
            stable = [
                bool(p[k][n].argmax() == q[k][n].argmax()) and max(p[k][n].max(), q[k][n].max()) > 0.2 for k in range(2)
            ]
            if stable[1 - i] and (not stable[i] or apart[i][n] >= apart[1 - i][n]):
                learned[i] += 1
                loss = loss + 5 * ((p[i][n] - p[1 - i][n].detach()) ** 2).mean() / (2 * BATCH)
        losses.append(loss)
    assert all(learned)
    for net, loss in zip(nets, losses, strict=True):
        sgd(net, loss, lr=0.1)
    assert [turn.player for turn in turns] == ["first", "second"]
    assert close(method.student, nets[0])
    assert close(method.other, nets[1])
    assert method.deployed() is method.student


# ---- features without labels ----------------------------------------------------------------------------------------


def test_a_queue_holds_the_last_rows() -> None:
    queue, rows = Queue(4, 1), torch.arange(20.0)[:, None]
    assert 0.3 < Queue(500, 64).rows.norm(dim=1).mean().item() < 1.7
    queue.enter(rows[:3])
    assert queue.rows[:3, 0].tolist() == [0, 1, 2]
    queue.enter(rows[3:5])
    assert queue.rows[:, 0].tolist() == [4, 1, 2, 3]
    queue.enter(rows[5:11])  # more than there is room for: the last four, 10 in the place behind 9
    assert sorted(queue.rows[:, 0].tolist()) == [7, 8, 9, 10]
    queue.enter(rows[11:12])
    assert sorted(queue.rows[:, 0].tolist()) == [8, 9, 10, 11]


def unit_rows(x: Tensor) -> Tensor:
    return x / x.norm(dim=1, keepdim=True)


def trained(student: nn.Module, *parts: nn.Module) -> list[nn.Parameter]:
    """All parameters but those of the student's last layer."""
    features = [value for name, value in student.named_parameters() if not name.startswith("head")]
    return [*features, *(value for part in parts for value in part.parameters())]


def step(loss: Tensor, parameters: list[nn.Parameter]) -> None:
    gradients = torch.autograd.grad(loss, parameters)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.sub_(0.1 * gradient)


def classified(student: nn.Module, head: nn.Linear, batch: Batch) -> None:
    """One epoch of the linear stage: features of the student as it is evaluated, and the last layer's step."""
    with torch.no_grad():
        features = copy.deepcopy(student).eval().tap(batch.x)["embed"]  # type: ignore[operator]
    step(F.cross_entropy(head(features), batch.y), list(head.parameters()))


@pytest.mark.parametrize("cls", [SEEDDistillation, CompRess, CompRessOneQueue])
def test_distilled_features_by_hand(cls: type[SEEDDistillation | CompRess | CompRessOneQueue]) -> None:
    """Three epochs of features, without labels and against queues as they were before; then the last layer alone."""
    protocol = PLAIN.model_copy(update={"epochs": 4})
    method = bind(cls(linear_share=0.25, protocol=protocol, **({"momentum": 0.6} if cls is CompRess else {})))
    student = copy.deepcopy(method.student)
    average = copy.deepcopy(student)
    adapter = copy.deepcopy(method.projection if cls is SEEDDistillation else getattr(method, "adapter", nn.Identity()))
    anchors = method.anchors if cls is not CompRess else method.student_anchors
    queue = anchors.rows.clone()
    assert len(queue) == SPEC.n_train  # no longer than the training set
    teacher_queue = method.teacher_anchors.rows.clone() if cls is CompRess else queue
    (batch,) = batches(1)
    turns = watch(method)
    fit(method, [batch], 4)
    t = unit_rows(method.teacher.tap(batch.x, ("embed",))["embed"])  # type: ignore[operator]
    for epoch in range(3):
        s = unit_rows(adapter(student.tap(batch.x)["embed"]))  # type: ignore[operator]
        if cls is SEEDDistillation:
            p = torch.cat([(t * t).sum(1)[:, None], t @ queue.T], 1) / 0.01
            q = torch.cat([(s * t).sum(1)[:, None], s @ queue.T], 1) / 0.2
            loss = -(p.softmax(1) * q.log_softmax(1)).sum(1).mean()
        else:
            p, q = t @ teacher_queue.T / 0.04, s @ queue.T / 0.04
            loss = (p.softmax(1) * (p.log_softmax(1) - q.log_softmax(1))).sum(1).mean()
        place = slice(0, BATCH) if epoch % 2 == 0 else slice(BATCH, 2 * BATCH)
        queue, teacher_queue = queue.clone(), teacher_queue.clone()
        teacher_queue[place] = t
        queue[place] = t if cls is not CompRess else unit_rows(average.tap(batch.x)["embed"]).detach()  # type: ignore
        assert turns[epoch].terms == pytest.approx({method.terms[0]: loss.item()}, rel=1e-3)
        step(loss, trained(student, adapter))
        with torch.no_grad():
            for mine, theirs in zip(average.parameters(), student.parameters(), strict=True):
                mine.mul_(0.6).add_(0.4 * theirs)
    assert torch.allclose(anchors.rows, queue, atol=1e-4)
    head = student.head
    assert isinstance(head, nn.Linear)
    classified(student, head, batch)
    assert [(turn.stage, turn.player) for turn in turns] == [("features", "student")] * 3 + [("linear", "head")]
    assert close(method.student, student)
    assert method.deployed() is method.student


def test_clusters_of_the_teachers_features_are_the_labels() -> None:
    protocol = PLAIN.model_copy(update={"epochs": 4})
    method = bind(ClusterLabels(clusters=3, linear_share=0.25, protocol=protocol))
    student, linear = copy.deepcopy(method.student), copy.deepcopy(method.linear)
    (batch,) = batches(1)
    turns = watch(method)
    fit(method, [batch], 4)
    t, cluster = method.teacher.tap(batch.x, ("embed",))["embed"], method.cluster[batch.index]  # type: ignore[operator]
    means = torch.stack([t[cluster == k].mean(0) for k in range(3)])
    assert torch.equal(torch.cdist(t, means).argmin(1), cluster)  # where k-means comes to rest
    for epoch in range(3):
        loss = F.cross_entropy(linear(student.tap(batch.x)["embed"]), cluster)  # type: ignore[operator]
        assert turns[epoch].terms == pytest.approx({"cluster": loss.item()}, rel=1e-3)
        step(loss, trained(student, linear))
    head = student.head
    assert isinstance(head, nn.Linear)
    classified(student, head, batch)
    assert [(turn.stage, turn.player) for turn in turns] == [("features", "student")] * 3 + [("linear", "head")]
    assert close(method.student, student)
    assert ClusterLabels().bind(network(STUDENT, 0), network(TEACHER, 0), SPEC).linear.out_features == SPEC.n_train


def test_byol_by_hand() -> None:
    protocol = PLAIN.model_copy(update={"epochs": 3})
    method = bind(BYOL(hidden=12, size=5, decay=0.5, linear_share=0.3, protocol=protocol))
    student, g, q = (copy.deepcopy(part) for part in (method.student, method.projector, method.predictor))
    target, g_target = copy.deepcopy(student), copy.deepcopy(g)
    (batch,) = batches(1)
    views = [batch.x, batch["again"].x]
    turns = watch(method)
    fit(method, [batch], 3)
    for epoch, decay in enumerate((0.5, 0.75)):  # 1 - .5 (cos 0 + 1) / 2, 1 - .5 (cos(π / 2) + 1) / 2
        loss = torch.zeros(())
        for x, other in (views, views[::-1]):
            p = unit_rows(q(g(student.tap(x)["embed"])))  # type: ignore[operator]
            z = unit_rows(g_target(target.tap(other)["embed"])).detach()  # type: ignore[operator]
            loss = loss + ((p - z) ** 2).sum(1).mean()
        assert turns[epoch].terms == pytest.approx({"latent": loss.item()}, rel=1e-3)
        step(loss, trained(student, g, q))
        with torch.no_grad():
            for average, net in ((target, student), (g_target, g)):
                for mine, theirs in zip(average.parameters(), net.parameters(), strict=True):
                    mine.mul_(decay).add_((1 - decay) * theirs)
    assert close(method.target, target)
    assert close(method.target_projector, g_target)
    head = student.head
    assert isinstance(head, nn.Linear)
    classified(student, head, batch)
    assert [turn.stage for turn in turns] == ["features", "features", "linear"]
    assert close(method.student, student)


def test_a_linear_probe_wants_a_linear_layer() -> None:
    method = SEEDDistillation()
    student = network(STUDENT, 0)
    student.head = nn.Sequential(student.head)
    with pytest.raises(DoesNotFit, match="SEED is judged by a linear layer on fixed features"):
        method.bind(student, network(TEACHER, 0), SPEC)
