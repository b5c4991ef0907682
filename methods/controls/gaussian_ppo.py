"""Proximal policy optimisation (Schulman et al., 2017, arXiv:1707.06347): the control for Gaussian policies.

Its advantages are those of Schulman et al., ICLR 2016, arXiv:1506.02438.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import in_float32
from kdbench.settings import Count, Positive, Share
from kdbench.tasks.policy import gaussian
from methods.controls.actor_critic import ActorCritic


def advantages(
    reward: Tensor, value: Tensor, following: Tensor, terminated: Tensor, ended: Tensor, discount: float, trace: float
) -> Tensor:
    """How much better each step was than expected: A_t = δ_t + γ λ A_{t+1} with δ_t = r_t + γ V(s_{t+1}) - V(s_t).

    All are (T, E). Nothing follows on the last step of the rollout or of an episode but the value of the state that
    came after it; 0 where that was terminal.

    Args:
        value, following: V of the states before and after each step.
        terminated, ended: bool; whether that state has no future, and whether the episode ended there.
        discount, trace: γ and λ.
    """
    delta = reward + discount * following * ~terminated - value
    found, ahead = [], torch.zeros_like(delta[0])
    for d, last in zip(delta.flip(0), ended.flip(0), strict=True):
        ahead = d + discount * trace * ahead * ~last
        found.append(ahead)
    return torch.stack(found).flip(0)


def log_likelihood(mean: Tensor, std: Tensor, action: Tensor) -> Tensor:
    """log π(a) = -Σ_i [ (a_i - μ_i)² / (2 σ_i²) + log σ_i + log(2π) / 2 ], (B, A) each to (B,)."""
    return -(((action - mean) / std).square() / 2 + std.log() + math.log(2 * math.pi) / 2).sum(1)


@in_float32
def gaussian_ppo_losses(
    mean: Tensor,
    std: Tensor,
    value: Tensor,
    action: Tensor,
    before: Tensor,
    advantage: Tensor,
    target: Tensor,
    clip: float,
) -> dict[str, Tensor]:
    """Means over B steps: -min(ρ A, clip(ρ, 1 ± ε) A) with ρ = π(a) / π_old(a), (R - V)² and -H(π).

    The advantages A are brought to mean 0 and standard deviation 1 over the B steps, as in OpenAI's baselines.

    Args:
        mean, std, action: μ, σ and a, (B, A).
        value, target: V and R, (B,).
        before: log π_old(a), (B,).
        advantage: A, (B,).
        clip: ε.
    """
    ratio = (log_likelihood(mean, std, action) - before).exp()
    scaled = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
    return {
        "policy": -torch.minimum(ratio * scaled, ratio.clamp(1 - clip, 1 + clip) * scaled).mean(),
        "value": (target - value).square().mean(),
        "entropy": -(std.log() + math.log(2 * math.pi * math.e) / 2).sum(1).mean(),
    }


def minibatches(n: int, passes: int, size: int | None, generator: torch.Generator) -> Iterator[Tensor]:
    """Positions of `n` samples, `size` at a time and in another random order in each of `passes`; all of them at once,
    and in order, without a size."""
    for _ in range(passes):
        order = torch.randperm(n, generator=generator) if size else torch.arange(n)
        yield from order.split(size or n)


class GaussianPPO(ActorCritic):
    """L = -min(ρ A, clip(ρ, 1 ± ε) A) + c · (R - V)² - β · H(π), ρ = π(a) / π_old(a): rewards alone, no teacher.

    A batch of B steps is played by the student in `envs` environments side by side and learned from in several passes.
    A are its `advantages`, R = A + V. V is a network of its own, as in `ActorCritic`. Rewards are multiplied by
    `reward_scale` where V learns what they add up to, so that one rate serves both networks.

    Args:
        envs: environments.
        discount: γ.
        trace: λ of the advantages.
        clip: ε.
        passes: over each batch.
        minibatch: steps at a time.
        reward_scale: what a reward counts.
    """

    title = "PPO, Gaussian"
    tasks = frozenset({"gaussian-policy"})

    def __init__(
        self,
        envs: Count = 8,
        discount: Share = 0.9,
        trace: Share = 0.95,
        clip: Positive = 0.2,
        passes: Count = 10,
        minibatch: Count = 64,
        reward_scale: Positive = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(envs=envs, discount=discount, **kwargs)
        self.trace, self.clip, self.reward_scale = trace, clip, reward_scale
        self.passes, self.minibatch = passes, minibatch

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        play = self.play.at(self.epoch, self.device)
        said: list[Tensor] = []

        def act(seen: Tensor) -> Tensor:
            said.append(self.student_out(seen).logits)
            return play.drawn(*gaussian(said[-1]))

        steps = play.rollout(len(batch), act)
        x, action = steps.x.flatten(0, 1), steps.action.flatten(0, 1)
        before = log_likelihood(*gaussian(torch.cat(said)), action)
        with torch.no_grad():
            value, following = (
                self.critic(seen.flatten(0, 1)).view_as(steps.reward) for seen in (steps.x, steps.following)
            )
        reward = self.reward_scale * steps.reward
        advantage = advantages(
            reward, value, following, steps.terminated, steps.ended, self.discount, self.trace
        ).flatten()
        target = advantage + value.flatten()
        for of in minibatches(len(x), self.passes, self.minibatch, self.rng):
            at = of.to(self.device)
            mean, std = gaussian(self.student_out(x[at]).logits)
            yield (
                "student",
                gaussian_ppo_losses(
                    mean, std, self.critic(x[at]), action[at], before[at], advantage[at], target[at], self.clip
                ),
            )
