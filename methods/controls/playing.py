"""What methods share that play in environments."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from kdbench.method import Method
from kdbench.settings import Count
from kdbench.tasks import Policy
from kdbench.tasks.play import Play


class Playing(Method):
    """A batch of B steps is played in environments side by side.

    Args:
        envs: how many.
    """

    tasks = frozenset({"policy"})

    def __init__(self, envs: Count = 8, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.envs = envs

    @cached_property
    def play(self) -> Play:
        assert isinstance(self.task, Policy)
        return self.task.play(self.envs, self.rng.initial_seed())
