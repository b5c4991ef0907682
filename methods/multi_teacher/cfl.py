"""Knowledge amalgamation by common feature learning (Luo et al., IJCAI 2019, arXiv:1906.10546)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import in_float32, kl
from kdbench.method import Method
from kdbench.taps import Out, Spec, Taps
from methods.multi_teacher.uhc import known_classes

SIGMAS = (0.001, 0.01, 0.05, 0.1, 0.2, 1.0, 2.0)
"""zju-vipa/KamalEngine: kamal/amalgamation/common_feature.py."""


@in_float32
def mmd_loss(a: Tensor, b: Tensor, sigmas: Sequence[float] = SIGMAS) -> Tensor:
    """Squared maximum mean discrepancy of two sets of codes with B rows each, with a sum of Gaussian kernels.

    mean_ij k(a_i, a_j) + mean_ij k(b_i, b_j) - 2 · mean_ij k(a_i, b_j), the diagonals included, never negative;
    k(u, v) = Σ_σ exp(-‖u - v‖² / 2σ²) of rows that are flattened and divided by their 2-norm.
    """
    a, b = F.normalize(a.flatten(1), dim=1), F.normalize(b.flatten(1), dim=1)

    def kernel(u: Tensor, v: Tensor) -> Tensor:
        distance = (u[:, None] - v).square().sum(2).clamp(min=1e-12)
        return torch.stack([(-distance / (2 * sigma**2)).exp() for sigma in sigmas]).sum(0).mean()

    return (kernel(a, a) + kernel(b, b) - 2 * kernel(a, b)).relu()


@in_float32
def reconstruction_loss(decoded: Tensor, teacher: Tensor) -> Tensor:
    """Mean over elements of (d(c) - t)²: can the common code still tell the teacher's feature?"""
    return F.mse_loss(decoded, teacher)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norms beside the identity, (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()


class CommonSpace(nn.Module):
    """A code for the student's feature and for each teacher's, by one extractor behind layers of their own.

    Features are maps, (C, H, W) of one size, or vectors, (D,).

    Args:
        student: shape of its feature.
        teachers: shapes of theirs.
        channels: of the code.
    """

    def __init__(self, student: tuple[int, ...], teachers: Sequence[tuple[int, ...]], channels: int) -> None:
        super().__init__()

        def aligned(width: int) -> nn.Sequential:
            if len(student) == 1:
                return nn.Sequential(nn.Linear(width, channels), nn.ReLU())
            return nn.Sequential(nn.Conv2d(width, channels, 1), nn.BatchNorm2d(channels), nn.ReLU())

        def decoder(width: int) -> nn.Sequential:
            if len(student) == 1:
                return nn.Sequential(nn.Linear(channels, width), nn.ReLU(), nn.Linear(width, width))
            first = [nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.ReLU()]
            return nn.Sequential(*first, nn.Conv2d(channels, width, 1))

        self.align_s = aligned(student[0])
        self.align_t = nn.ModuleList(aligned(shape[0]) for shape in teachers)
        if len(student) == 1:
            layers = [nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels)]
            self.extractor = nn.Sequential(*layers)
        else:
            self.extractor = nn.Sequential(ResidualBlock(channels), ResidualBlock(channels))
        self.decoders = nn.ModuleList(decoder(shape[0]) for shape in teachers)

    def forward(self, student: Tensor, teachers: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """(the student's code, the teachers' codes, their features as decoded from these)."""
        codes = [self.extractor(align(t)) for align, t in zip(self.align_t, teachers, strict=True)]
        decoded = [decode(code) for decode, code in zip(self.decoders, codes, strict=True)]
        return self.extractor(self.align_s(student)), codes, decoded


@in_float32
def joined(teachers: Sequence[Tensor], classes: Sequence[Sequence[int]], num_classes: int) -> Tensor:
    """Logits over the union of the teachers' classes, (B, num_classes): of a class that several know, their mean.

    Args:
        teachers: logits of each over its own classes, (B, K_k).
        classes: what their outputs mean.
    """
    told = torch.cat(list(teachers), dim=1)
    place = torch.tensor([label for own in classes for label in own], device=told.device)
    total = told.new_zeros(len(told), num_classes).index_add(1, place, told)
    return total / torch.bincount(place, minlength=num_classes)


class CFL(Method):
    """One student for the classes of all teachers, by their soft targets and a feature space that all of them share.

    L = KL( softmax(`joined`(t)) || softmax(s) ) + Σ_k `mmd_loss`(c_s, c_k) + Σ_k `reconstruction_loss`(d_k(c_k), f_k)

    with the teachers' features f_k, and codes c and decoders d of a `CommonSpace`, which learns with the student, on
    the teachers' side too; no labels.

    Args:
        tap: which features are made common: a stage's maps (of the size of the smallest), or ``embed``.
    """

    leaf = "multi-teacher/amalgamation"
    paper = "luo2019knowledge"
    title = "CFL"
    needs = frozenset({"teachers"})
    terms = ("kd", "common", "reconstruction")
    survey: ClassVar = {
        "ensemble_logits": "concatenated logits",
        "ensemble_features": "common feature space",
        "unify_data": "yes",
        "customize": "yes",
        "peers": "no",
        "online": "no",
        "objective": "KL + MMD + reconstruction",
    }

    def __init__(self, tap: str = "stage-1", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.taps = Taps(student=(tap,), teacher=(tap,))

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.classes = known_classes(self.teachers, data)
        self.own, *self.theirs = (spec.resolve(self.taps.student)[0] for spec in (student, *self.teachers))
        own = student.shapes[self.own]
        theirs = [spec.shapes[tap] for spec, tap in zip(self.teachers, self.theirs, strict=True)]
        if len({len(shape) for shape in (own, *theirs)}) > 1:
            raise DoesNotFit("CFL makes maps or vectors common, not both: choose another tap (method.cfl.tap).")
        self.size = tuple(map(min, *(shape[1:] for shape in (own, *theirs))))
        self.space = CommonSpace(own, theirs, channels=max(own[0] // 4, 1))

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        def sized(x: Tensor) -> Tensor:
            return F.adaptive_avg_pool2d(x, self.size) if self.size else x

        theirs = [sized(each[tap]) for each, tap in zip(t.each, self.theirs, strict=True)]
        code, codes, decoded = self.space(sized(s[self.own]), theirs)
        told = joined([each.logits for each in t.each], self.classes, s.logits.shape[1])
        back = [reconstruction_loss(d, feature) for d, feature in zip(decoded, theirs, strict=True)]
        return {
            "kd": kl(s.logits, told),
            "common": torch.stack([mmd_loss(code, other) for other in codes]).sum(),
            "reconstruction": torch.stack(back).sum(),
        }
