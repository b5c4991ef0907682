"""SSKD: knowledge distillation meets self-supervision (Xu et al., ECCV 2020, arXiv:2006.07114)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import cross_entropy, in_float32, kl
from kdbench.method import Method, Player, Stage
from kdbench.settings import Share, Temperature
from kdbench.taps import Spec, Taps

ROTATIONS = 4
"""Views of an image: itself, and turned by 90, 180 and 270 degrees."""


def rotated(x: Tensor) -> Tensor:
    """Images (B, C, H, W), each followed by its rotations: (4 B, C, H, W). Square images only."""
    return torch.stack([x.rot90(k, (2, 3)) for k in range(ROTATIONS)], 1).flatten(0, 1)


def split(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(rows of the plain images (B, ...), those of their rotations (3 B, ...)) of what `rotated` images gave."""
    views = rows.unflatten(0, (-1, ROTATIONS))
    return views[:, 0], views[:, 1:].flatten(0, 1)


@in_float32
def similarity(projected: Tensor) -> Tensor:
    """Cosines between every rotation and every plain image, (3 B, B), of projections (4 B, D)."""
    plain, turned = split(F.normalize(projected, dim=1, eps=1e-8))
    return turned @ plain.T


def sources(images: int, device: torch.device | None = None) -> Tensor:
    """For each of the 3 B rotations the plain image that it belongs to, (3 B,)."""
    return torch.arange(images, device=device).repeat_interleave(ROTATIONS - 1)


def selected(scores: Tensor, right: Tensor, ratio: float) -> Tensor:
    """The rows of the teacher's `scores` (N, M) that are transferred, bool, (N,).

    All rows whose largest score is the `right` one (N,), and of the others the `ratio` in which it ranks best (rounded
    down; ties by position). The paper's "top 75 %" are of the *wrong* rows (the authors' code).
    """
    rank = (scores > scores.gather(1, right[:, None])).sum(1)
    wrong = (rank > 0).sum()
    place = rank.argsort(stable=True).argsort()
    return place < len(scores) - wrong + (ratio * wrong).floor()


@in_float32
def selected_kl(student: Tensor, teacher: Tensor, rows: Tensor, temperature: float) -> Tensor:
    """T² · KL( softmax(t / T) || softmax(s / T) ), summed over the axis 1, averaged over the selected `rows` (N,).

    No gradient reaches `teacher`.
    """
    log_p, log_q = ((x / temperature).log_softmax(1) for x in (student, teacher.detach()))
    each = (log_q.exp() * (log_q - log_p)).sum(1)
    return temperature**2 * (each * rows).sum() / rows.sum().clamp(min=1)


def projection(features: int) -> nn.Sequential:
    """From pooled features (B, D) to the space where views are compared, (B, D) (wrapper.py of the authors' code)."""
    return nn.Sequential(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, features))


class SSKD(Method):
    """The teacher's similarities between rotated and plain images are transferred beside its logits.

    Stage ``head``:    a projection of the frozen teacher's features learns CE( A_t, source of the rotation )
    Stage ``distil``:  L = a · CE(y, s) + b · KL_T(t, s) on plain images
                           + c · KL_T(t, s) on rotated ones + d · KL_T'(A_t, A_s)

    A are the `similarity` values of projected features. Of the last two terms only the `selected` rows count. Each step
    shows every image four times, so it costs four forward passes of both networks.

    Args:
        head_share: share of the epochs in which the teacher's projection is trained, within the protocol's budget.
        temperature, rotated_temperature, similarity_temperature: T of the three divergences.
        rotated_ratio, similarity_ratio: share of the wrong rows that are transferred too.
    """

    leaf = "learning/semi-self-supervised"
    paper = "xu2020knowledge"
    title = "SSKD"
    taps = Taps(student=("embed",), teacher=("embed",))
    terms = ("head", "ce", "kd", "rotated", "similarity")
    survey: ClassVar = {
        "supervision": "self-supervised",
        "labelled_data": "all",
        "consistency": "KL of similarities between views",
    }

    def __init__(
        self,
        head_share: Share = 0.2,
        temperature: Temperature = 4.0,
        rotated_temperature: Temperature = 4.0,
        similarity_temperature: Temperature = 0.5,
        rotated_ratio: Share = 1.0,
        similarity_ratio: Share = 0.75,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.head_share, self.temperature = head_share, temperature
        self.rotated_temperature, self.similarity_temperature = rotated_temperature, similarity_temperature
        self.rotated_ratio, self.similarity_ratio = rotated_ratio, similarity_ratio

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        if data.shape[1] != data.shape[2]:
            raise DoesNotFit(f"SSKD turns images, and those of {data.shape} are not square: choose another data set.")
        self.student_head = projection(student.channels("embed"))
        self.teacher_head = projection(teacher.channels("embed"))

    def stages(self) -> Sequence[Stage]:
        return (Stage("head", self.head_share), Stage("distil", 1 - self.head_share))

    def players(self) -> Sequence[Player]:
        if self.stage == "head":
            return (Player("head", list(self.teacher_head.parameters())),)
        return (Player("student", [*self.student.parameters(), *self.student_head.parameters()]),)

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        x, source = rotated(batch.x), sources(len(batch), batch.x.device)
        t = self.teacher_out(x)
        a_t = similarity(self.teacher_head(t.embed))
        if self.stage == "head":
            yield "head", {"head": cross_entropy(a_t, source)}
            return
        s = self.student_out(x)
        (plain, turned), (t_plain, t_turned) = split(s.logits), split(t.logits)
        known = selected(t_turned, batch.y.repeat_interleave(ROTATIONS - 1), self.rotated_ratio)
        found = selected(a_t, source, self.similarity_ratio)
        a_s = similarity(self.student_head(s.embed))
        yield (
            "student",
            {
                "ce": cross_entropy(plain, batch.y),
                "kd": kl(plain, t_plain, self.temperature),
                "rotated": selected_kl(turned, t_turned, known, self.rotated_temperature),
                "similarity": selected_kl(a_s, a_t, found, self.similarity_temperature),
            },
        )
