"""Advantage actor-critic (Mnih et al., ICML 2016, arXiv:1602.01783): its form for actions that are vectors.

As in section 9 of its supplement, in the synchronous form of `actor_critic`. It was the control of tables about
Gaussian policies until `gaussian_ppo`, which learns what this one does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import in_float32
from kdbench.settings import Count, Positive, Share
from kdbench.tasks.policy import gaussian
from methods.controls.actor_critic import ActorCritic, returns
from methods.controls.gaussian_ppo import log_likelihood


@in_float32
def gaussian_actor_critic_losses(
    mean: Tensor, std: Tensor, value: Tensor, action: Tensor, target: Tensor
) -> dict[str, Tensor]:
    """Means over B steps: -A · log π(a), (R - V)² and -H(π), with the advantage A = R - V as a constant.

    log π(a) is the `log_likelihood`,  H(π) = Σ_i [ log σ_i + log(2πe) / 2 ]

    Args:
        mean, std, action: μ, σ and a, (B, A).
        value, target: V and R, (B,).
    """
    advantage = target - value
    return {
        "policy": -(advantage.detach() * log_likelihood(mean, std, action)).mean(),
        "value": advantage.square().mean(),
        "entropy": -(std.log() + math.log(2 * math.pi * math.e) / 2).sum(1).mean(),
    }


class GaussianActorCritic(ActorCritic):
    """L = -A log π(a) + c · (R - V)² - β · H(π), as `ActorCritic`; π = N(μ, σ²) in each number of an action.

    Rewards are multiplied by `reward_scale` where V learns what they add up to, so that one rate serves both networks.

    Args:
        envs: environments.
        discount: γ.
        reward_scale: what a reward counts.
    """

    paper = "mnih2016asynchronous"
    title = "A2C, Gaussian"
    extension = True
    control = None  # type: ignore[assignment]  # unlike its base's
    tasks = frozenset({"gaussian-policy"})
    earlier: ClassVar = frozenset({"e7e62bbf72032efd0b355ea40a43cc135278da0ab9a29fae625c5590f2e8313a"})

    def __init__(self, envs: Count = 8, discount: Share = 0.9, reward_scale: Positive = 0.1, **kwargs: Any) -> None:
        super().__init__(envs=envs, discount=discount, **kwargs)
        self.reward_scale = reward_scale

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        play = self.play.at(self.epoch, self.device)
        steps = play.rollout(len(batch), lambda seen: play.drawn(*gaussian(self.student_out(seen).logits)))
        x = steps.x.flatten(0, 1)
        with torch.no_grad():
            following = self.critic(steps.following.flatten(0, 1)).view_as(steps.reward)
        reward = self.reward_scale * steps.reward
        target = returns(reward, following, steps.terminated, steps.ended, self.discount).flatten()
        mean, std = gaussian(self.student_out(x).logits)
        yield "student", gaussian_actor_critic_losses(mean, std, self.critic(x), steps.action.flatten(0, 1), target)
