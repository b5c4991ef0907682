"""Features of layers: who learns in which stage, and the forms of the papers that no golden case has."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from test_methods import (
    BATCH,
    CLASSES,
    PLAIN,
    SPEC,
    STUDENT,
    Snapshots,
    batches,
    bind,
    close,
    fit,
    make,
    moved,
    network,
    run_of,
    seeded,
    sgd,
    watch,
)
from torch import Tensor

from kdbench import models
from kdbench.errors import DoesNotFit
from kdbench.method import Method
from kdbench.registry import methods
from kdbench.taps import probe
from methods.intermediate.fsp import FSP, flow, fsp_loss
from methods.intermediate.ft import attention_factor_loss
from methods.intermediate.kdsvd import decomposed, kdsvd_loss
from methods.intermediate.meal import MEAL
from methods.intermediate.nst import nst_loss
from methods.intermediate.ofd import OFD, margin, norms_before, partial_l2
from methods.intermediate.stagewise import Stagewise, blocks_of

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|many workers|logging interval|no `val_dataloader)")

OURS = (
    "fsp",
    "fsp_joint",
    "nst",
    "ft",
    "ft_repdistiller",
    "ab",
    "kdsvd",
    "kdsvd_mdistiller",
    "ofd",
    "meal",
    "stagewise",
)


def random(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def learned(name: str, epochs: int) -> list[set[str]]:
    """Names of the parameters that moved in each epoch."""
    method, spy = make(name), Snapshots()
    states = [{key: value.detach().clone() for key, value in method.named_parameters()}]
    fit(method, batches(2), epochs, callbacks=[spy])
    states += spy.states
    return [moved(a, b) for a, b in pairwise(states)]


def parameters(name: str, *prefixes: str) -> set[str]:
    return {key for key, _ in make(name).named_parameters() if key.startswith(prefixes)}


# ---- the papers' forms --------------------------------------------------------------------------------------------


def test_fsp_of_the_paper_pools_the_maximum_and_sums() -> None:
    first = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])  # (1, 1, 2, 2)
    second = torch.tensor([[[[5.0]], [[-1.0]]]])  # (1, 2, 1, 1)
    assert flow(first, second, "paper").tolist() == [[[20.0, -4.0]]]
    assert flow(first, second).tolist() == [[[12.5, -2.5]]]
    a, b = torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]), torch.zeros(2, 1, 2)
    assert fsp_loss(a, b, "paper").item() == (1 + 4 + 9 + 16) / 2
    assert fsp_loss(a, b).item() == (1 + 4 + 9 + 16) / 4


@pytest.mark.parametrize("kernel", ["linear", "gaussian", "polynomial"])
def test_nst_compares_channels_by_its_kernel(kernel: str) -> None:
    s, t = random(2, 3, 4, 4).relu(), random(2, 5, 4, 4, seed=1).relu()
    total = 0.0
    for image in range(2):
        u, v = ([c.flatten() / c.norm() for c in x[image]] for x in (s, t))
        across = [float((a - b).square().sum()) for a in u for b in v]
        width = 2 * sum(across) / len(across)

        def k(a: Tensor, b: Tensor, width: float = width) -> float:
            product = float(a @ b)
            return {
                "linear": product,
                "polynomial": product**2,
                "gaussian": math.exp(-float((a - b).norm() ** 2) / width),
            }[kernel]

        def mean(x: list[Tensor], y: list[Tensor]) -> float:
            return sum(k(a, b) for a in x for b in y) / (len(x) * len(y))

        total += mean(v, v) + mean(u, u) - 2 * mean(u, v)
    assert nst_loss(s, t, kernel).item() == pytest.approx(total / 2, rel=1e-9)  # type: ignore[arg-type]
    silent = torch.zeros(2, 3, 4, 4, requires_grad=True)
    nst_loss(silent, silent.detach(), kernel).backward()  # type: ignore[arg-type]
    assert silent.grad is not None
    assert silent.grad.isfinite().all()


def test_factors_may_be_compared_by_another_power() -> None:
    s, t = random(2, 3, 2, 2), random(2, 3, 2, 2, seed=1)
    a, b = (F.normalize(x.pow(2).mean(1).flatten(1)) for x in (s, t))
    assert attention_factor_loss(s, t, p2=2).item() == pytest.approx(float((a - b).square().mean()))


def test_singular_vectors_have_the_gradient_of_a_decomposition_and_a_sign() -> None:
    for shape in ((3, 12, 5), (3, 4, 9)):
        x, w = random(*shape).requires_grad_(), random(3, shape[2], 2, seed=1)
        vectors, values = decomposed(x, 2)
        _, s, vh = torch.linalg.svd(x, full_matrices=False)
        expected = vh.mT[..., :2]
        expected = expected * expected.detach().sum(1, keepdim=True).sign()
        assert torch.allclose(vectors, expected)
        assert torch.allclose(values, s[:, :2])
        ours, theirs = (torch.autograd.grad((v * w).sum(), x)[0] for v in (vectors, expected))
        assert torch.allclose(ours, theirs, rtol=1e-6, atol=1e-9)
        assert torch.equal(decomposed(-x, 2)[0], vectors)


@pytest.mark.parametrize("x", [torch.eye(4)[None], torch.zeros(1, 6, 4), torch.ones(1, 1, 4), torch.ones(1, 4, 1)])
def test_singular_vectors_have_a_gradient_where_values_meet(x: Tensor) -> None:
    x = x.clone().requires_grad_()
    vectors, _ = decomposed(x, 4)
    (vectors * torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() < 1e4


def test_the_students_singular_vectors_are_turned_to_the_teachers() -> None:
    students, teachers = [random(2, n, 3, seed=n) for n in (4, 5)], [random(2, n, 1, seed=10 + n) for n in (4, 5)]
    values = [torch.ones(2, 1, dtype=torch.float64)] * 2
    loss = kdsvd_loss(students, teachers, values)
    assert torch.equal(kdsvd_loss([-students[0], students[1].flip(2)], teachers, values), loss)
    assert not torch.isclose(kdsvd_loss(students, [-teachers[0], teachers[1]], values), loss)
    assert kdsvd_loss([torch.cat([-t, s], 2) for s, t in zip(students, teachers, strict=True)], teachers, values) >= 0


def test_the_margin_is_the_mean_of_what_is_negative() -> None:
    weight, bias = torch.tensor([1.0, -2.0, 0.1, 0.0]), torch.tensor([0.3, 1.0, 5.0, 0.0])
    x = random(200_000)
    for c in range(2):
        sample = bias[c] + weight[c].abs() * x
        assert margin(weight, bias)[c].item() == pytest.approx(float(sample[sample < 0].mean()), rel=0.02)
    assert margin(weight, bias)[2:].tolist() == pytest.approx([-0.3, 0.0])


def test_partial_distances_spare_what_is_silent_on_both_sides() -> None:
    s = torch.tensor([-3.0, -0.5, 2.0, 0.5, -1.0]).view(1, 5, 1, 1)
    t = torch.tensor([-2.0, -2.0, -2.0, 1.5, 1.0]).view(1, 5, 1, 1)
    # the margin ReLU makes -1 of -2: below it the first costs nothing, the next two are above it
    expected = 0 + 0.5**2 + 3**2 + 1**2 + 2**2
    assert partial_l2(s, t, torch.full((5,), -1.0)).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("resnet8", ["stages.0.0.branch.4", "stages.1.0.branch.4", "stages.2.0.branch.4"]),
        ("wrn-16-1", ["stages.1.0.norm", "stages.2.0.norm", "norm"]),
        ("vgg8", ["stages.0.0.2", "stages.1.0.2", "stages.2.0.2", "stages.3.0.2"]),
    ],
)
def test_margins_come_from_the_batch_norm_before_the_relu(name: str, before: list[str]) -> None:
    net = models.create(name, (3, 16, 16), CLASSES).eval()
    spec = probe(name, net, (3, 16, 16))
    found = norms_before(spec, spec.all("pre"), (3, 16, 16))
    assert found == [net.get_submodule(path) for path in before]
    assert not any(module._forward_hooks for module in net.modules())


def test_ofd_needs_a_batch_norm_before_the_relu() -> None:
    with pytest.raises(DoesNotFit, match="has none for 'pre1': choose another teacher"):
        OFD().bind(network(STUDENT, 0), models.create("shufflenetv2", SPEC.shape, CLASSES), SPEC)


# ---- who learns when ----------------------------------------------------------------------------------------------


def test_fsp_first_learns_the_flow_and_then_the_task_without_the_teacher() -> None:
    first, second = learned("fsp", 2)
    body = parameters("fsp", "student.stem.", "student.stages.")
    assert first == body | parameters("fsp", "connectors.")
    assert second == body | parameters("fsp", "student.head.")
    assert run_of("fsp").method.forwards["teacher"] == 2 * BATCH  # of the first of two epochs
    assert isinstance(make("fsp_joint"), FSP)
    assert [entry.stage.name for entry in make("fsp_joint")._plan] == ["joint"]


def test_factors_are_paraphrased_before_they_are_transferred() -> None:
    first, second = learned("ft", 2)
    assert first == parameters("ft", "paraphraser.")
    assert second == parameters("ft", "student.", "translator.")
    assert run_of("ft").method.forwards == {"student": 2 * BATCH, "teacher": 4 * BATCH}


def test_boundaries_come_before_distillation() -> None:
    first, second = learned("ab", 2)
    assert first == parameters("ab", "student.stem.", "student.stages.", "connectors.")
    assert second == parameters("ab", "student.")


def test_stagewise_trains_one_block_after_the_other() -> None:
    method, spy = bind(Stagewise(protocol=PLAIN, blocks=1)), Snapshots()
    assert isinstance(method, Stagewise)
    start = {name: value.detach().clone() for name, value in method.named_parameters()}
    fit(method, batches(2), 2, callbacks=[spy])
    first, second = moved(start, spy.states[0]), moved(spy.states[0], spy.states[1])
    assert first == {name for name in start if not name.startswith("student.head.")}
    assert second == {"student.head.weight", "student.head.bias"}
    assert all(parameter.requires_grad for parameter in method.student.parameters())


def test_blocks_are_told_by_their_gradients() -> None:
    for name, beyond in ((STUDENT, ""), ("wrn-16-1", "norm")):
        net = models.create(name, (3, 8, 8), CLASSES)
        before = {key: value.clone() for key, value in net.state_dict().items()}
        stem, first, second, third, classifier = blocks_of(net, ("stem", "stage1", "stage2", "stage3"), (3, 8, 8))
        assert stem == [key for key, _ in net.named_parameters() if key.startswith("stem")]
        assert classifier == ["head.weight", "head.bias"]
        assert "stages.1.0.branch.0.weight" in second
        assert not {*first, *second} & set(third)
        assert sum(map(len, (stem, first, second, third, classifier))) == len(list(net.parameters()))
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
        assert bool(beyond) == ("stages.1.0.norm.weight" in first)  # behind which the tap of a WRN is


def test_all_blocks_share_the_epochs() -> None:
    protocol = PLAIN.model_copy(update={"epochs": 10})
    method = bind(Stagewise(protocol=protocol))
    assert [entry.stage.name for entry in method._plan] == ["block1", "block2", "block3", "block4", "classifier"]
    assert [entry.length for entry in method._plan] == [2] * 5


def test_meal_imitates_one_teacher_a_step_and_deceives_the_discriminators() -> None:
    method = bind(MEAL(discriminator_lr=0.1, protocol=PLAIN, variant="authors"))
    assert isinstance(method, MEAL)
    student, (judge,) = copy.deepcopy(method.student), copy.deepcopy(method.discriminators)
    rng = torch.Generator()
    rng.set_state(method.rng.get_state())
    chosen = method._teachers[int(torch.randint(2, (1,), generator=rng))]
    (batch,) = batches(1)
    fit(method, [batch], 1)
    s, t = student(batch.x), chosen(batch.x).detach()
    target = torch.tensor([[1.0, 0.0]] * BATCH + [[0.0, 1.0]] * BATCH)
    apart = F.binary_cross_entropy_with_logits(judge(torch.cat([s, t])), target)
    similar = -(t.softmax(1) * s.log_softmax(1)).sum(1).mean()
    sgd(student, similar + apart, lr=0.1)
    assert close(method.student, student)


def test_meal_of_the_paper_turns_the_discriminators_gradient() -> None:
    method = bind(MEAL(protocol=PLAIN))
    turns = watch(method)
    fit(method, batches(1), 1)
    first, second = turns
    assert first.terms["adversarial"] == pytest.approx(-second.terms["discriminator"], rel=1e-5)
    assert isinstance(method, MEAL)
    assert len(method.discriminators) == 4  # three stages and the logits


# ---- pairs of all kinds -------------------------------------------------------------------------------------------

LARGE = replace(SPEC, shape=(1, 32, 32))


def across(name: str, pair: tuple[str, str]) -> Method:
    """A method bound to a student and two teachers alike."""
    (entry,) = (entry for entry in methods() if entry.name == name)
    method = entry.cls(**entry.settings, protocol=PLAIN.model_copy(update={"epochs": 6}))
    with seeded("pair", name):
        student, teacher = (models.create(net, LARGE.shape, CLASSES) for net in pair)
        return method.bind(student, [teacher, copy.deepcopy(teacher)], LARGE)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("pair", [("vgg8x0.25", "resnet8"), ("resnet8", "vgg8x0.25"), ("resnet8x0.5", "wrn-16-1")])
def test_networks_may_differ_in_sizes_and_stages(name: str, pair: tuple[str, str]) -> None:
    if (name, *pair) == ("ab", "vgg8x0.25", "resnet8"):
        with pytest.raises(DoesNotFit, match="AB cannot connect a 8x8 map with one of 32x32"):
            across(name, pair)
        return
    method = across(name, pair)
    (batch,) = batches(1)
    batch.x = F.interpolate(batch.x, 32)
    for position in range(len(method._plan)):
        method._position = position
        for _, terms in method.turns(batch):
            assert all(value.isfinite() for value in terms.values())
