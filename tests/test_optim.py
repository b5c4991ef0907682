"""The optimiser that PyTorch has in another form, against its formula in NumPy and against PyTorch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from kdbench.optim import RMSprop

STEPS = 5


def gradients(scale: float) -> list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]]:
    rng = np.random.default_rng(0)
    return [scale * rng.normal(size=(3, 2)) for _ in range(STEPS)]


def moved(optimizer: type[torch.optim.Optimizer], scale: float, **settings: float) -> torch.Tensor:
    weight = torch.nn.Parameter(torch.ones(3, 2, dtype=torch.float64))
    steps = optimizer([weight, torch.nn.Parameter(torch.ones(1))], **settings)  # type: ignore[arg-type]  # one has none
    for grad in gradients(scale):
        weight.grad = torch.from_numpy(grad)
        steps.step()
    return weight.detach()


@pytest.mark.parametrize("scale", [1e-4, 1.0])
def test_epsilon_is_inside_the_root(scale: float) -> None:
    weight, square = np.ones((3, 2)), np.zeros((3, 2))
    for grad in gradients(scale):
        square = 0.8 * square + 0.2 * grad**2
        weight -= 0.01 * grad / np.sqrt(square + 1e-6)
    found = moved(RMSprop, scale, lr=0.01, alpha=0.8, eps=1e-6)
    np.testing.assert_allclose(found.numpy(), weight, rtol=1e-12)


def test_it_is_pytorchs_where_gradients_are_large_and_slower_where_they_are_small() -> None:
    """Of gradients of 1e-4 PyTorch's takes steps as large as of others, for its root has nothing to add."""
    settings = {"lr": 0.01, "alpha": 0.9, "eps": 1e-6}
    for scale, alike in ((1e2, True), (1e-4, False)):
        ours, theirs = (1 - moved(each, scale, **settings) for each in (RMSprop, torch.optim.RMSprop))
        assert torch.allclose(ours, theirs, rtol=1e-4) == alike
        assert (ours.abs() <= theirs.abs() * (1 + 1e-4)).all()


def test_its_state_goes_into_a_checkpoint() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    first, second = RMSprop([weight]), RMSprop([weight])
    weight.grad = torch.full((2,), 0.5)
    first.step()
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.state[weight]["square_avg"], torch.full((2,), 0.1 * 0.25))
    assert second.step(lambda: 3.0) == 3.0
