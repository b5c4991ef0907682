"""Playing the environments of gymnasium, which is an extra."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from kdbench.draws import random_bits, uniform
from kdbench.errors import UserError, nearest
from kdbench.targets import first_line

if TYPE_CHECKING:
    import gymnasium

START, ACTION = range(2)
"""The independent streams of random numbers of an epoch of play."""

Act = Callable[[Tensor], Tensor]
"""From observations (E, D) to actions: int64, (E,), or vectors, float32, (E, A)."""


def environment(name: str) -> gymnasium.Env[Any, Any]:
    """One environment by its registered name, with a vector to observe, whose actions are one of n, or vectors, which
    it clips to its bounds.

    Raises:
        UserError: gymnasium is not installed, or has no such environment.
    """
    try:
        import gymnasium
    except ImportError:
        raise UserError(
            "environments need gymnasium, which is not installed: install it with pip install 'kdbench[rl]'."
        ) from None
    if ":" not in name and name not in gymnasium.registry:  # gymnasium would guess at a version that is not said
        raise UserError(f"gymnasium has no environment '{name}': {nearest(name, sorted(gymnasium.registry))}")
    try:
        env = gymnasium.make(name, disable_env_checker=True)
    except (gymnasium.error.Error, ImportError) as error:
        raise UserError(
            f"the environment {name} cannot be made ({first_line(error)}): install what it needs."
        ) from None
    seen, actions = env.observation_space, env.action_space
    if not (isinstance(seen, gymnasium.spaces.Box) and len(seen.shape) == 1):
        raise UserError(f"the environment {name} shows {seen}, not a vector: choose one such as CartPole-v1.")
    if not (isinstance(actions, gymnasium.spaces.Discrete) and actions.start == 0):
        if not (isinstance(actions, gymnasium.spaces.Box) and len(actions.shape) == 1):
            raise UserError(
                f"the environment {name} takes {actions}, neither one of n nor a vector: choose one such as "
                "CartPole-v1 or Pendulum-v1."
            )
        env = gymnasium.wrappers.ClipAction(env)
    return env


def outputs_of(env: gymnasium.Env[Any, Any]) -> tuple[str, ...]:
    """What a policy's outputs are called: the actions, or of each number of an action its mean and the logarithm of its
    standard deviation, first all means."""
    actions: Any = env.action_space
    if not actions.shape:
        return tuple(str(action) for action in range(actions.n))
    return tuple(f"{what} {i}" for what in ("mean", "log std") for i in range(actions.shape[0]))


def returns(name: str, seeds: Tensor, act: Act) -> Tensor:
    """The sum of rewards of whole episodes played side by side, each from its seed: int64 (N,) to float32 (N,)."""
    envs = [environment(name) for _ in seeds]
    seen = {i: env.reset(seed=seed)[0] for i, (env, seed) in enumerate(zip(envs, seeds.tolist(), strict=True))}
    total = [0.0] * len(envs)
    while seen:
        actions = act(_tensor(list(seen.values()), seeds.device))
        for i, action in zip(list(seen), actions.tolist(), strict=True):
            seen[i], reward, terminated, truncated, _ = envs[i].step(action)
            total[i] += float(reward)
            if terminated or truncated:
                del seen[i]
    return torch.tensor(total, device=seeds.device)


class Rollout(NamedTuple):
    """T steps in each of E environments.

    Attributes:
        x: what was observed before each step, float32, (T, E, D).
        action: int64, (T, E), or float32, (T, E, A).
        reward: float32, (T, E).
        following: what was observed after each step, float32, (T, E, D): where an episode ended its last observation,
            not the first of the next one, so that its value can be asked for.
        terminated: whether the step led into a state without a future, bool, (T, E).
        ended: whether it was the episode's last, be it terminated or out of time, bool, (T, E).
    """

    x: Tensor
    action: Tensor
    reward: Tensor
    following: Tensor
    terminated: Tensor
    ended: Tensor


class Play:
    """Environments played side by side, as a pure function of (seed, epoch) and of what is done in them.

    ``play.at(epoch).rollout(n, act)`` goes on where the rollout before it ended, but begins anew with each epoch: no
    simulator can be put into a checkpoint, and so a training that goes on after an interruption sees what it would have
    seen. Episodes that end are followed by new ones at once. A copy (of a method, say) begins its epoch anew, too.

    Args:
        name: of the environment.
        envs: how many.
        seed: of their states, and of what `sampled` draws: the cell's, so that all methods meet the same.
    """

    def __init__(self, name: str, envs: int, seed: int) -> None:
        self.name, self.envs, self.seed = name, envs, seed
        self.device = torch.device("cpu")
        self._epoch: int | None = None
        self._played: list[gymnasium.Env[Any, Any]] = []
        self._seen: list[Any] = []
        self._step = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self.envs, self.seed)

    def at(self, epoch: int, device: torch.device | str = "cpu") -> Play:
        """Itself, in an epoch: at its beginning unless it is there already. Tensors come and go on `device`."""
        self.device = torch.device(device)
        if epoch != self._epoch:
            self._played = self._played or [environment(self.name) for _ in range(self.envs)]
            seeds = random_bits(self.seed, epoch, START, torch.arange(self.envs)) % 2**31
            self._seen = [env.reset(seed=seed)[0] for env, seed in zip(self._played, seeds.tolist(), strict=True)]
            self._epoch, self._step = epoch, 0
        return self

    def rollout(self, n: int, act: Act) -> Rollout:
        """`n` steps in all, rounded up to as many in each environment, as `act` decides without gradient."""
        assert self._epoch is not None, "say at(epoch) first"
        kept: list[tuple[Tensor, ...]] = []
        for _ in range(-(-n // self.envs)):
            before = _tensor(self._seen, self.device)
            with torch.no_grad():
                actions = act(before)
            steps = [env.step(action) for env, action in zip(self._played, actions.tolist(), strict=True)]
            self._seen, rewards, terminated, truncated, _ = map(list, zip(*steps, strict=True))
            ended = np.logical_or(terminated, truncated)
            after = (_tensor(values, self.device) for values in (rewards, self._seen))
            flags = (torch.tensor(values, device=self.device) for values in (np.array(terminated), ended))
            kept.append((before, actions, *after, *flags))
            for i in np.flatnonzero(ended):
                self._seen[i] = self._played[i].reset()[0]
            self._step += 1
        return Rollout(*map(torch.stack, zip(*kept, strict=True)))

    def sampled(self, logits: Tensor) -> Tensor:
        """Actions drawn from softmax(logits): (E, K) to int64 (E,), one draw for each environment and step."""
        assert self._epoch is not None, "say at(epoch) first"
        place = self._step * self.envs + torch.arange(len(logits), device=logits.device)
        draw = uniform(random_bits(self.seed, self._epoch, ACTION, place))
        below = logits.float().softmax(1).cumsum(1) <= draw[:, None]
        return below.sum(1).clamp(max=logits.shape[1] - 1)

    def drawn(self, mean: Tensor, std: Tensor) -> Tensor:
        """Actions drawn from N(mean, std²), all (E, A): one draw for each environment, step and number."""
        assert self._epoch is not None, "say at(epoch) first"
        place = self._step * self.envs + torch.arange(len(mean), device=mean.device)
        place = place[:, None] * mean.shape[1] + torch.arange(mean.shape[1], device=mean.device)
        draw = uniform(random_bits(self.seed, self._epoch, ACTION, place)) + 2**-25  # in the middle of its interval
        return mean + std * torch.special.ndtri(draw)


def _tensor(observations: list[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(np.stack(observations).astype(np.float32)).to(device)
