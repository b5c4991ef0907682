"""Knowledge review (Chen, Liu, Zhao, Jia, CVPR 2021, arXiv:2104.09044)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method
from kdbench.settings import Count
from kdbench.taps import Out, Spec, Taps, aligned
from methods.intermediate.connector import conv_norm

LEVELS = (4, 2, 1)
"""Sizes of the pooled maps that are compared beside the whole ones."""


@in_float32
def hcl_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Hierarchical context loss of two maps (B, C, H, W): [ MSE + Σ_k 2⁻ᵏ · MSE of the k-th pooling ] / (1 + Σ_k 2⁻ᵏ).

    Maps are average-pooled to those of `LEVELS` that are smaller than H; each MSE is a mean over all its elements. As
    in dvlab-research/ReviewKD a level that is left out does not count as k.
    """
    sizes = [None, *(size for size in LEVELS if size < student.shape[2])]
    shares = [0.5**k for k in range(len(sizes))]

    def pooled(x: Tensor, size: int | None) -> Tensor:
        return x if size is None else F.adaptive_avg_pool2d(x, size)

    errors = torch.stack([F.mse_loss(pooled(student, size), pooled(teacher, size)) for size in sizes])
    return errors @ errors.new_tensor(shares) / sum(shares)


class ABF(nn.Module):
    """Attention-based fusion of a student's map with what was reviewed of the deeper ones.

    z = a · conv(s) + b · up(r), with the maps (a, b) = sigmoid( conv1x1[conv(s); up(r)] ); z is resized (nearest) to
    the teacher's map, and a 3x3 convolution makes the teacher's channels of it. The deepest fuses nothing: z = conv(s).

    Args:
        student, middle, teacher: channels of s, of z and of the teacher's map.
        fuses: whether there is a deeper one.
    """

    def __init__(self, student: int, middle: int, teacher: int, fuses: bool) -> None:
        super().__init__()
        self.reduce = nn.Sequential(*conv_norm(student, middle))
        self.attention = nn.Conv2d(2 * middle, 2, 1) if fuses else None
        self.expand = nn.Sequential(*conv_norm(middle, teacher, 3))
        for part in (self.reduce, self.expand):
            nn.init.kaiming_uniform_(part[0].get_parameter("weight"), a=1)  # the authors' code

    def forward(self, s: Tensor, reviewed: Tensor | None, size: torch.Size) -> tuple[Tensor, Tensor]:
        """(compared with the teacher, z for the next shallower one), both of the teacher's `size`, (H, W)."""
        z = self.reduce(s)
        if self.attention is not None and reviewed is not None:
            reviewed = F.interpolate(reviewed, z.shape[2:], mode="nearest")
            own, deeper = self.attention(torch.cat([z, reviewed], dim=1)).sigmoid().split(1, dim=1)
            z = z * own + reviewed * deeper
        if z.shape[2:] != size:
            z = F.interpolate(z, size, mode="nearest")
        return self.expand(z), z


def as_map(x: Tensor) -> Tensor:
    """Pooled features (B, D) as maps of one pixel."""
    return x if x.dim() == 4 else x[:, :, None, None]


class ReviewKD(Method):
    """L = CE(y, s) + β · Σ_levels `hcl_loss`( ABF of this and all deeper student's maps, t ).

    Levels are the ends of the stages and the pooled features; the teacher's are taken before their ReLU, the student's
    behind it. The review goes from the deepest to the shallowest, each `ABF` handing on what it has fused.

    Args:
        middle: most channels of what is handed on; no more than the student has pooled features.
    """

    leaf = "intermediate/features"
    paper = "chen2021distilling"
    title = "ReviewKD"
    extension = True
    taps = Taps(student=("stage*", "embed"), teacher=("pre*", "embed"))
    terms = ("ce", "review")
    survey: ClassVar = {
        "teacher_transform": "none",
        "student_transform": "attention-based fusion across stages",
        "knowledge": "feature maps, each also from deeper ones",
        "position": "before the ReLU of each stage; pooled features",
        "distance": "L2 of a pyramid of poolings",
        "lost": "none",
    }

    def __init__(self, middle: Count = 512, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.middle = middle

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        stages = [(own, taught.replace("stage", "pre")) for own, taught in aligned(student, teacher)]
        self.levels = [("embed", "embed"), *reversed(stages)]
        middle = min(self.middle, student.channels("embed"))
        self.fusions = nn.ModuleList(
            ABF(student.channels(own), middle, teacher.channels(taught), fuses=own != "embed")
            for own, taught in self.levels
        )

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        reviewed, terms = None, []
        for fusion, (own, taught) in zip(self.fusions, self.levels, strict=True):
            hint = as_map(t[taught])
            compared, reviewed = fusion(as_map(s[own]), reviewed, hint.shape[2:])
            terms.append(hcl_loss(compared, hint))
        return {"ce": cross_entropy(s.logits, batch.y), "review": torch.stack(terms).sum()}
