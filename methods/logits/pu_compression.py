"""Positive-unlabeled compression (Xu et al., NeurIPS 2019, arXiv:1909.09757)."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import in_float32
from kdbench.method import Method, Player, Snapshot, Stage
from kdbench.settings import Positive, Share
from kdbench.taps import Spec


@in_float32
def pu_loss(positive: Tensor, unlabelled: Tensor, prior: float) -> Tensor:
    """π · E_p[ℓ(g)] + max( 0, E_u[ℓ(-g)] - π · E_p[ℓ(-g)] ), ℓ(g) = sigmoid(-g): the risk of a classifier g, (B,) each.

    The second part is the risk of negatives, which are not seen. Where it is below zero it is not believed: then the
    gradient is that of raising it, -( E_u - π E_p ), alone (huawei-noah, pu_compress/loss.py, β = 0, γ = 1).

    Args:
        positive, unlabelled: scores g of positive samples and of unknown ones.
        prior: π, the share of positives among the unknown.
    """
    own = prior * (-positive).sigmoid().mean()
    negative = unlabelled.sigmoid().mean() - prior * positive.sigmoid().mean()
    below = own.detach() + negative.detach() - negative  # the value of `own`
    return torch.where(negative < 0, below, own + negative)


@in_float32
def class_weights(mass: Tensor) -> Tensor:
    """K · (1 / m_c) / Σ_k (1 / m_k), (K,), of the sums of a teacher's probabilities over the data: rare classes count
    more."""
    inverse = 1 / mass.clamp(min=torch.finfo(mass.dtype).eps)
    return len(mass) * inverse / inverse.sum()


@in_float32
def robust_loss(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """max_j 1 / B · Σ_b w_j[argmax t_b] · KL( softmax(t_b) || softmax(s_b) ): the worst of several class weights.

    Args:
        student, teacher: logits, (B, K).
        weights: (J, K).
    """
    rows = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True).sum(1)
    return (weights[:, teacher.argmax(1)] * rows).mean(1).max()


def again(chosen: Tensor) -> Tensor:
    """Positions of the chosen (B,), in order, and from the first on again until there are B."""
    order = (~chosen).sort(stable=True).indices
    return order[torch.arange(len(chosen), device=chosen.device) % chosen.sum().clamp(min=1)]


class Selector(nn.Module):
    """A score of images: pooled stages of a network, each channel times its attention, and a linear layer.

    It has but the tap ``logits``, (B, 1).
    """

    def __init__(self, net: nn.Module, stages: Sequence[str], channels: int) -> None:
        super().__init__()
        self.net, self.stages = copy.deepcopy(net).requires_grad_(True).train(), tuple(stages)
        squeezed = max(channels // 16, 1)
        self.attention = nn.Sequential(
            nn.Linear(channels, squeezed, bias=False),
            nn.ReLU(),
            nn.Linear(squeezed, channels, bias=False),
            nn.Sigmoid(),
        )
        self.score = nn.Linear(channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        taps = self.net.tap(x, self.stages)  # type: ignore[operator]
        scales = torch.cat([taps[name].mean((2, 3)) for name in self.stages], dim=1)
        score: Tensor = self.score(scales * self.attention(scales))
        return score

    def tap(self, x: Tensor, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """As of `kdbench.taps.Net`."""
        return {"logits": self(x)}


class PUCompression(Method):
    """Few images of the teacher's classes find their like among many unlabelled ones; the student learns from both.

    Stage select:  L = `pu_loss`(g(x), g(u)) of a classifier g, a copy of the teacher that is trained on
    Stage distil:  L = `robust_loss`(s, t, W) on all x and on those u that g takes for positive, g(u) > 0

    with x the batch and u the stream of unlabelled images; no labels. W has the `class_weights` and some perturbed
    ones, w + ε · uniform. Their sums run over what was seen so far, where the authors' are taken once, before the
    stage. Of each batch as many images pass the student as were shown: those that were chosen, again where they are
    fewer, so that its batch norms see no others.

    Args:
        select: the share of the epochs that the classifier is trained.
        prior: π.
        lr, weight_decay: of the classifier's SGD, with momentum 0.9 and without schedule.
        epsilon: ε.
        perturbations: how many perturbed weights there are.
    """

    leaf = "logits/noisy-labels"
    paper = "xu2019positive"
    title = "PU compression"
    needs = frozenset({"teacher", "unlabelled"})
    terms = ("pu", "kd")
    survey: ClassVar = {
        "description": "unlabelled images that a classifier takes for the teacher's, weighted by class",
        "objective": "max_w Σ w(t) KL(t, s)",
    }
    mass: Tensor
    noise: Tensor

    def __init__(
        self,
        select: Annotated[float, Field(gt=0, lt=1)] = 0.46,
        prior: Share = 0.21,
        lr: Positive = 1e-3,
        weight_decay: Annotated[float, Field(ge=0)] = 5e-3,
        epsilon: Annotated[float, Field(ge=0)] = 0.1,
        perturbations: Annotated[int, Field(ge=0)] = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.select, self.prior, self.lr, self.weight_decay = select, prior, lr, weight_decay
        self.epsilon, self.perturbations = epsilon, perturbations

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        assert teacher.net is not None
        stages = teacher.all("stage")
        if not stages:
            raise DoesNotFit(f"PU compression reads the teacher's stages, and {teacher.name} has none: choose another.")
        self.classifier = Selector(teacher.net, stages, sum(teacher.channels(name) for name in stages))
        self.selector = Snapshot(self.classifier)
        self.register_buffer("mass", torch.zeros(data.num_classes))
        self.register_buffer("noise", torch.zeros(1 + self.perturbations, data.num_classes))

    def stages(self) -> Sequence[Stage]:
        return (Stage("select", self.select), Stage("distil", 1 - self.select, self.choose))

    def choose(self) -> None:
        self.selector.take(self.classifier)
        drawn = torch.rand(self.perturbations, len(self.mass), generator=self.rng)
        self.noise[1:] = self.epsilon * drawn.to(self.noise)

    def players(self) -> Sequence[Player]:
        if self.stage == "distil":
            return (Player("student", list(self.student.parameters())),)
        sgd = {"_target_": "torch.optim.SGD", "lr": self.lr, "momentum": 0.9, "weight_decay": self.weight_decay}
        return (Player("classifier", list(self.classifier.parameters()), sgd),)

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        x = torch.cat([batch.x, batch["unlabelled"].x])
        if self.stage == "select":
            scores = self.student_out(x, self.classifier).logits.squeeze(1)
            yield "classifier", {"pu": pu_loss(scores[: len(batch)], scores[len(batch) :], self.prior)}
            return
        taken = self.teacher_out(batch["unlabelled"].x, self.selector).logits.squeeze(1) > 0
        chosen = torch.cat([taken.new_ones(len(batch)), taken])
        t = self.teacher_out(x).logits
        self._step_saw = self.mass + (t.float().softmax(1) * chosen[:, None]).sum(0)
        rows = again(chosen)
        s = self.student_out(x[rows]).logits
        yield "student", {"kd": robust_loss(s, t[rows], class_weights(self._step_saw) + self.noise)}

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        if self.stage == "distil":
            self.mass.copy_(self._step_saw)
