"""Acting in an environment."""

from __future__ import annotations

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
    end, always with the action of the highest score: nothing is left to chance.
    """

    def __init__(self, environment: str) -> None:
        super().__init__()
        self.environment, self.scores = environment, Scores()

    def update(self, net: nn.Module, batch: Batch) -> None:
        self.scores.update(returns(self.environment, batch.y, lambda seen: net(seen).argmax(1)))

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
        raise DoesNotFit("in an environment there are no labels to learn from: choose a method for the task 'policy'.")

    def meter(self, data: DataSpec) -> Meter:
        return Returns(self.environment)

    def play(self, envs: int, seed: int) -> Play:
        """Copies of the environment to learn in, see `Play`."""
        return Play(self.environment, envs, seed)
