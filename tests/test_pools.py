"""Methods with several teachers, and with earlier selves: what each learns from whom."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from test_methods import (
    CLASSES,
    PLAIN,
    SPEC,
    STUDENT,
    TEACHER,
    batches,
    bind,
    changed,
    close,
    fit,
    network,
    same,
    seeded,
    sgd,
    state,
    watch,
)
from torch import Tensor, nn

from kdbench import models
from kdbench.errors import DoesNotFit
from kdbench.losses import kl
from kdbench.method import Method
from methods.learning.ensemble_to_one import EnsembleToOne
from methods.logits.endd import EnD2, annealed, dirichlet_loss
from methods.multi_teacher.average import AverageKD, average_loss
from methods.multi_teacher.cfl import CFL, joined, mmd_loss
from methods.multi_teacher.uhc import UHC, uhc_loss
from methods.teacher_free.ban import BAN

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|many workers|logging interval|no `val_dataloader)")


def random(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, float64."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def specialist(classes: int, seed: int) -> nn.Module:
    with seeded("specialist", seed):
        return models.create(TEACHER, SPEC.shape, classes)


def pooled(method: Method, *classes: tuple[int, ...] | None) -> Method:
    """A method bound to a teacher for each set of classes."""
    pool = [specialist(CLASSES if own is None else len(own), seed) for seed, own in enumerate(classes)]
    names = (STUDENT, *(f"teacher{i}" for i in range(len(pool))))
    with seeded("adapters"):
        return method.bind(network(STUDENT, 0), pool, SPEC, names=names, classes=classes)


# ---- averages -----------------------------------------------------------------------------------------------------


def test_the_target_is_the_mean_of_softened_probabilities() -> None:
    s, pool = random(6, 5), [2 * random(6, 5, seed=seed) for seed in (1, 2, 3)]
    q = torch.stack([(t / 4).softmax(1) for t in pool]).mean(0)
    expected = 16 * (q * (q.log() - (s / 4).log_softmax(1))).sum(1).mean()
    assert average_loss(s, pool, 4.0).item() == pytest.approx(expected.item(), rel=1e-12)
    mean_logits = kl(s, torch.stack(pool).mean(0), 4.0)
    assert average_loss(s, pool, 4.0).item() != pytest.approx(mean_logits.item(), rel=1e-3)


def test_of_one_teacher_the_average_is_kd_to_the_bit() -> None:
    s, t = random(6, 5).float(), random(6, 5, seed=1).float()
    assert torch.equal(average_loss(s, [t], 4.0), kl(s, t, 4.0))


def test_specialists_cannot_be_averaged() -> None:
    for method in (AverageKD(), EnD2(), EnsembleToOne()):
        with pytest.raises(DoesNotFit, match="teacher1 knows only 3 of the student's"):
            pooled(method, None, (0, 1, 2))


# ---- unions of classes --------------------------------------------------------------------------------------------


def test_a_student_is_compared_with_each_specialist_on_its_own_classes() -> None:
    s, classes = random(4, 6), [(0, 2, 4), (5, 4, 1, 3)]
    pool = [random(4, len(own), seed=seed) for seed, own in enumerate(classes, 1)]
    p = (s / 3).softmax(1)
    expected = torch.zeros((), dtype=torch.float64)
    for t, own in zip(pool, classes, strict=True):
        q = (t / 3).softmax(1)
        restricted = p[:, own] / p[:, own].sum(1, keepdim=True)
        expected = expected + 9 * (q * (q / restricted).log()).sum(1).mean()
    assert uhc_loss(s, pool, classes, 3.0).item() == pytest.approx(expected.item(), rel=1e-12)


def test_specialists_are_known_by_their_classes() -> None:
    method = pooled(UHC(temperature=2.0), (4, 0, 2), (1, 3, 5))
    (batch,) = batches(1)
    s, t = method.student_out(batch.x), method.teach(batch)
    assert t is not None
    assert [each.logits.shape[1] for each in t.each] == [3, 3]
    first, second = (each.logits for each in t.each)
    expected = kl(s.logits[:, [4, 0, 2]], first, 2.0) + kl(s.logits[:, [1, 3, 5]], second, 2.0)
    assert method.losses(s, t, batch)["kd"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_logits_of_specialists_are_joined_by_class() -> None:
    a, b = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[10.0, 20.0]])
    assert joined([a, b], [(0, 3, 1), (2, 3)], 4).tolist() == [[1.0, 3.0, 10.0, 11.0]]  # class 3 is known to both


# ---- a common space -----------------------------------------------------------------------------------------------


def test_codes_of_one_distribution_do_not_differ() -> None:
    a, b = random(20, 3), random(20, 3, seed=1)
    assert mmd_loss(a, a).item() == pytest.approx(0, abs=1e-12)
    assert mmd_loss(a, 5 * a).item() == pytest.approx(0, abs=1e-12)  # only directions count
    assert 0 < mmd_loss(a, b) < mmd_loss(a, b + 2)


@pytest.mark.parametrize("tap", ["stage-1", "embed"])
def test_the_common_space_fits_maps_and_vectors(tap: str) -> None:
    method = pooled(CFL(tap=tap, protocol=PLAIN), (0, 1, 2), (3, 4, 5))
    assert isinstance(method, CFL)
    before, pool = state(method), [state(teacher) for teacher in method._teachers]
    fit(method, batches(2), 1)
    # all of it learns, but for biases in front of a batch norm
    assert {name for name, _ in method.named_parameters()} - changed(method, before) <= {
        f"space.{layer}.0.bias" for layer in ("align_s", "align_t.0", "align_t.1", "decoders.0", "decoders.1")
    }
    assert all(same(state(teacher), old) for teacher, old in zip(method._teachers, pool, strict=True))
    assert method.deployed() is method.student


# ---- distributions of predictions ---------------------------------------------------------------------------------


def test_a_dirichlet_is_most_likely_around_what_it_saw() -> None:
    """Against the density of PyTorch's own Dirichlet, at probabilities that the smoothing hardly moves."""
    s, members = random(4, 5), [random(4, 5, seed=seed) for seed in (1, 2, 3)]
    dirichlet = torch.distributions.Dirichlet((s / 2).exp())
    expected = -torch.stack([dirichlet.log_prob((member / 2).softmax(1)) for member in members]).mean()
    assert dirichlet_loss(s, members, 2.0, smoothing=0.0).item() == pytest.approx(expected.item(), rel=1e-10)


