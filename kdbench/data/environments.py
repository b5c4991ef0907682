"""Environments of gymnasium (an extra) as data sets: what is learnt there is played, not read."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import torch

from kdbench.data.batch import DataSpec
from kdbench.data.datasets import Dataset, Split
from kdbench.settings import Count
from kdbench.tasks.play import Play, Rollout, environment, outputs_of


@dataclass(frozen=True)
class Environment:
    """The source of data whose task is `kdbench.tasks.Policy`, or `GaussianPolicy` where actions are vectors.

    A batch of training is so many steps, which the method plays itself (see `Play`); an epoch is `steps` of them. The
    test split is a list of episodes: their seeds, 0 to `episodes` - 1, stand where other data have their targets. So an
    example is an episode, and its score the return. Where other data have images there are none.

    Args:
        name: as gymnasium registers it, with a vector to observe, whose actions are one of n or vectors:
            ``CartPole-v1``, ``Pendulum-v1``.
        steps: environment steps of an epoch.
        episodes: how many are played for an evaluation; 100 is what gymnasium's (then OpenAI Gym's) rule for a solved
            ``CartPole-v1`` averages over.
    """

    name: str
    steps: Count
    episodes: Count = 100

    def identity(self) -> dict[str, Any]:
        """See `kdbench.data.sources.Source`."""
        return {"_target_": f"{type(self).__module__}.{type(self).__qualname__}", **asdict(self)}

    def build(self) -> Dataset:
        """
        Raises:
            UserError: gymnasium is not installed, or there is no such environment.
        """
        env = environment(self.name)
        outputs = outputs_of(env)
        spec = DataSpec(
            self.name,
            env.observation_space.shape,  # type: ignore[arg-type]  # of any length
            len(outputs),
            n_train=self.steps,
            n_test=self.episodes,
            task="gaussian-policy" if env.action_space.shape else "policy",
            settings={"environment": self.name},
        )
        return Dataset(
            train=_split(torch.zeros(self.steps, dtype=torch.int64)),
            val=None,
            test=_split(torch.arange(self.episodes)),
            classes=outputs,
            mean=(),
            std=(),
            pad=0,
            flip=False,
            content_hash=hashlib.sha256(f"{self.name} {self.episodes}".encode()).hexdigest(),
            spec=spec,
        )


def _split(targets: torch.Tensor) -> Split:
    return Split(torch.zeros(len(targets), 1, 1, 0, dtype=torch.uint8), targets)


__all__ = ["Environment", "Play", "Rollout"]
