"""Methods with a discriminator, or with adversarial images."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from test_methods import PLAIN, SPEC, batches, bind, close, fit, sgd

from kdbench.errors import DoesNotFit
from kdbench.tasks.robust import ascend
from methods.learning.adversarial_training import AdversarialTraining
from methods.learning.anc import ANC
from methods.learning.ard import ARD

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|many workers|logging interval|no `val_dataloader)")


def test_the_discriminator_learns_what_the_student_showed_before_its_step() -> None:
    weights = {"logits": 0.5, "adversarial": 2.0, "discriminator": 1.0, "regularizer": 0.3}
    method = bind(ANC(discriminator_lr=0.01, weights=weights, protocol=PLAIN))
    assert isinstance(method, ANC)
    student, adapter, critic = (copy.deepcopy(x) for x in (method.student, method.adapter, method.discriminator))
    (batch,) = batches(1)
    fit(method, [batch], 1)

    taps, taught = student.tap(batch.x), method.teacher.tap(batch.x)  # type: ignore[operator]
    features, real = adapter(taps["embed"]), taught["embed"].detach()
    assert features.shape == real.shape
    logits = (taps["logits"] - taught["logits"].detach()).square().sum(1).mean()
    loss = 0.5 * logits - 2 * F.logsigmoid(critic(features)).mean()
    fake = critic(features.detach())
    sides = -F.logsigmoid(critic(real)).mean() - F.logsigmoid(-fake).mean() - 0.3 * F.logsigmoid(fake).mean()
    adam = torch.optim.Adam(critic.parameters(), lr=0.01)
    sides.backward()
    sgd(torch.nn.ModuleList([student, adapter]), loss, lr=0.1)
    adam.step()
    assert close(method.student, student)
    assert close(method.adapter, adapter)
    # where a gradient is nearly zero, Adam's first step is the sign of a rounding error
    agree = [(a - b).abs() < 1e-5 for a, b in zip(method.discriminator.parameters(), critic.parameters(), strict=True)]
    assert torch.cat([x.flatten() for x in agree]).double().mean() > 0.98


def test_ascent_finds_the_worst_corner_of_a_linear_classifier() -> None:
    """Its gradient has the same sign everywhere: each pixel goes as far as box and range let it."""
    w = torch.tensor([[1.0, -2.0, 0.5, 3.0], [-1.0, 1.0, 1.0, -3.0]])
    x, y, step = torch.tensor([[0.5, 0.5, 0.02, 0.97]]), torch.tensor([0]), torch.tensor(0.03)
    low, high = (x - 0.1).clamp(min=0), (x + 0.1).clamp(max=1)
    found = ascend(lambda z: z @ w.T, x, y, step=step, steps=10, low=low, high=high)
    assert torch.allclose(found, torch.tensor([[0.4, 0.6, 0.12, 0.87]]))
    found = ascend(lambda z: z @ w.T, x, 1 - y, step=step, steps=10, low=low, high=high)
    assert torch.allclose(found, torch.tensor([[0.6, 0.4, 0.0, 1.0]]))
    assert not found.requires_grad


def test_the_student_is_taught_at_its_worst_point_within_the_radius() -> None:
    method = bind(ARD(eps=16.0, step=4.0, steps=5, protocol=PLAIN))
    assert isinstance(method, ARD)
    (batch,) = batches(1)
    batch.x = (torch.rand(batch.x.shape) - 0.5) / 0.2  # pixels of 0..1, normalised by mean 0.5 and std 0.2
    attacked = method.attacked(batch)
    pixels, moved = attacked * 0.2 + 0.5, (attacked - batch.x).abs() * 0.2 * 255
    assert pixels.min() > -1e-6
    assert pixels.max() < 1 + 1e-6
    assert 15.9 < moved.max() < 16.001
    with torch.no_grad():
        worse, clean = (F.cross_entropy(method.student(x), batch.y) for x in (attacked, batch.x))
    assert worse > clean
    assert method.forwards == {"student": 5 * len(batch), "teacher": 0}
    assert all(parameter.grad is None for parameter in method.student.parameters())

    targets: list[torch.Tensor] = []
    original = method.teacher_out
    method.teacher_out = lambda x, *args, **kwargs: targets.append(x) or original(x)  # type: ignore
    (_, terms), *rest = method.turns(batch)
    assert not rest
    assert [torch.equal(x, batch.x) for x in targets] == [True]  # of the clean image
    assert set(terms) == {"ce", "kd"}
    assert method.forwards == {"student": (5 + 5 + 2) * len(batch), "teacher": len(batch)}


def test_adversarial_training_is_cross_entropy_under_attack_and_asks_no_teacher() -> None:
    method = bind(AdversarialTraining(eps=16.0, step=4.0, steps=3, protocol=PLAIN))
    assert isinstance(method, AdversarialTraining)
    (batch,) = batches(1)
    shifted = batch.x + 0.5
    method.attacked = lambda _: shifted  # type: ignore[method-assign]
    ((player, terms),) = method.turns(batch)
    expected = F.cross_entropy(method.student(shifted), batch.y)
    assert player == "student"
    assert set(terms) == {"ce"}
    assert terms["ce"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert method.forwards == {"student": len(batch), "teacher": 0}


def test_an_attack_needs_to_know_what_pixels_are() -> None:
    unknown = replace(SPEC, mean=(), std=())
    with pytest.raises(DoesNotFit, match="does not say how they were normalised"):
        bind(ARD(), spec=unknown)
