"""Policy distillation by its two other losses (Rusu et al., ICLR 2016, arXiv:1511.06295)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy, in_float32
from kdbench.settings import Count
from methods.controls.playing import Playing


@in_float32
def best_action_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """-log softmax(q_s)[ argmax q_t ], averaged over the batch, of scores (B, A) (equation 1; the paper sums)."""
    return cross_entropy(student, teacher.argmax(1))


@in_float32
def score_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """‖ q_t - q_s ‖², summed over actions, averaged over the batch, of scores (B, A) (equation 2; the paper sums)."""
    return (teacher.detach() - student).square().sum(1).mean()


class Demonstrated(Playing):
    """The teacher plays, and on the states that it meets the student learns from its scores."""

    leaf = "learning/reinforcement"
    paper = "rusu2015policy"
    needs = frozenset({"teacher"})
    terms = ("kd",)

    @abstractmethod
    def compared(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of the student's scores (B, A)."""

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        play = self.play.at(self.epoch, self.device)
        said: list[Tensor] = []

        def act(seen: Tensor) -> Tensor:
            said.append(self.teacher_out(seen).logits)
            return play.sampled(said[-1])

        x = play.rollout(len(batch), act).x.flatten(0, 1)
        yield "student", {"kd": self.compared(self.student_out(x).logits, torch.cat(said))}


class PolicyDistillationNLL(Demonstrated):
    """L = `best_action_loss`(s, t) on the states that the teacher meets.

    A batch of B steps is played by the teacher in `envs` environments side by side, actions drawn from softmax(t). The
    teacher is whatever the recipe trains, as in `policy_distillation`.

    Args:
        envs: environments.
    """

    title = "Policy distillation, NLL"
    survey: ClassVar = {"knowledge": "the teacher's best action on its own states", "objective": "CE(argmax t, s)"}

    def __init__(self, envs: Count = 8, **kwargs: Any) -> None:
        super().__init__(envs=envs, **kwargs)

    def compared(self, student: Tensor, teacher: Tensor) -> Tensor:
        return best_action_loss(student, teacher)


class PolicyDistillationMSE(Demonstrated):
    """L = `score_loss`(s, t) on the states that the teacher meets.

    A batch of B steps is played by the teacher in `envs` environments side by side, actions drawn from softmax(t). In
    the paper t are action values; here they are logits, of which a softmax leaves the sum open.

    Args:
        envs: environments.
    """

    title = "Policy distillation, MSE"
    survey: ClassVar = {"knowledge": "action scores on the teacher's own states", "objective": "MSE(t, s)"}

    def __init__(self, envs: Count = 8, **kwargs: Any) -> None:
        super().__init__(envs=envs, **kwargs)

    def compared(self, student: Tensor, teacher: Tensor) -> Tensor:
        return score_loss(student, teacher)