def test_the_temperature_is_held_and_then_falls_to_one() -> None:
    """TemperatureAnnealing of lennelov/endd-reproduce with init_temp 10, cycle_length 60 and 90 epochs."""
    schedule = [annealed(10.0, epoch, 60.0) for epoch in range(90)]
    assert schedule == pytest.approx([10.0] * 30 + [10 - 0.3 * i for i in range(30)] + [1.0] * 30)
    assert annealed(10.0, 0, 0.0) == 1.0


# ---- born again ---------------------------------------------------------------------------------------------------


def test_each_generation_starts_afresh_and_learns_from_the_one_before() -> None:
    weights = {"first": 1.0, "ce": 0.5, "kd": 2.0}
    method = bind(BAN(generations=3, temperature=2.0, weights=weights, protocol=PLAIN.model_copy(update={"epochs": 3})))
    assert isinstance(method, BAN)
    (batch,) = batches(1)
    starts = [network(STUDENT, 0), *(network(STUDENT, 0, k) for k in (1, 2))]
    turns = watch(method)
    fit(method, [batch], 3)
    parent = starts[0]
    sgd(parent, F.cross_entropy(parent(batch.x), batch.y), lr=0.1)
    for student in starts[1:]:
        frozen = copy.deepcopy(parent).eval()
        s, t = student(batch.x), frozen(batch.x).detach() / 2
        kd = 4 * (t.softmax(1) * (t.log_softmax(1) - (s / 2).log_softmax(1))).sum(1).mean()
        sgd(student, 0.5 * F.cross_entropy(s, batch.y) + 2 * kd, lr=0.1)
        parent = student
    assert [turn.stage for turn in turns] == ["generation1", "generation2", "generation3"]
    assert close(method.student, starts[2])
    assert close(method.parent.net, starts[1])
    assert method.deployed() is method.student
    assert method.forwards == {"student": 3 * len(batch), "teacher": 2 * len(batch)}
