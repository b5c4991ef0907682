"""Environments as data sets, play as a function of seed and epoch, and what can be learnt by it."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from kdbench.data.batch import Batch
from kdbench.data.environments import Environment, Play, Rollout
from kdbench.data.module import ArrayData
from kdbench.data.sources import source_of
from kdbench.errors import DoesNotFit, UserError
from kdbench.losses import cross_entropy, kl
from kdbench.tasks import GaussianPolicy, Policy, task_of
from kdbench.tasks.policy import gaussian
from methods.controls.gaussian_actor_critic import gaussian_actor_critic_losses
from methods.controls.gaussian_ppo import advantages, gaussian_ppo_losses, minibatches
from methods.learning.gaussian_policy_distillation import gaussian_kl_loss

CARTPOLE = "CartPole-v1"
PENDULUM = "Pendulum-v1"


class Switches(gymnasium.Env[Any, Any]):
    """Its actions are sets of switches."""

    observation_space = gymnasium.spaces.Box(0, 1, (3,))
    action_space = gymnasium.spaces.MultiBinary(2)


gymnasium.register("kdbench-test/Switches-v0", Switches)


class Leaning(nn.Module):
    """Pushes to where the pole falls: a policy that needs no training."""

    def forward(self, x: Tensor) -> Tensor:
        lean = x[:, 2] + x[:, 3]
        return torch.stack([-lean, lean], 1)


def lean(x: Tensor) -> Tensor:
    return Leaning()(x).argmax(1)


def alone(seeds: Sequence[int], net: nn.Module, name: str = CARTPOLE) -> list[float]:
    """Returns of episodes that are played one after the other, as gymnasium's documentation does."""
    found = []
    for seed in seeds:
        env = gymnasium.make(name)
        x, _ = env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            with torch.no_grad():
                action = int(net(torch.tensor(x)[None]).argmax())
            x, reward, terminated, truncated, _ = env.step(action)
            total, over = total + float(reward), terminated or truncated
        found.append(total)
    return found


# ---- the data set and its meter --------------------------------------------------------------------------------------


def test_an_environment_is_a_data_set() -> None:
    source = Environment(CARTPOLE, steps=70, episodes=12)
    data = source.build()
    assert (data.spec.shape, data.spec.num_classes, data.spec.n_train, data.spec.n_test) == ((4,), 2, 70, 12)
    assert task_of(data.spec.task, data.spec.settings) == Policy(CARTPOLE)
    assert source.identity() == {
        "_target_": "kdbench.data.environments.Environment",
        "name": CARTPOLE,
        "steps": 70,
        "episodes": 12,
    }
    assert data.content_hash == Environment(CARTPOLE, 99, 12).build().content_hash
    assert data.content_hash != Environment(CARTPOLE, 70, 13).build().content_hash
    loaders = ArrayData(data, batch_size=32, seed=0, eval_batch_size=5)
    assert [len(batch) for batch in loaders.train_dataloader()] == [32, 32, 6]
    assert torch.cat([batch.y for batch in loaders.test_dataloader()]).tolist() == list(range(12))


@pytest.mark.parametrize("name", [CARTPOLE, "Acrobot-v1"])
def test_returns_are_those_of_episodes_played_alone(name: str) -> None:
    torch.manual_seed(0)
    data = Environment(name, steps=1, episodes=6).build()
    net = Leaning() if name == CARTPOLE else nn.Linear(6, 3)
    meter = Policy(name).meter(data.spec)
    expected = alone(range(6), net, name)
    for size in (6, 4):
        with torch.inference_mode():
            meter.begin()
            for batch in ArrayData(data, 1, 0, eval_batch_size=size).test_dataloader():
                meter.update(net, batch)
        assert meter.examples().tolist() == expected
        assert meter.compute()["return"].item() == pytest.approx(sum(expected) / 6)
    assert meter.examples().dtype == torch.float32
    assert len(set(expected)) > 1 or name != CARTPOLE


def test_actions_may_be_vectors() -> None:
    data = Environment(PENDULUM, steps=1, episodes=3).build()
    assert task_of(data.spec.task, data.spec.settings) == GaussianPolicy(PENDULUM)
    assert (data.spec.shape, data.spec.num_classes, data.classes) == ((3,), 2, ("mean 0", "log std 0"))
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    nn.init.normal_(net.weight, std=3)  # so that some actions are beyond the bounds of 2
    expected, clipped = [], 0
    for seed in range(3):
        env = gymnasium.make(PENDULUM)
        x, _ = env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            with torch.no_grad():
                mean = net(torch.tensor(x)[None])[0, :1].numpy()
            clipped += int((abs(mean) > 2).sum())
            x, reward, terminated, truncated, _ = env.step(mean.clip(-2, 2))
            total, over = total + float(reward), terminated or truncated
        expected.append(total)
    meter = GaussianPolicy(PENDULUM).meter(data.spec)
    with torch.inference_mode():
        meter.begin()
        for batch in ArrayData(data, 1, 0, eval_batch_size=2).test_dataloader():
            meter.update(net, batch)
    assert meter.examples().tolist() == pytest.approx(expected)
    assert clipped


