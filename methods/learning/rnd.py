"""RND: exploration by random network distillation (Burda et al., ICLR 2019, arXiv:1810.12894)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import in_float32
from kdbench.settings import Count, Positive, Share
from kdbench.taps import Spec
from methods.controls.actor_critic import ActorCritic, actor_critic_losses, returns


@in_float32
def novelty(predicted: Tensor, target: Tensor) -> Tensor:
    """‖ f̂(x) - f(x) ‖² / D of each state, for features (B, D): (B,); no gradient reaches `target` (section 2.2).

    The intrinsic reward of a state, and the predictor's loss there. The paper's norm is a mean in the authors' code.
    """
    return (predicted - target.detach()).square().mean(1)


class Moments(nn.Module):
    """Running mean and variance of the rows of all tensors (N, \\*shape) seen so far (Chan et al. 1979)."""

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("var", torch.ones(shape))
        self.register_buffer("count", torch.tensor(1e-4))  # the authors' mpi_util.py

    @torch.no_grad()
    def see(self, x: Tensor) -> None:
        n, total = len(x), self.count + len(x)
        var, mean = torch.var_mean(x, 0, correction=0)
        apart = mean - self.mean
        self.var.copy_((self.count * self.var + n * var + apart.square() * self.count * n / total) / total)
        self.mean.add_(apart * n / total)
        self.count.copy_(total)


def perceptron(sizes: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    """Linear layers of these widths with `activation` between them."""
    parts: list[nn.Module] = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), activation())]
    return nn.Sequential(*parts[:-1])


def fixed(net: nn.Module) -> nn.Module:
    """The same network with buffers for parameters: nothing ever trains it."""
    for module in net.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            delattr(module, name)
            module.register_buffer(name, value.detach())
    return net


class RND(ActorCritic):
    """L = w_e · (-A_e log π(a)) + w_i · (-A_i log π(a)) + values' losses - β · H(π) + `novelty`(f̂, f)

    Rewards and curiosity: f is a random network that never learns, f̂ one that is distilled from it on the states that
    are met, and where it still fails the state is new. That `novelty` is the intrinsic reward of a step into the state,
    divided by the running deviation of its discounted sums. Each kind of reward has its `returns`, whose advantages
    A_e and A_i are taken from two networks of values; intrinsic returns do not end with an episode. w_e and w_i are
    ``weights.policy`` and ``weights.curiosity``.

    f and f̂ see observations normalised by their running moments, and cut off at `clip`; the first moments are those of
    the first batch, where the paper takes random steps before training, and a batch enters them before its rewards are
    computed, in the authors' code afterwards. The paper's PPO is the control's A2C here, so
    that the two differ by curiosity alone.

    Args:
        envs: environments.
        discount: γ of rewards.
        curious_discount: γ of intrinsic ones.
        features: D.
        clip: of normalised observations.
    """

    leaf = "learning/reinforcement"
    paper = "burda2018exploration"
    title = "RND"
    control = None  # type: ignore[assignment]
    terms = ("policy", "curiosity", "value", "curious_value", "entropy", "prediction")  # type: ignore[assignment]
    survey: ClassVar = {
        "knowledge": "features of a random network, on the states that are met",
        "objective": "A2C on rewards and on the distance that is left",
    }
    discounted: Tensor

    def __init__(
        self,
        envs: Count = 8,
        discount: Share = 0.99,
        curious_discount: Share = 0.99,
        features: Count = 64,
        clip: Positive = 5.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(envs=envs, discount=discount, **kwargs)
        self.curious_discount, self.features, self.clip = curious_discount, features, clip

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        super().build(student, teacher, data)
        n, d = data.shape[0], self.features
        self.curious_critic = nn.Sequential(perceptron((n, 64, 64, 1), nn.Tanh), nn.Flatten(0))
        self.random = fixed(perceptron((n, d, d), nn.LeakyReLU))
        self.predictor = perceptron((n, d, d, d, d), nn.LeakyReLU)  # deeper by two layers, as the authors'
        self.observed, self.rewarded = Moments(n), Moments()
        self.register_buffer("discounted", torch.zeros(self.envs))

    def normalised(self, x: Tensor) -> Tensor:
        return ((x - self.observed.mean) / (self.observed.var + 1e-8).sqrt()).clamp(-self.clip, self.clip)

    @torch.no_grad()
    def scaled(self, reward: Tensor) -> Tensor:
        """Intrinsic rewards (T, E), divided by the running deviation of their discounted sums."""
        sums = []
        for r in reward:
            self.discounted.mul_(self.curious_discount).add_(r)
            sums.append(self.discounted.clone())
        self.rewarded.see(torch.cat(sums))
        return reward / (self.rewarded.var + 1e-8).sqrt()

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        play = self.play.at(self.epoch, self.device)
        steps = play.rollout(len(batch), lambda seen: play.sampled(self.student_out(seen).logits))
        x, after, action = (part.flatten(0, 1) for part in (steps.x, steps.following, steps.action))
        self.observed.see(after)
        new = self.normalised(after)
        surprise = novelty(self.predictor(new), self.random(new))
        curious = self.scaled(surprise.detach().view_as(steps.reward))
        with torch.no_grad():
            values, curious_values = (net(after).view_as(curious) for net in (self.critic, self.curious_critic))
        never = torch.zeros_like(steps.ended)
        target = returns(steps.reward, values, steps.terminated, steps.ended, self.discount)
        curious_target = returns(curious, curious_values, never, never, self.curious_discount)
        logits = self.student_out(x).logits
        rewarded = actor_critic_losses(logits, self.critic(x), action, target.flatten())
        curiously = actor_critic_losses(logits, self.curious_critic(x), action, curious_target.flatten())
        yield (
            "student",
            {
                **rewarded,
                "curiosity": curiously["policy"],
                "curious_value": curiously["value"],
                "prediction": surprise.mean(),
            },
        )
