"""Several teachers' features, unions of classes, and students that are customised: what golden numbers do not cover."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_methods import PLAIN, SPEC, STUDENT, TEACHER, batches, bind, changed, fit, network, state, watch
from test_pools import pooled, random
from torch import Tensor, nn

from kdbench.data.batch import Batch
from kdbench.errors import DoesNotFit
from kdbench.method import Method
from kdbench.taps import Spec
from methods.multi_teacher.customize import AdaptiveKA, least_ambiguous, selective_loss, unit_norm_loss
from methods.multi_teacher.data_distillation import DataDistillation, ensembled_labels
from methods.multi_teacher.feed import ParallelFEED, SequentialFEED
from methods.multi_teacher.hne import HNE, hierarchical_loss
from methods.multi_teacher.ka import KA, groups_of_taps, of_one_size
from methods.multi_teacher.knowledge_flow import KnowledgeFlow, dependence_loss, flowed
from methods.multi_teacher.log_euclidean import MatrixLog, log_euclidean_loss
from methods.multi_teacher.uhc_factorised import FactorisedUHC, factorised_probabilities, logit_factors

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*(LeafSpec|many workers|logging interval|no `val_dataloader|eval mode)"
)


def kl(log_p: Tensor, q: Tensor) -> Tensor:
    return (q * (q.log() - log_p)).sum(1).mean()


def terms(method: Method, batch: Batch) -> dict[str, Tensor]:
    return method.losses(method.student_out(batch.x), method.teach(batch), batch)  # type: ignore[arg-type]


# ---- KA -----------------------------------------------------------------------------------------------------------


def test_stages_are_grouped_from_the_deepest() -> None:
    def spec(name: str, stages: int) -> Spec:
        return Spec(name, {f"stage{k}": (k, 8, 8) for k in range(1, stages + 1)})

    groups = groups_of_taps(spec("student", 3), [spec("wide", 3), spec("deep", 4)])
    assert groups == [("stage1", "stage1", "stage2"), ("stage2", "stage2", "stage3"), ("stage3", "stage3", "stage4")]
    groups = groups_of_taps(spec("student", 3), [spec("deep", 4), spec("shallow", 2)])
    assert groups == [("stage2", "stage3", "stage1"), ("stage3", "stage4", "stage2")]


def test_larger_maps_are_pooled_to_the_smallest() -> None:
    a, b = torch.arange(16.0).view(1, 1, 4, 4), torch.zeros(1, 2, 2, 2)
    pooled_a, same_b = of_one_size([a, b])
    assert pooled_a.tolist() == [[[[2.5, 4.5], [10.5, 12.5]]]]
    assert same_b is b


def test_logits_may_be_amalgamated_as_in_the_paper() -> None:
    method, (batch,) = pooled(KA(targets="mse"), (4, 0, 2), (1, 3, 5)), batches(1)
    t = method.teach(batch)
    assert t is not None
    s = method.student_out(batch.x).logits
    squares = (s[:, [4, 0, 2, 1, 3, 5]] - torch.cat([each.logits for each in t.each], dim=1)).square()
    (player, told), (other, _) = method.turns(batch)
    assert (player, other) == ("student", "codes")
    assert told["kd"].item() == pytest.approx(squares.mean().item(), rel=1e-5)


# ---- FEED ---------------------------------------------------------------------------------------------------------


def test_each_teacher_has_a_transformation_of_its_own() -> None:
    method, (batch,) = pooled(ParallelFEED(), None, None), batches(1)
    assert isinstance(method, ParallelFEED)
    s, t = method.student_out(batch.x), method.teach(batch)
    assert t is not None
    parts = [
        (F.normalize(layers(s["stage3"]).flatten(1)) - F.normalize(each["stage3"].flatten(1))).abs().mean()
        for layers, each in zip(method.transforms, t.each, strict=True)
    ]
    assert terms(method, batch)["feed"].item() == pytest.approx(sum(part.item() for part in parts), rel=1e-6)
    assert parts[0].item() != pytest.approx(parts[1].item(), rel=1e-3)


def test_each_generation_is_transformed_afresh() -> None:
    method = bind(SequentialFEED(generations=3, protocol=PLAIN.model_copy(update={"epochs": 3})))
    assert isinstance(method, SequentialFEED)
    turns, first, learned = watch(method), state(method), {}
    after = method.after_step

    def note(batch: Batch) -> None:
        learned[method.stage] = {name.split(".")[1] for name in changed(method, first) if name.startswith("transforms")}
        after(batch)

    method.after_step = note  # type: ignore[method-assign]
    fit(method, batches(1), 3)
    assert learned == {"generation1": set(), "generation2": {"0"}, "generation3": {"0", "1"}}
    assert [sorted(turn.terms) for turn in turns] == [["first"], ["ce", "feed"], ["ce", "feed"]]


# ---- UHC by factorisation -----------------------------------------------------------------------------------------


def consistent(classes: list[tuple[int, ...]], n: int, scale: float = 2.0) -> tuple[Tensor, list[Tensor]]:
    """A distribution over `n` classes for each of 8 samples, and what specialists would say if they knew it."""
    q = (scale * random(8, n)).softmax(1)
    return q, [q[:, own] / q[:, own].sum(1, keepdim=True) for own in classes]


@pytest.mark.parametrize("classes", [[(0, 3, 2), (2, 1, 4)], [(4, 0), (0, 1, 2), (2, 3)], [(0, 1, 2, 3, 4), (3, 1)]])
def test_teachers_who_agree_are_unified_exactly(classes: list[tuple[int, ...]]) -> None:
    q, told = consistent(classes, 5)
    weak = logit_factors(classes, 5, ridge=1e-9)
    logits = torch.cat([p.log() + 7 * k for k, p in enumerate(told)], dim=1)  # logits are known but for a constant
    assert torch.allclose((logits @ weak.T).softmax(1), q, atol=1e-6)
    assert torch.allclose(factorised_probabilities(told, classes, weak), q, atol=1e-6)


def test_two_teachers_need_no_start_near_the_answer() -> None:
    classes = [(0, 1, 2), (2, 3, 4)]
    q, told = consistent(classes, 5)
    assert torch.allclose(factorised_probabilities(told, classes, torch.zeros(5, 6).double(), steps=1), q, atol=1e-12)


def test_factors_of_logits_are_those_of_least_squares() -> None:
    classes, ridge = [(0, 1, 2), (2, 3), (1, 3, 4)], 0.3
    z, factors = random(8), logit_factors(classes, 5, ridge)
    u = (factors @ z).requires_grad_()
    c = torch.stack([(part - u[list(own)]).mean() for part, own in zip(z.split([3, 2, 3]), classes, strict=True)])
    parts = zip(z.split([3, 2, 3]), classes, c, strict=True)
    error = sum(((part - u[list(own)] - c_n).square().sum() for part, own, c_n in parts), ridge * u.square().sum())
    (slope,) = torch.autograd.grad(error, u)
    assert slope.abs().max() < 1e-12


def test_separate_teachers_logits_are_centred() -> None:
    factors = logit_factors([(0, 1), (2, 3, 4)], 5, ridge=1e-9)
    u = factors @ torch.tensor([4.0, 6.0, -1.0, 0.0, 4.0], dtype=torch.float64)
    assert u.tolist() == pytest.approx([-1, 1, -2, -1, 3], abs=1e-6)


@pytest.mark.parametrize("space", ["logits", "probabilities"])
def test_the_student_learns_the_estimate(space: Any) -> None:
    method, (batch,) = pooled(FactorisedUHC(temperature=2.0, space=space, ridge=1e-6), (0, 1, 2), (3, 4, 5)), batches(1)
    t = method.teach(batch)
    assert t is not None
    z = [each.logits.double() - each.logits.double().mean(1, keepdim=True) for each in t.each]
    q = (torch.cat(z, dim=1) / 2).softmax(1)
    if space == "probabilities":  # of separate teachers every weighting fits; that of the logarithms is taken
        logs = [(each.logits.double() / 2).log_softmax(1) for each in t.each]
        q = torch.cat([log - log.mean(1, keepdim=True) for log in logs], dim=1).softmax(1)
    log_p = (method.student_out(batch.x).logits.double() / 2).log_softmax(1)
    assert terms(method, batch)["kd"].item() == pytest.approx(4 * kl(log_p, q).item(), rel=1e-4)


# ---- adaptive amalgamation ----------------------------------------------------------------------------------------


def test_the_surest_teacher_of_each_sample_is_chosen() -> None:
    a = torch.tensor([[5.0, 0.0, 0.0], [1.0, 1.0, 1.0], [9.0, 9.0, 0.0]])
    b = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.5, 0.0], [0.0, 0.0, 30.0]])
    assert least_ambiguous([a, b]).tolist() == [0, 1, 1]
    s = [torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([[9.0, 9.0], [3.0, 0.0]])]
    t = [torch.tensor([[0.0, 3.0], [8.0, 8.0]]), torch.tensor([[0.0, 0.0], [1.0, 2.0]])]
    assert selective_loss(s, t, torch.tensor([0, 1])).item() == pytest.approx(((1 + 4) / 2 + (4 + 4) / 2) / 2)


def test_filters_of_norm_one_cost_nothing() -> None:
    weight = torch.tensor([[0.6, 0.8], [1.0, 1.0]])[..., None, None]
    assert unit_norm_loss(weight).item() == pytest.approx((0 + 1) / 2)


def test_components_come_first_and_then_the_student() -> None:
    protocol = PLAIN.model_copy(update={"epochs": 2})
    method = pooled(AdaptiveKA(protocol=protocol), (0, 1, 2), (3, 4, 5), (2, 1, 0))
    assert isinstance(method, AdaptiveKA)
    assert method.sources == [[0, 2], [1]]
    first, turns, seen = state(method), watch(method), {}
    after = method.after_step

    def note(batch: Batch) -> None:
        seen[method.stage] = {name.partition(".")[0] for name in changed(method, first)}
        after(batch)

    method.after_step = note  # type: ignore[method-assign]
    fit(method, batches(1), 2)
    assert [(turn.stage, turn.player) for turn in turns] == [("components", "components"), ("target", "student")]
    assert seen["components"] == {"components", "alignments"}
    assert {"student", "adapters"} <= seen["target"]
    for net, snapshot in zip(method.components, method.finished, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(net.parameters(), snapshot.parameters(), strict=True))


# ---- a tree of networks -------------------------------------------------------------------------------------------


def test_the_whole_ensemble_teaches_the_nested() -> None:
    leaves = [random(3, 5, seed=seed).requires_grad_() for seed in range(4)]
    loss = hierarchical_loss(leaves, temperature=2.0)
    whole = (sum(leaves) / 4 / 2).detach().softmax(1)  # type: ignore[operator]
    nested = [leaves[0], (leaves[0] + leaves[1]) / 2]
    assert loss.item() == pytest.approx(sum(4 * kl((e / 2).log_softmax(1), whole).item() for e in nested), rel=1e-12)
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    assert [gradient is not None and bool(gradient.any()) for gradient in gradients] == [True, True, False, False]


def test_leaves_next_to_each_other_share_most() -> None:
    method, (batch,) = bind(HNE(forks=2)), batches(1)
    assert isinstance(method, HNE)
    assert method.forks == ("stage1", "stage2")

    def leaves() -> list[Tensor]:
        return method.leaves(method.student_out(batch.x).taps, [iter(level) for level in method.branches])  # type: ignore[call-overload]

    assert len({tuple(z.flatten().tolist()) for z in leaves()}) == 4  # each is another
    (lower,), (one, two) = ([*level] for level in method.branches)  # type: ignore[misc]
    one.load_state_dict(copy.deepcopy(method.student).tail("stage2").state_dict())  # type: ignore[operator]
    z = leaves()
    assert torch.equal(z[1], z[0])
    assert not torch.equal(z[2], z[0])
    lower.load_state_dict(copy.deepcopy(method.student).tail("stage1").state_dict())  # type: ignore[operator]
    two.load_state_dict(one.state_dict())
    assert all(torch.equal(each, z[0]) for each in leaves())


def test_a_tree_needs_stages_to_fork_behind() -> None:
    with pytest.raises(DoesNotFit, match=r"has 3 with the last: choose fewer \(method.hne.forks\)"):
        bind(HNE(forks=3))


# ---- logarithms of similarities -----------------------------------------------------------------------------------


def symmetric(x: Tensor) -> Tensor:
    return MatrixLog.apply(x @ x.T + 0.1 * torch.eye(len(x), dtype=x.dtype))  # type: ignore[no-any-return]


def test_the_logarithm_of_a_matrix_is_that_of_its_exponential() -> None:
    a = random(4, 4)
    a = a + a.T
    assert torch.allclose(MatrixLog.apply(torch.matrix_exp(a)), a, atol=1e-9)
    assert torch.autograd.gradcheck(symmetric, random(4, 6).requires_grad_())
    assert torch.autograd.gradcheck(symmetric, random(5, 2).requires_grad_())  # three eigenvalues are 0.1


def test_equal_eigenvalues_have_a_gradient() -> None:
    a = (3 * torch.eye(3, dtype=torch.float64)).requires_grad_()
    g = random(3, 3)
    (found,) = torch.autograd.grad(MatrixLog.apply(a), a, g)
    assert torch.allclose(found, g / 3, atol=1e-12)


def test_similarities_are_compared_by_their_logarithms() -> None:
    s, pool = random(3, 4).abs(), [random(3, 7, seed=1).abs(), random(3, 5, seed=2).abs()]

    def log(x: Tensor) -> Tensor:
        x = x / x.norm(dim=1, keepdim=True)
        values, vectors = torch.linalg.eigh(x @ x.T + 0.2 * torch.eye(3, dtype=x.dtype))
        return vectors @ values.log().diag() @ vectors.T

    expected = sum((log(s) - log(t)).square().sum().item() / 9 for t in pool) / 2
    assert log_euclidean_loss(s, pool, 0.2).item() == pytest.approx(expected, rel=1e-9)
    assert log_euclidean_loss(5 * s, [s], 0.2).item() == pytest.approx(0, abs=1e-20)


# ---- data distillation --------------------------------------------------------------------------------------------


def test_views_are_ensembled_before_the_label_is_taken() -> None:
    sure, unsure = torch.tensor([[4.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.5, 0.4]])
    assert ensembled_labels([sure, unsure]).tolist() == [0]
    # two classes are first in one view each, the third is second in both
    views = [torch.tensor([[0.5, 0.1, 0.4]]).log(), torch.tensor([[0.1, 0.5, 0.4]]).log()]
    assert ensembled_labels(views).tolist() == [2]


def test_the_teacher_labels_what_has_no_label() -> None:
    method, (batch,) = bind(DataDistillation()), batches(1)
    free = batch["unlabelled"]
    ((player, told),) = method.turns(batch)
    with torch.no_grad():
        views = [method.teacher(view.x).softmax(1) for view in (free, free["again"])]
        s = network(STUDENT, 0)(torch.cat([batch.x, free.x]))
    assert player == "student"
    assert told["ce"].item() == pytest.approx(F.cross_entropy(s[:8], batch.y).item(), rel=1e-5)
    labels = (views[0] + views[1]).argmax(1)
    assert told["distilled"].item() == pytest.approx(F.cross_entropy(s[8:], labels).item(), rel=1e-5)


# ---- knowledge flow -----------------------------------------------------------------------------------------------


def test_layers_are_mixed_by_normalised_weights() -> None:
    scores = torch.tensor([0.0, 2.0]).log1p()  # of 1 and 3
    own, other = torch.full((1, 1, 1, 1), 4.0), torch.tensor([[[[0.0, 8.0], [8.0, 16.0]]]])
    assert flowed(scores, own, [other]).item() == pytest.approx(0.25 * 4 + 0.75 * 8)
    assert dependence_loss(torch.stack([scores, scores.flip(0)])).item() == pytest.approx(1.3862944 + 0.2876821)


def test_a_student_that_depends_on_no_one_is_itself() -> None:
    method, (batch,) = pooled(KnowledgeFlow(), (0, 1, 2), None), batches(1)
    assert isinstance(method, KnowledgeFlow)
    method.eval()
    alone = F.cross_entropy(method.student(batch.x), batch.y).item()
    assert terms(method, batch)["ce"].item() != pytest.approx(alone, rel=1e-3)
    assert terms(method, batch)["dependence"].item() == pytest.approx(3 * torch.tensor(3.0).log().item())
    with torch.no_grad():
        method.layer_scores[:, 0] = 200.0
    assert terms(method, batch)["ce"].item() == pytest.approx(alone, rel=1e-6)
    assert terms(method, batch)["dependence"].item() == 0


def test_knowledge_flows_into_the_students_own_layers_alone() -> None:
    method = bind(KnowledgeFlow(protocol=PLAIN))
    names = {name for name, _ in method.named_parameters()}
    assert {name.partition(".")[0] for name in names} == {"student", "inflows", "layer_scores"}
    assert {name.partition(".")[0] for name in method.state_dict()} >= {"student", "inflows", "layer_scores"}
    assert not any(name.startswith("tails") for name in method.state_dict())


def test_knowledge_cannot_flow_into_what_cannot_be_cut() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network(STUDENT, 0)

        def tap(self, x: Tensor, names: Any = None) -> dict[str, Tensor]:
            return self.net.tap(x, names)  # type: ignore[operator,no-any-return]

    with pytest.raises(DoesNotFit, match="can be cut behind a stage"):
        KnowledgeFlow().bind(Whole(), [network(TEACHER, "teacher")], SPEC)