def test_there_are_no_labels() -> None:
    with pytest.raises(DoesNotFit, match="no labels to learn from"):
        Policy(CARTPOLE).loss(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("CartPole", "gymnasium has no environment 'CartPole': did you mean CartPole-v1"),
        ("kdbench-test/Switches-v0", "takes MultiBinary.*, neither one of n nor a vector"),
        ("FrozenLake-v1", "shows Discrete.*, not a vector"),
        ("no_such_module:Thing-v0", "cannot be made .*no_such_module"),
    ],
)
def test_environments_that_do_not_serve(name: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        Environment(name, steps=1).build()


def test_numbers_that_do_not_serve() -> None:
    fields = {"_target_": "kdbench.data.environments.Environment", "name": CARTPOLE, "steps": 1}
    with pytest.raises(UserError, match=r"dataset.steps=0: input should be greater than or equal to 1\."):
        source_of({**fields, "steps": 0})
    with pytest.raises(UserError, match=r"dataset.episodes=1.5: input should be a valid integer\."):
        source_of({**fields, "episodes": 1.5})


def test_an_environment_from_its_configuration() -> None:
    fields = {"_target_": "kdbench.data.environments.Environment", "name": CARTPOLE, "steps": 50, "root": "/nowhere"}
    source = source_of(OmegaConf.create(fields))
    assert source == Environment(CARTPOLE, 50)
    assert source_of(source.identity()) == source
    assert source_of({"name": "digits", "root": "/nowhere"}).identity()["name"] == "digits"
    with pytest.raises(
        UserError, match=r"unknown key 'dataset.per_class' of Environment: choose from name, steps, episodes"
    ):
        source_of({**fields, "per_class": 5})
    with pytest.raises(UserError, match=r"makes its own: set scenario=null"):
        source_of({**fields, "scenario": {"_target_": "x.Y"}})
    assert source_of({**fields, "scenario": None}) == source
    with pytest.raises(UserError, match=r"the config lacks 'dataset.steps' of Environment: give it"):
        source_of({"_target_": fields["_target_"], "name": CARTPOLE})
    with pytest.raises(UserError, match=r"dataset: cannot import kdbench.data.environments.Enviroment"):
        source_of({**fields, "_target_": "kdbench.data.environments.Enviroment"})


def test_a_source_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_source.py").write_text(
        "from dataclasses import dataclass\n"
        "from kdbench.data.environments import Environment\n"
        "@dataclass(frozen=True)\n"
        "class Short(Environment):\n"
        "    steps: int = 7\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    source = source_of({"_target_": "own_source.Short", "name": CARTPOLE})
    assert source.build().spec.n_train == 7
    assert source_of(source.identity()) == source


def test_without_gymnasium_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(UserError, match=r"not installed: install it with pip install 'kdbench\[rl\]'"):
        Environment(CARTPOLE, steps=1).build()


# ---- play ------------------------------------------------------------------------------------------------------------


def equal(a: Rollout, b: Rollout) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_play_is_a_function_of_seed_and_epoch() -> None:
    play = Play(CARTPOLE, 3, seed=5)
    first = play.at(0).rollout(60, lean)
    second = play.at(0).rollout(30, lean)
    third = play.at(1).rollout(60, lean)
    assert equal(Play(CARTPOLE, 3, seed=5).at(1).rollout(60, lean), third)  # as after an interruption
    whole = Play(CARTPOLE, 3, seed=5).at(0).rollout(90, lean)
    assert equal(Rollout(*(torch.cat(pair) for pair in zip(first, second, strict=True))), whole)
    assert equal(copy.deepcopy(play).at(1).rollout(60, lean), third)  # a copy begins the epoch anew
    assert equal(play.at(0).rollout(60, lean), first)
    for other in (third, Play(CARTPOLE, 3, seed=6).at(0).rollout(60, lean)):
        assert not torch.equal(other.x[0], first.x[0])
    assert len(first.x[0].unique(dim=0)) == 3


def test_a_rollout_says_what_happened() -> None:
    play = Play(CARTPOLE, 4, seed=0)
    found = play.at(0).rollout(801, lambda x: torch.zeros(len(x), dtype=torch.int64))
    assert found.x.shape == found.following.shape == (201, 4, 4)  # rounded up
    assert (found.action == 0).all()
    assert (found.reward == 1).all()
    assert found.x.dtype == found.reward.dtype == torch.float32
    assert torch.equal(found.ended, found.terminated)  # who always pushes to one side falls long before time is up
    assert found.ended.sum() > 4 * 10
    x, following, ended = found.x[1:], found.following[:-1], found.ended[:-1]
    assert torch.equal(x[~ended], following[~ended])
    assert (x[ended].abs() <= 0.05).all()  # CartPole starts within 0.05 of upright
    assert (following[ended][:, 2].abs() > 12 * torch.pi / 180).all()  # and ends at 12 degrees
    assert not following.requires_grad


def test_time_running_out_is_no_terminal_state() -> None:
    found = Play("MountainCar-v0", 2, seed=0).at(0).rollout(2 * 401, lambda x: torch.ones(len(x), dtype=torch.int64))
    assert not found.terminated.any()
    assert found.ended.nonzero()[:, 0].tolist() == [199, 199, 399, 399]  # 200 steps are all it has


def test_actions_are_drawn_from_the_softmax() -> None:
    play = Play(CARTPOLE, 2, seed=0).at(0)
    logits = torch.tensor([0.0, 1.0, -torch.inf, 2.0])
    drawn = play.sampled(logits.expand(20000, 4))
    shares = torch.bincount(drawn, minlength=4) / 20000
    p = logits.softmax(0)
    assert ((shares - p).abs() <= 4 * (p * (1 - p) / 20000).sqrt()).all()
    assert torch.equal(play.sampled(logits.expand(20000, 4)), drawn)  # within a step it is the same draw
    play.rollout(2, lean)
    assert not torch.equal(play.sampled(logits.expand(20000, 4)), drawn)


def test_vectors_are_drawn_from_the_normal_distribution() -> None:
    play = Play(PENDULUM, 2, seed=0).at(0)
    mean, std = torch.tensor([1.0, -2.0]).expand(20000, 2), torch.tensor([0.5, 3.0]).expand(20000, 2)
    drawn = play.drawn(mean, std)
    unit = ((drawn - mean) / std).double()
    assert unit.mean(0).abs().max() < 4 / 20000**0.5
    assert (unit.var(0) - 1).abs().max() < 4 * (2 / 20000) ** 0.5
    assert abs(torch.corrcoef(unit.T)[0, 1]) < 4 / 20000**0.5
    assert unit.isfinite().all()
    assert torch.equal(play.drawn(mean, std), drawn)  # within a step it is the same draw
    found = play.rollout(4, lambda x: play.drawn(mean[: len(x), :1], std[: len(x), :1]))
    assert found.action.shape == (2, 2, 1)
    assert not torch.equal(play.drawn(mean, std), drawn)


# ---- what methods do with it -----------------------------------------------------------------------------------------


def test_losses_of_gaussian_policies_are_those_of_torchs_distributions() -> None:
    torch.manual_seed(0)
    mean, log_std, action, teacher = (torch.randn(7, 3, dtype=torch.float64) for _ in range(4))
    value, target = torch.randn(2, 7, dtype=torch.float64)
    policy, other = Normal(mean, log_std.exp()), Normal(teacher, action.exp())
    assert gaussian(torch.cat([mean, log_std], 1))[1].equal(log_std.exp())
    terms = gaussian_actor_critic_losses(mean, log_std.exp(), value, action, target)
    expected = {
        "policy": -((target - value) * policy.log_prob(action).sum(1)).mean(),
        "value": (target - value).square().mean(),
        "entropy": -policy.entropy().sum(1).mean(),
    }
    assert {name: term.item() for name, term in terms.items()} == pytest.approx(
        {name: term.item() for name, term in expected.items()}
    )
    loss = gaussian_kl_loss(mean, log_std.exp(), teacher, action.exp())
    assert loss.item() == pytest.approx(kl_divergence(other, policy).mean().item())


def test_ppo_is_the_policy_gradient_where_nothing_has_moved_and_has_none_beyond_its_interval() -> None:
    torch.manual_seed(0)
    mean, log_std, action = (torch.randn(7, 3, dtype=torch.float64).requires_grad_() for _ in range(3))
    value, target, advantage = torch.randn(3, 7, dtype=torch.float64)
    policy = Normal(mean, log_std.exp())
    log_p = policy.log_prob(action.detach()).sum(1)
    scaled = (advantage - advantage.mean()) / advantage.std(correction=0)

    def terms(before: Tensor) -> dict[str, Tensor]:
        std = log_std.exp()
        return gaussian_ppo_losses(mean, std, value, action.detach(), before, advantage, target, clip=0.2)

    found = terms(log_p.detach())
    assert found["entropy"].item() == pytest.approx(-policy.entropy().sum(1).mean().item())
    assert found["value"].item() == pytest.approx((target - value).square().mean().item())
    expected = torch.autograd.grad(-(scaled * log_p).mean(), mean, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(found["policy"], mean, retain_graph=True)[0], expected)
    # twice as likely as it was: what was good pulls no more, what was bad still pushes
    moved = terms(log_p.detach() - torch.tensor(2.0).log())["policy"]
    worth = torch.where(scaled > 0, 1.2 * scaled, 2 * scaled)
    assert moved.item() == pytest.approx(-worth.mean().item())
    pushed = torch.autograd.grad(moved, mean)[0].abs().sum(1) > 0
    assert torch.equal(pushed, scaled < 0)


def test_advantages_are_sums_of_surprises_that_end_with_the_episode() -> None:
    torch.manual_seed(0)
    reward, value, following = torch.randn(3, 6, 2, dtype=torch.float64)
    terminated = torch.zeros(6, 2, dtype=torch.bool)
    terminated[2, 0] = True
    ended = terminated.clone()
    ended[3, 1] = True
    gamma, trace = 0.9, 0.7
    found = advantages(reward, value, following, terminated, ended, gamma, trace)
    for e in range(2):
        for t in range(6):
            total, share = 0.0, 1.0
            for k in range(t, 6):
                future = 0.0 if terminated[k, e] else following[k, e].item()
                total += share * (reward[k, e].item() + gamma * future - value[k, e].item())
                share *= gamma * trace
                if ended[k, e]:
                    break
            assert found[t, e].item() == pytest.approx(total)


def test_minibatches_are_passes_in_random_orders_or_all_at_once() -> None:
    generator = torch.Generator().manual_seed(0)
    parts = list(minibatches(10, 2, 4, generator))
    assert [len(part) for part in parts] == [4, 4, 2] * 2
    first, second = torch.cat(parts[:3]), torch.cat(parts[3:])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(10))
    assert not torch.equal(first, second)
    assert [part.tolist() for part in minibatches(3, 2, None, generator)] == [[0, 1, 2]] * 2


