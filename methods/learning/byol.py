"""BYOL: bootstrap your own latent (Grill et al., NeurIPS 2020, arXiv:2006.07733)."""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import in_float32
from kdbench.plan import allocate
from kdbench.settings import Count, Share
from kdbench.taps import Spec, Taps
from methods.learning.linear_probe import LinearProbe
from methods.learning.mean_teacher import follow


@in_float32
def latent_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean over B of ‖ p / ‖p‖ - z / ‖z‖ ‖² = 2 - 2 · cosine, for (B, D) (equation 2); no gradient reaches `target`."""
    return 2 - 2 * F.cosine_similarity(prediction, target.detach(), dim=1).mean()


def target_decay(progress: float, base: float) -> float:
    """1 - (1 - τ_base) · (cos(π k / K) + 1) / 2 for the `progress` k / K: the target slows down, and stands still."""
    return 1 - (1 - base) * (math.cos(math.pi * progress) + 1) / 2


def projector(features: int, hidden: int, size: int) -> nn.Sequential:
    """Linear layer, batch norm, ReLU, linear layer: also the predictor."""
    return nn.Sequential(nn.Linear(features, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, size))


class BYOL(LinearProbe):
    """The student predicts what an average of itself sees in another view; no teacher, no labels, no negatives.

    L = `latent_loss`( q(g(f(x))), g'(f'(x')) ) + `latent_loss`( q(g(f(x'))), g'(f'(x)) )

    for two views x and x', and then a linear classifier on f (see `LinearProbe`). f' and g' are averages of the
    student's features f and of the projector g; the predictor q is the student's alone. Views are the data set's own:
    without the paper's changes of colour and scale much less is to be learned from them. The target's decay changes
    with each epoch, the paper's with each step. The last layers of g and q have biases, the authors' have none.

    Args:
        hidden, size: widths of projector and predictor.
        decay: τ_base of the target at first.
        linear_share: share of the epochs in which the classifier is trained, within the protocol's budget.
    """

    leaf = "learning/semi-self-supervised"
    paper = "grill2020bootstrap"
    title = "BYOL"
    needs = frozenset({"labels", "again"})
    taps = Taps(student=("embed",))
    terms = ("latent", "linear")
    survey: ClassVar = {
        "supervision": "self-supervised",
        "labelled_data": "all, for a linear classifier alone",
        "consistency": "cosine to the averaged student's projection of another view",
    }

    def __init__(
        self, hidden: Count = 4096, size: Count = 256, decay: Share = 0.996, linear_share: Share = 0.25, **kwargs: Any
    ) -> None:
        super().__init__(linear_share=linear_share, **kwargs)
        self.hidden, self.size, self.decay = hidden, size, decay

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        super().build(student, teacher, data)
        self.projector = projector(student.channels("embed"), self.hidden, self.size)
        self.predictor = projector(self.size, self.hidden, self.size)
        self.target = copy.deepcopy(self.student).requires_grad_(False)
        self.target_projector = copy.deepcopy(self.projector).requires_grad_(False)

    def features_terms(self, batch: Batch) -> dict[str, Tensor]:
        views = batch.x, batch["again"].x
        predictions = [self.predictor(self.projector(self.student_out(x).embed)) for x in views]
        with torch.no_grad():
            targets = [self.target_projector(self.teacher_out(x, self.target).embed) for x in reversed(views)]
        return {"latent": latent_loss(predictions[0], targets[0]) + latent_loss(predictions[1], targets[1])}

    def after_step(self, batch: Batch) -> None:
        if self.stage == "features":
            (_, epochs), _ = allocate([stage.share for stage in self.stages()], self.protocol.epochs)
            decay = target_decay(min(self.epoch / epochs, 1.0), self.decay)
            follow(self.target, self.student, decay)
            follow(self.target_projector, self.projector, decay)
