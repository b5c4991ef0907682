"""Methods with a discriminator, or with adversarial images."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from test_methods import PLAIN, batches, bind, close, fit, sgd

from methods.learning.anc import ANC
from methods.learning.ard import pgd

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


def test_pgd_finds_the_worst_corner_of_a_linear_classifier() -> None:
    """Its gradient has the same sign everywhere: each pixel goes as far as box and range let it."""
    w = torch.tensor([[1.0, -2.0, 0.5, 3.0], [-1.0, 1.0, 1.0, -3.0]])
    x, y = torch.tensor([[0.5, 0.5, 0.02, 0.97]]), torch.tensor([0])
    eps, step, low, high = torch.tensor([0.1, 0.03, 0.0, 1.0])
    found = pgd(lambda z: z @ w.T, x, y, torch.zeros_like(x), eps=eps, step=step, steps=10, low=low, high=high)
    assert torch.allclose(found, torch.tensor([[0.4, 0.6, 0.12, 0.87]]))
    found = pgd(lambda z: z @ w.T, x, 1 - y, torch.zeros_like(x), eps=eps, step=step, steps=10, low=low, high=high)
    assert torch.allclose(found, torch.tensor([[0.6, 0.4, 0.0, 1.0]]))
    assert not found.requires_grad
