"""PIEKD: periodic intra-ensemble knowledge distillation (Hong et al., 2020, arXiv:2002.00149)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import in_float32, kl
from kdbench.method import Player
from kdbench.settings import Count, Positive, Share
from kdbench.taps import Spec
from kdbench.tasks.play import Rollout
from methods.controls.playing import Playing
from methods.learning.rnd import perceptron


@in_float32
def v_trace(
    reward: Tensor, value: Tensor, following: Tensor, terminated: Tensor, ended: Tensor, ratio: Tensor, discount: float
) -> tuple[Tensor, Tensor]:
    """What each step was worth to a policy that another has played, and its advantages, all (T, E).

    v_t = V_t + A_t  with  A_t = ρ_t (r_t + γ v_{t+1} - V_t)  and the ratio ρ_t = min(1, π / μ)

    This is V-trace with ρ̄ = c̄ = 1 (Espeholt et al., ICML 2018, arXiv:1802.01561, equation 1 and section 4.2). Of a
    policy's own steps it is R_t of A2C, and R_t - V_t.

    Args:
        value, following: V of the states before and after each step.
        terminated, ended: bool; whether the state after has no future, and whether the episode ended there.
        ratio: ρ.
    """
    worth, advantage = [], []
    more = torch.zeros_like(value[-1])  # v_{t+1} - V_{t+1}
    columns = (x.flip(0) for x in (reward, value, following, terminated, ended, ratio))
    for r, v, ahead, final, last, rho in zip(*columns, strict=True):
        more = torch.where(last, 0.0, more)
        step = r + discount * ahead * ~final - v
        advantage.append(rho * (step + discount * more))
        more = advantage[-1]
        worth.append(v + more)
    return torch.stack(worth).flip(0), torch.stack(advantage).flip(0)


@in_float32
def log_probability(logits: Tensor, action: Tensor) -> Tensor:
    """log softmax(z)[a] of action scores (B, A) and actions (B,): (B,)."""
    return logits.log_softmax(1).gather(1, action[:, None]).squeeze(1)


@in_float32
def shared_losses(logits: Tensor, value: Tensor, action: Tensor, worth: Tensor, advantage: Tensor) -> dict[str, Tensor]:
    """Means over B steps: -A · log π(a), (v - V)² and -H(π), with v and A as constants.

    Args:
        logits: of the policy, (B, A).
        value, action, worth, advantage: V, a, v and A, (B,).
    """
    log_p = logits.log_softmax(1)
    return {
        "policy": -(advantage.detach() * log_probability(logits, action)).mean(),
        "value": (worth.detach() - value).square().mean(),
        "entropy": (log_p.exp() * log_p).sum(1).mean(),
    }


@in_float32
def elected_losses(own: Tensor, elected: Tensor, value: Tensor, elected_value: Tensor) -> dict[str, Tensor]:
    """KL( softmax(elected) || softmax(own) ) of scores (B, A) and (V_elected - V_own)² of values (B,), batch means.

    No gradient reaches the elected.
    """
    return {"kd": kl(own, elected.detach()), "value_kd": (value - elected_value.detach()).square().mean()}


def totals(reward: Tensor, ended: Tensor, so_far: Tensor) -> tuple[Tensor, Tensor]:
    """What each episode has reached after each step, (T, E), and what is left of it for the next, (E,).

    Args:
        reward, ended: of each step, (T, E).
        so_far: what the episode had reached before, (E,).
    """
    found = []
    for r, last in zip(reward, ended, strict=True):
        found.append(so_far + r)
        so_far = torch.where(last, 0.0, found[-1])
    return torch.stack(found), so_far


class PIEKD(Playing):
    """Members of an ensemble learn by playing, and every so often from the one that plays best; the first is deployed.

    L_k = -A_k log π_k(a) + c · (v_k - V_k)² - β · H(π_k)  on all members' steps, with v and A by `v_trace`

    and after every `interval` steps, on all states that were met since, several times

    L_k = KL( π_elected || π_k ) + (V_elected - V_k)²  for all members but the elected,

    who has the best mean return in its last `window` episodes. A batch of B steps is played in `envs` environments side
    by side, dealt out to the members in turn. In the paper members are soft actor-critics that share a replay memory,
    and the states are those of the whole memory; here they are actor-critics, as the control is, and share each batch.

    Args:
        envs: environments, at least as many as members.
        members: of the ensemble.
        discount: γ.
        interval: steps, of all members together, from one distillation to the next.
        passes: over the states, in a distillation.
        window: episodes by which the elected is found.
        distill_lr: learning rate of the Adam that distils.
    """

    leaf = "learning/reinforcement"
    paper = "hong2020periodic"
    title = "PIEKD"
    needs = frozenset({"peers"})
    terms = ("policy", "value", "entropy", "kd", "value_kd")
    survey: ClassVar = {
        "knowledge": "action scores and values of the best member, on all members' states",
        "objective": "actor-critic on shared steps; periodically KL(elected, s) + MSE of values",
    }
    states: Tensor
    latest: Tensor
    known: Tensor
    so_far: Tensor
    played_in: Tensor

    def __init__(
        self,
        envs: Count = 8,
        members: Annotated[int, Field(ge=2, le=100)] = 3,
        discount: Share = 0.99,
        interval: Count = 1000,
        passes: Count = 5,
        window: Count = 5,
        distill_lr: Positive = 0.001,
        **kwargs: Any,
    ) -> None:
        super().__init__(envs=envs, **kwargs)
        self.num_members, self.discount, self.interval = members, discount, interval
        self.passes, self.window, self.distill_lr = passes, window, distill_lr

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        if self.envs < self.num_members:
            raise DoesNotFit(f"PIEKD deals {self.envs} environments out to {self.num_members} members: raise envs.")
        n = data.shape[0]
        self.members = nn.ModuleList([self.student, *(self.spawn(k) for k in range(1, self.num_members))])
        critics = (perceptron((n, 64, 64, 1), nn.Tanh) for _ in self.members)
        self.critics = nn.ModuleList(nn.Sequential(critic, nn.Flatten(0)) for critic in critics)
        self.register_buffer("states", torch.zeros(self.interval, n))
        # returns of each member's last episodes, newest last, and which of these there were
        self.register_buffer("latest", torch.zeros(self.num_members, self.window))
        self.register_buffer("known", torch.zeros(self.num_members, self.window, dtype=torch.bool))
        self.register_buffer("so_far", torch.zeros(self.envs))
        self.register_buffer("played_in", torch.tensor(-1))

    def parts(self) -> list[nn.ModuleList]:
        """Each member with its critic."""
        return [nn.ModuleList(pair) for pair in zip(self.members, self.critics, strict=True)]

    def players(self) -> Sequence[Player]:
        adam = {"_target_": "torch.optim.Adam", "lr": self.distill_lr}
        own = [list(part.parameters()) for part in self.parts()]
        learning = [Player(f"member{k}", parameters) for k, parameters in enumerate(own)]
        return learning + [Player(f"pupil{k}", parameters, adam) for k, parameters in enumerate(own)]

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        play = self.play.at(self.epoch, self.device)
        said: list[Tensor] = []

        def act(seen: Tensor) -> Tensor:
            logits = seen.new_zeros(len(seen), self.data.num_classes)
            for k, member in enumerate(self.members):
                dealt = slice(k, None, self.num_members)
                logits[dealt] = self.student_out(seen[dealt], member).logits.to(logits.dtype)
            said.append(logits)
            return play.sampled(logits)

        steps = play.rollout(len(batch), act)
        self.remember(steps, len(batch))
        for k in range(self.num_members):
            yield f"member{k}", self.played(k, steps, torch.cat(said))
        # counted in steps, a number that outlives a kill
        if self.images_seen % self.interval < len(batch) <= self.images_seen:
            yield from self.distilled()

    @torch.no_grad()
    def remember(self, steps: Rollout, n: int) -> None:
        """The states that were met, and the returns of episodes that ended."""
        met = steps.x.flatten(0, 1)[:n][-self.interval :]
        place = torch.arange(self.images_seen - len(met), self.images_seen) % self.interval
        self.states[place.to(met.device)] = met
        self.so_far.mul_(self.played_in == self.epoch)  # with an epoch, episodes begin anew
        self.played_in.fill_(self.epoch)
        found, so_far = totals(steps.reward, steps.ended, self.so_far)
        self.so_far.copy_(so_far)
        for k in range(self.num_members):
            values = torch.cat([self.latest[k], found[:, k :: self.num_members].flatten()])
            known = torch.cat([self.known[k], steps.ended[:, k :: self.num_members].flatten()])
            newest = known.int().argsort(stable=True)[-self.window :]
            self.latest[k], self.known[k] = values[newest], known[newest]

    def played(self, k: int, steps: Rollout, played_by: Tensor) -> dict[str, Tensor]:
        """What member `k` learns from all steps; `played_by`: the scores of those who played, (T · E, A)."""
        critic, action = self.critics[k], steps.action.flatten()
        x, after = steps.x.flatten(0, 1), steps.following.flatten(0, 1)
        logits, value = self.student_out(x, self.members[k]).logits, critic(x)
        with torch.no_grad():
            ratio = (log_probability(logits, action) - log_probability(played_by, action)).exp().clamp(max=1)
            before, following, ratio = (each.view_as(steps.reward) for each in (value, critic(after), ratio))
            worth, advantage = v_trace(
                steps.reward, before, following, steps.terminated, steps.ended, ratio, self.discount
            )
        return shared_losses(logits, value, action, worth.flatten(), advantage.flatten())

    def elected(self) -> Tensor:
        """Which member has the best mean return; the first, as long as no episode has ended."""
        n = self.known.sum(1)
        return ((self.latest * self.known).sum(1) / n.clamp(min=1)).masked_fill(n == 0, -torch.inf).argmax()

    def distilled(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        best = self.elected()
        parts = self.parts()
        before = [[parameter.detach().clone() for parameter in part.parameters()] for part in parts]
        for _ in range(self.passes):
            order = torch.randperm(self.interval, generator=self.rng).to(self.states.device)
            for chosen in order.split(self.protocol.batch_size):
                x = self.states[chosen]
                logits = [self.student_out(x, member).logits for member in self.members]
                values = [critic(x) for critic in self.critics]
                told, worth = (torch.stack([z.detach() for z in each])[best] for each in (logits, values))
                for k, (z, value) in enumerate(zip(logits, values, strict=True)):
                    yield f"pupil{k}", elected_losses(z, told, value, worth)
        with torch.no_grad():  # what its optimiser remembers has moved the elected, too
            for k, (part, old) in enumerate(zip(parts, before, strict=True)):
                for parameter, value in zip(part.parameters(), old, strict=True):
                    parameter.copy_(torch.where(best == k, value, parameter))
