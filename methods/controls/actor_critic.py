"""Advantage actor-critic: the control of tables about policies, and how their teachers are trained.

Mnih et al., ICML 2016, arXiv:1602.01783, in the synchronous form of OpenAI's baselines (A2C).
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import in_float32
from kdbench.settings import Count, Share
from kdbench.taps import Spec
from methods.controls.playing import Playing


def returns(reward: Tensor, following: Tensor, terminated: Tensor, ended: Tensor, discount: float) -> Tensor:
    """What each step was worth: R_t = r_t + γ · R_{t+1}, all (T, E).

    Behind the last step, and where an episode ended, stands the value of the state that followed instead of R_{t+1}; 0
    where that was terminal.

    Args:
        following: values of the states after each step.
        terminated, ended: bool; whether that state has no future, and whether the episode ended there.
    """
    found = []
    ahead = following[-1]
    for r, v, final, last in zip(*(x.flip(0) for x in (reward, following, terminated, ended)), strict=True):
        ahead = r + discount * torch.where(last, v, ahead) * ~final
        found.append(ahead)
    return torch.stack(found).flip(0)


@in_float32
def actor_critic_losses(logits: Tensor, value: Tensor, action: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Means over B steps: -A · log π(a), (R - V)² and -H(π), with the advantage A = R - V as a constant.

    Args:
        logits: of the policy, (B, K).
        value, action, target: V, a and R, (B,).
    """
    log_p, advantage = logits.log_softmax(1), target - value
    chosen = log_p.gather(1, action[:, None]).squeeze(1)
    return {
        "policy": -(advantage.detach() * chosen).mean(),
        "value": advantage.square().mean(),
        "entropy": (log_p.exp() * log_p).sum(1).mean(),
    }


class ActorCritic(Playing):
    """L = -A log π(a) + c · (R - V)² - β · H(π), with c and β in ``weights``: rewards alone, no teacher.

    A batch of B steps is played by the student itself in `envs` environments side by side; R are its `returns`. V is a
    network of its own, of two layers of 64 units with tanh, and not deployed.

    Args:
        envs: environments.
        discount: γ.
    """

    leaf = "controls"
    paper = ""
    title = "A2C"
    control = "scratch"
    needs: ClassVar[frozenset[str]] = frozenset()
    terms = ("policy", "value", "entropy")

    def __init__(self, envs: Count = 8, discount: Share = 0.99, **kwargs: Any) -> None:
        super().__init__(envs=envs, **kwargs)
        self.discount = discount

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        sizes = (data.shape[0], 64, 64)
        layers = [(nn.Linear(a, b), nn.Tanh()) for a, b in pairwise(sizes)]
        self.critic = nn.Sequential(*(part for layer in layers for part in layer), nn.Linear(64, 1), nn.Flatten(0))

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        play = self.play.at(self.epoch, self.device)
        steps = play.rollout(len(batch), lambda seen: play.sampled(self.student_out(seen).logits))
        x = steps.x.flatten(0, 1)
        with torch.no_grad():
            following = self.critic(steps.following.flatten(0, 1)).view_as(steps.reward)
        target = returns(steps.reward, following, steps.terminated, steps.ended, self.discount).flatten()
        logits, value = self.student_out(x).logits, self.critic(x)
        yield "student", actor_critic_losses(logits, value, steps.action.flatten(), target)
