"""Confidence-aware multi-teacher knowledge distillation (Zhang, Chen, Wang, ICASSP 2022, arXiv:2201.00007)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import cross_entropy, in_float32
from kdbench.taps import Out, Spec, Taps
from methods.multi_teacher.pool import Pool, logits_of, tap_of_each, weighted_members_loss


@in_float32
def confidence_weights(logits: Sequence[Tensor], y: Tensor) -> Tensor:
    """w_k(n) = ( 1 - softmax over k of CE(y, logits_k)(n) ) / (m - 1), (m, B), of logits (B, K): who errs counts less.

    Over the teachers they sum to 1.
    """
    errors = torch.stack([cross_entropy(each, y, reduction="none") for each in logits])
    return (1 - errors.softmax(0)) / (len(errors) - 1)


@in_float32
def camkd_loss(student: Tensor, teachers: Sequence[Tensor], y: Tensor, temperature: float = 4.0) -> Tensor:
    """`weighted_members_loss` with the teachers' own `confidence_weights`, of logits (B, K)."""
    return weighted_members_loss(student, teachers, confidence_weights(teachers, y), temperature)


@in_float32
def camkd_feature_loss(guided: Sequence[Tensor], hints: Sequence[Tensor], weights: Tensor) -> Tensor:
    """1/(B·m) · Σ_n Σ_k w_k(n) · mean over C·H·W of (g_k(n) - f_k(n))², as in distiller_zoo/CAMKD.py.

    Args:
        guided, hints: the student's maps in the shape of each teacher's, and these, (B, C, H, W).
        weights: (m, B).
    """
    squares = [(g - f).square().flatten(1).mean(1) for g, f in zip(guided, hints, strict=True)]
    return (weights * torch.stack(squares)).mean()


class Guide(nn.Module):
    """The student's map in the shape of a teacher's: pooled or interpolated, 1x1 convolution, batch norm, ReLU."""

    def __init__(self, student: tuple[int, ...], teacher: tuple[int, ...]) -> None:
        super().__init__()
        _, self.height, self.width = teacher
        self.embed = nn.Sequential(nn.Conv2d(student[0], teacher[0], 1), nn.BatchNorm2d(teacher[0]), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] >= self.height:
            sized = F.adaptive_avg_pool2d(x, (self.height, self.width))
        else:
            sized = F.interpolate(x, (self.height, self.width), mode="bilinear")
        embedded: Tensor = self.embed(sized)
        return embedded


class CAMKD(Pool):
    """L = CE(y, s) + α · `camkd_loss` + β · `camkd_feature_loss`, teachers weighed by their confidence in the label.

    In the last term g_k = `Guide`(student's last map), and teacher k counts by the `confidence_weights` of its
    classifier on g_k: by how well the student, through that teacher's eyes, knows the label. As in the authors' code
    gradients flow through these weights, too; unlike there, the term counts from the first epoch on.
    """

    leaf = "multi-teacher/ensemble-of-logits"
    paper = "zhang2022confidence"
    title = "CA-MKD"
    extension = True
    taps = Taps(student=("stage-1",), teacher=("stage-1",))
    terms = ("ce", "kd", "feature")
    least = 2
    survey: ClassVar = {
        "ensemble_logits": "weighted by the error, for each sample",
        "ensemble_features": "weighted by the classifier's error on the student's features",
        "unify_data": "no",
        "customize": "no",
        "peers": "no",
        "online": "no",
        "objective": "CE + weighted KL + weighted MSE",
    }

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        super().build(student, teacher, data)
        self.own, self.theirs = tap_of_each("stage-1", student, self.teachers)
        shapes = [spec.shapes[tap] for spec, tap in zip(self.teachers, self.theirs, strict=True)]
        self.guides = nn.ModuleList(Guide(student.shapes[self.own], shape) for shape in shapes)
        # a tuple hides the teachers' weights from nn.Module
        self.classifiers = tuple(map(classifier_of, self.teachers, self.theirs))

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        guided = [guide(s[self.own]) for guide in self.guides]
        hints = [each[tap] for each, tap in zip(t.each, self.theirs, strict=True)]
        told = [classifier(g) for classifier, g in zip(self.classifiers, guided, strict=True)]
        return {
            "ce": cross_entropy(s.logits, batch.y),
            "kd": camkd_loss(s.logits, logits_of(t), batch.y, self.temperature),
            "feature": camkd_feature_loss(guided, hints, confidence_weights(told, batch.y)),
        }


def classifier_of(teacher: Spec, tap: str) -> nn.Module:
    """What makes logits of the teacher's last map.

    Raises:
        DoesNotFit: the teacher cannot be cut there.
    """
    if not hasattr(teacher.net, "tail"):
        raise DoesNotFit("this teacher cannot be cut behind a stage: choose a pair of the zoo's image classifiers.")
    return teacher.net.tail(tap)  # type: ignore[operator,union-attr]
