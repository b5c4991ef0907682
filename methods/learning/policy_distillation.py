"""Policy distillation (Rusu et al., ICLR 2016, arXiv:1511.06295)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import in_float32, kl_of_logs
from kdbench.settings import Count, Temperature
from methods.controls.playing import Playing


@in_float32
def policy_loss(student: Tensor, teacher: Tensor, temperature: float = 0.01) -> Tensor:
    """KL( softmax(q_t / τ) || softmax(q_s) ), summed over actions, averaged over the batch (equation 3).

    `student` and `teacher` are action values or logits, (B, A). τ < 1 sharpens the teacher alone, so there is no τ².
    Implementations that sum over the batch have B times this value.
    """
    return kl_of_logs(student.log_softmax(1), (teacher / temperature).log_softmax(1))


class PolicyDistillation(Playing):
    """L = `policy_loss`(s, t) on the states that the teacher meets.

    A batch of B steps is played by the teacher in `envs` environments side by side, actions drawn from softmax(t). The
    student sees no reward. In the paper the teacher is a deep Q-network and t its action values; here it is whatever
    the recipe trains.

    Args:
        envs: environments.
        temperature: τ of the teacher; below 1 it sharpens.
    """

    leaf = "learning/reinforcement"
    paper = "rusu2015policy"
    title = "Policy distillation"
    control = "kd"
    needs = frozenset({"teacher"})
    terms = ("kd",)
    survey: ClassVar = {
        "knowledge": "sharpened action scores on the teacher's own states",
        "objective": "KL(t/τ, s)",
    }

    def __init__(self, envs: Count = 8, temperature: Temperature = 0.01, **kwargs: Any) -> None:
        super().__init__(envs=envs, **kwargs)
        self.temperature = temperature

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        play = self.play.at(self.epoch, self.device)
        said: list[Tensor] = []

        def act(seen: Tensor) -> Tensor:
            said.append(self.teacher_out(seen).logits)
            return play.sampled(said[-1])

        x = play.rollout(len(batch), act).x.flatten(0, 1)
        yield "student", {"kd": policy_loss(self.student_out(x).logits, torch.cat(said), self.temperature)}
