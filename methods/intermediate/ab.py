"""Activation boundaries formed by hidden neurons (Heo, Lee, Yun, Choi, AAAI 2019, arXiv:1811.03233)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import in_float32, kl
from kdbench.method import Method, Stage
from kdbench.settings import Positive, Share, Temperature
from kdbench.taps import Out, Spec, Taps, aligned
from methods.intermediate.fitnet import Regressor

Variant = Literal["authors", "zoo"]


@in_float32
def beyond(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    """What each neuron lacks to be on the teacher's side of its boundary by a margin μ, squared; of any one shape.

    (s + μ)² [s > -μ] where the teacher's neuron is not active, t <= 0, and (s - μ)² [s <= μ] where it is.
    Both are values before a ReLU, so that the sign of t says whether it is active; how much, does not matter.
    """
    silent = (student + margin).square() * ((student > -margin) & (teacher <= 0))
    active = (student - margin).square() * ((student <= margin) & (teacher > 0))
    return silent + active


@in_float32
def ab_loss(
    students: Sequence[Tensor], teachers: Sequence[Tensor], margin: float = 1.0, variant: Variant = "authors"
) -> Tensor:
    """`beyond` of layers i = 1..n, maps (B, C_i, H_i, W_i) before their ReLU, the student's as wide as the teacher's.

    In the authors' code Σ_i 2^(i - n) · (sum over C_i·H_i·W_i, averaged over B); in AberHu/Knowledge-Distillation-Zoo
    the sum over layers of means over all elements.
    """
    costs = [beyond(s, t, margin) for s, t in zip(students, teachers, strict=True)]
    if variant == "zoo":
        return torch.stack([cost.mean() for cost in costs]).sum()
    sums = [cost.flatten(1).sum(1).mean() / 2**depth for depth, cost in enumerate(reversed(costs))]
    return torch.stack(sums).sum()


def connector(student: tuple[int, ...], teacher: tuple[int, ...]) -> nn.Module:
    """From the student's map, (C, H, W), to the shape of the teacher's: RepDistiller's (models/util.py, Connector).

    The identity where shapes agree, else a convolution and a batch norm as FitNet's regressor has them. The authors'
    pair has equal sizes: there it is a 1x1 convolution.
    """
    if student == teacher:
        return nn.Identity()
    if student[1] < teacher[1] != 2 * student[1]:
        raise DoesNotFit(
            f"AB cannot connect a {student[1]}x{student[2]} map with one of {teacher[1]}x{teacher[2]}: choose another "
            "pair, whose sizes are equal at each stage or differ by a factor of two."
        )
    return Regressor(student, teacher, use_relu=False)


class AB(Method):
    """Two stages: the student's neurons first learn on which side they shall be, then the network is distilled.

    Stage ``boundary``:  L = γ · `ab_loss`
    Stage ``distil``:    L = T² · KL( softmax(t / T) || softmax(s / T) )

    before the last ReLU of each stage, behind a `connector` where shapes differ. As in the authors' code there are no
    labels in the second stage (RepDistiller trains it on them alone).

    Args:
        boundary_share: share of the epochs of the first stage, within the protocol's budget.
        margin: μ.
        temperature: T.
        variant: whose reduction of `ab_loss`.
    """

    leaf = "intermediate/features"
    paper = "heo2018knowledge"
    title = "AB"
    needs = frozenset({"teacher"})
    taps = Taps(student=("pre*",), teacher=("pre*",))
    terms = ("boundary", "kd")
    survey: ClassVar = {
        "teacher_transform": "binarisation",
        "student_transform": "1x1 convolution",
        "knowledge": "which neurons are active",
        "position": "before the last ReLU of each stage",
        "distance": "squared hinge with a margin",
        "lost": "how active they are",
    }

    def __init__(
        self,
        boundary_share: Annotated[Share, Field(gt=0)] = 0.05,
        margin: Positive = 1.0,
        temperature: Temperature = 3.0,
        variant: Variant = "authors",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.boundary_share, self.margin, self.temperature, self.variant = boundary_share, margin, temperature, variant

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        self.pairs = aligned(student, teacher, "pre")
        self.connectors = nn.ModuleList(connector(student.shapes[a], teacher.shapes[b]) for a, b in self.pairs)

    def stages(self) -> Sequence[Stage]:
        return (Stage("boundary", self.boundary_share), Stage("distil", 1 - self.boundary_share))

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        if self.stage == "distil":
            return {"kd": kl(s.logits, t.logits, self.temperature)}
        students = [connect(s[a]) for connect, (a, _) in zip(self.connectors, self.pairs, strict=True)]
        return {"boundary": ab_loss(students, [t[b] for _, b in self.pairs], self.margin, self.variant)}
