"""PATE: private aggregation of teacher ensembles (Papernot et al., ICLR 2017, arXiv:1610.05755)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy
from kdbench.method import Method, Stage
from kdbench.taps import Out, Spec
from methods.multi_teacher.average import all_of_one_mind
from methods.multi_teacher.pool import images_of, logits_of


def noisy_votes(teachers: Sequence[Tensor], noise: Tensor) -> Tensor:
    """argmax_j { n_j + noise_j } (equation 1), (B,): n_j teachers have their largest logit (B, K) at class j.

    Args:
        noise: (B, K), in votes.
    """
    votes = torch.zeros_like(noise)
    for logits in teachers:
        rows = torch.arange(len(logits), device=logits.device)
        votes[rows, logits.argmax(1)] += 1
    return (votes + noise).argmax(1)


def laplace(shape: Sequence[int], scale: float, rng: torch.Generator) -> Tensor:
    """Laplacian noise around 0, float32: the difference of two exponential variables."""
    one, other = torch.empty(2, *shape).exponential_(generator=rng)
    return scale * (one - other)


class PATE(Method):
    """L = CE(ŷ, s), with ŷ by `noisy_votes` of the teachers, cast once for each image; no labels of its own.

    The images of the cell are the public ones, on all of which the teachers vote before training, with Laplacian noise
    of scale 1/γ. What makes the aggregate private is that no two teachers have seen the same data: that is up to their
    recipes (``teacher.dataset.scenario`` and ``teachers=[{dataset: {scenario: ...}}]``), and without it only the
    mechanism is the paper's. It spends 2γ of the privacy budget for each image, which is not accounted for here. The
    paper's student also learns from images that it did not ask about, by a GAN (PATE-G); this one does not.

    Args:
        noise: 1/γ as a share of the number of teachers.
    """

    leaf = "multi-teacher/ensemble-of-logits"
    paper = "papernot2016semi"
    title = "PATE"
    needs = frozenset({"teachers"})
    terms = ("ce",)
    survey: ClassVar = {
        "ensemble_logits": "noisy vote",
        "ensemble_features": "none",
        "unify_data": "yes",
        "customize": "no",
        "peers": "no",
        "online": "no",
        "objective": "CE with the vote",
    }
    voted: Tensor

    def __init__(self, noise: Annotated[float, Field(ge=0)] = 0.08, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.noise = noise

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        all_of_one_mind("PATE", self.teachers)
        self.register_buffer("voted", torch.zeros(images_of("PATE", data), dtype=torch.long))

    def stages(self) -> Sequence[Stage]:
        return (Stage("vote", 0, self.vote), Stage("train"))

    @torch.no_grad()
    def vote(self) -> None:
        for index in self.positions().split(self.protocol.batch_size):
            told = logits_of(self.teacher_out(self.take(index, plain=True).for_teacher.x))
            noise = laplace(told[0].shape, self.noise * len(told), self.rng).to(told[0])
            self.voted[index] = noisy_votes(told, noise)

    def teach(self, batch: Batch) -> Out | None:
        return None  # they are asked once

    def losses(self, s: Out, t: Out | None, batch: Batch) -> dict[str, Tensor]:
        return {"ce": cross_entropy(s.logits, self.voted[batch.index])}