class ActorCritic(nn.Module):
    """The policy, and the value of a state beside it."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.policy = nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 2))
        self.value = nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 1))


def returns_to_go(found: Rollout, value: Tensor, gamma: float) -> Tensor:
    """What each step and those after it bring, discounted, with the value of the state where the rollout breaks off."""
    after = value[-1]
    steps = []
    for t in reversed(range(len(found.reward))):
        future = torch.where(found.ended[t], value[t], after) * ~found.terminated[t]
        after = found.reward[t] + gamma * future
        steps.append(after)
    return torch.stack(steps[::-1])


def played(net: nn.Module, episodes: int = 20) -> float:
    meter = Policy(CARTPOLE).meter(Environment(CARTPOLE, 1, episodes).build().spec)
    seeds = torch.arange(episodes)
    with torch.no_grad():
        meter.begin()
        meter.update(net, Batch(torch.zeros(episodes, 0), seeds, seeds, torch.zeros(episodes, 3, dtype=torch.int64)))
    return meter.compute()["return"].item()


def test_an_actor_critic_learns_by_play() -> None:
    """Advantage actor-critic (Mnih et al., ICML 2016, arXiv:1602.01783) in one process."""
    torch.manual_seed(0)
    net = ActorCritic(32)
    before = played(net.policy)
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    play = Play(CARTPOLE, 8, seed=0)
    for epoch in range(2):
        play.at(epoch)
        for _ in range(60):
            found = play.rollout(128, lambda x: play.sampled(net.policy(x)))
            with torch.no_grad():
                target = returns_to_go(found, net.value(found.following).squeeze(2), 0.99)
            value = net.value(found.x).squeeze(2)
            log_p = net.policy(found.x).log_softmax(2)
            advantage = target - value.detach()
            actor = cross_entropy(net.policy(found.x).flatten(0, 1), found.action.flatten(), reduction="none")
            entropy = -(log_p.exp() * log_p).sum(2).mean()
            loss = (actor * advantage.flatten()).mean() + 0.5 * (target - value).square().mean() - 0.01 * entropy
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            optimizer.step()
    assert played(net.policy) > before + 100


def test_a_policy_is_distilled_by_play() -> None:
    """Policy distillation (Rusu et al., ICLR 2016, arXiv:1511.06295): KL to a sharpened teacher, on what it plays."""
    torch.manual_seed(0)
    teacher, student = Leaning(), nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    play = Play(CARTPOLE, 8, seed=0)
    before = played(student)
    for _ in range(60):
        x = play.at(0).rollout(64, lambda x: play.sampled(teacher(x))).x.flatten(0, 1)
        loss = kl(student(x), teacher(x) / 0.01)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert played(student) > before + 100
