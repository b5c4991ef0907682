"""Acting in an environment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from kdbench.errors import DoesNotFit
from kdbench.measures import Measure
from kdbench.tasks.base import Meter, Scores, Task
from kdbench.tasks.play import Play, returns

if TYPE_CHECKING:
    from kdbench.data.batch import Batch, DataSpec


class Returns(Meter):
    """``return``: the mean over episodes of the sum of rewards; an episode's score is its own.

    The test split is a list of episodes, whose seeds stand where other data have their targets. Each is played to its
    end, always with the best action: nothing is left to chance.

    Args:
        best: from a policy's outputs to actions.
    """

    def __init__(self, environment: str, best: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.environment, self.best, self.scores = environment, best, Scores()

    def update(self, net: nn.Module, batch: Batch) -> None:
        self.scores.update(returns(self.environment, batch.y, lambda seen: self.best(net(seen))))

    def compute(self) -> dict[str, Tensor]:
        return {"return": self.scores.rows().mean()}

    def examples(self) -> Tensor:
        return self.scores.rows()


@dataclass(frozen=True)
class Policy(Task):
    """Choosing actions: outputs are a score for each action, (B, K), of observations (B, D). There are no targets."""

    name = zoo = "policy"
    primary = Measure("return", unit="", examples="episodes")

    environment: str

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """
        Raises:
            DoesNotFit: always.
        """
        raise DoesNotFit(
            f"in an environment there are no labels to learn from: choose a method for the task '{self.name}'."
        )

    def best(self, output: Tensor) -> Tensor:
        """The action of the highest score, int64, (B,)."""
        return output.argmax(1)

    def meter(self, data: DataSpec) -> Meter:
        return Returns(self.environment, self.best)

    def play(self, envs: int, seed: int) -> Play:
        """Copies of the environment to learn in, see `Play`."""
        return Play(self.environment, envs, seed)


def gaussian(output: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, A) of a policy whose outputs (B, 2A) are means and logarithms of the latter."""
    mean, log_std = output.chunk(2, dim=1)
    return mean, log_std.exp()


@dataclass(frozen=True)
class GaussianPolicy(Policy):
    """Choosing vectors of numbers: the policy is N(mean, std²) in each, as its outputs (B, 2A) say (`gaussian`). There
    are no targets."""

    name = "gaussian-policy"

    def best(self, output: Tensor) -> Tensor:
        """The mean, (B, A)."""
        return gaussian(output)[0]
