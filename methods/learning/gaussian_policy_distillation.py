"""Policy distillation of Gaussian policies (Rusu et al., ICLR 2016, arXiv:1511.06295).

The paper has finitely many actions; these two losses for vectors are those of Mee321/policy-distillation@6050ec1,
utils2/math.py, get_kl and get_wasserstein.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import in_float32
from kdbench.settings import Count
from kdbench.tasks.policy import gaussian
from methods.controls.gaussian_ppo import minibatches
from methods.controls.playing import Playing


@in_float32
def gaussian_kl_loss(mean: Tensor, std: Tensor, teacher_mean: Tensor, teacher_std: Tensor) -> Tensor:
    """KL( N(μ_t, σ_t²) || N(μ_s, σ_s²) ) = log(σ_s / σ_t) + (σ_t² + (μ_t - μ_s)²) / (2 σ_s²) - 1/2, all (B, A).

    Averaged over the batch *and* over the numbers of an action, as in the code: of whole actions it is A times this. No
    gradient reaches the teacher's side.
    """
    teacher_mean, teacher_std = teacher_mean.detach(), teacher_std.detach()
    apart = teacher_std.square() + (teacher_mean - mean).square()
    return (std.log() - teacher_std.log() + apart / (2 * std.square()) - 1 / 2).mean()


@in_float32
def root_distance_loss(mean: Tensor, std: Tensor, teacher_mean: Tensor, teacher_std: Tensor) -> Tensor:
    """‖ μ_s - μ_t ‖² + ‖ √σ_s - √σ_t ‖², summed over the batch (B) and the numbers of an action (A).

    The code calls it Wasserstein's distance, which compares the σ themselves.
    """
    teacher_mean, teacher_std = teacher_mean.detach(), teacher_std.detach()
    return (mean - teacher_mean).square().sum() + (std.sqrt() - teacher_std.sqrt()).square().sum()


class GaussianDemonstrated(Playing):
    """The teacher plays, and on the states that it meets the student learns from its mean and spread; a base.

    Args:
        envs: environments.
        passes: over each batch.
        minibatch: how many of its steps at a time; all by default.
    """

    leaf = "learning/reinforcement"
    paper = "rusu2015policy"
    needs = frozenset({"teacher"})
    tasks = frozenset({"gaussian-policy"})
    terms = ("kd",)
    added: ClassVar = {"passes": 1, "minibatch": None}
    earlier: ClassVar = frozenset({"45d30fd1cea2ba97debf1fb1022e1e07aeb3a8791749b0fea8cd03e3ef23c2c9"})

    def __init__(self, envs: Count = 8, passes: Count = 1, minibatch: Count | None = None, **kwargs: Any) -> None:
        super().__init__(envs=envs, **kwargs)
        self.passes, self.minibatch = passes, minibatch

    @abstractmethod
    def compared(self, policies: Sequence[Tensor]) -> Tensor:
        """The loss of the student's mean and spread and the teacher's, (B, A) each."""

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        play = self.play.at(self.epoch, self.device)
        said: list[Tensor] = []

        def act(seen: Tensor) -> Tensor:
            said.append(self.teacher_out(seen).logits)
            return play.drawn(*gaussian(said[-1]))

        x = play.rollout(len(batch), act).x.flatten(0, 1)
        teacher = torch.cat(said)
        for of in minibatches(len(x), self.passes, self.minibatch, self.rng):
            at = of.to(self.device)
            yield "student", {"kd": self.compared((*gaussian(self.student_out(x[at]).logits), *gaussian(teacher[at])))}


class GaussianPolicyDistillation(GaussianDemonstrated):
    """L = `gaussian_kl_loss` of student and teacher on the states that the teacher meets.

    A batch of B steps is played by the teacher in `envs` environments side by side, actions drawn from its policy, and
    learned from in `passes`. The student sees no reward. As in `policy_distillation`, the teacher is whatever the
    recipe trains.

    Args:
        envs: environments.
        passes: over each batch.
        minibatch: how many of its steps at a time; all by default.
    """

    title = "Policy distillation, Gaussian"
    control = "kd"
    survey: ClassVar = {
        "knowledge": "mean and spread of actions on the teacher's own states",
        "objective": "KL(N_t, N_s)",
    }

    def compared(self, policies: Sequence[Tensor]) -> Tensor:
        return gaussian_kl_loss(*policies)


class GaussianRootDistillation(GaussianDemonstrated):
    """L = `root_distance_loss` of student and teacher on the states that the teacher meets.

    A batch of B steps is played by the teacher in `envs` environments side by side, as in
    `GaussianPolicyDistillation`.

    Args:
        envs, passes, minibatch: as there.
    """

    title = "Policy distillation, Gaussian, roots"
    survey: ClassVar = {
        **GaussianPolicyDistillation.survey,
        "objective": "distances of means, and of the roots of spreads",
    }

    def compared(self, policies: Sequence[Tensor]) -> Tensor:
        return root_distance_loss(*policies)
