"""Feature-level ensembles, parallel and sequential (Park and Kwak, ECAI 2020, arXiv:1909.10754)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import cross_entropy
from kdbench.method import Method
from kdbench.taps import Out, Spec, Taps
from methods.intermediate.ft import factor_loss, layers
from methods.teacher_free.ban import BAN


def transform(student: tuple[int, ...], teacher: tuple[int, ...]) -> nn.Sequential:
    """TL: three 3x3 convolutions from the student's map (C, H, W) to a teacher's channels, as in Factor Transfer.

    Raises:
        DoesNotFit: they are no maps.
    """
    if len(student) != 3 or len(teacher) != 3:
        raise DoesNotFit("FEED transforms maps, (C, H, W): choose a stage (tap=stage-1).")
    return layers(nn.Conv2d, (student[0], teacher[0], teacher[0], teacher[0]))


class ParallelFEED(Method):
    """The student's last features, by a transformation TL_k for each of several teachers, are like theirs.

    L = CE(y, s) + β · Σ_k `factor_loss`(TL_k(f_s), f_k)

    The transformations are there for training alone. The paper's is the 1-norm; the mean is that of Factor Transfer, by
    the same group, to whose reduction the weight belongs.

    Args:
        tap: where features are compared.
    """

    leaf = "multi-teacher/ensemble-of-features"
    paper = "park2019feed"
    title = "pFEED"
    needs = frozenset({"teachers", "labels"})
    terms = ("ce", "feed")
    survey: ClassVar = {
        "ensemble_logits": "none",
        "ensemble_features": "a non-linear transformation for each teacher",
        "unify_data": "no",
        "customize": "no",
        "peers": "no",
        "online": "no",
        "objective": "CE + L1",
    }

    def __init__(self, tap: str = "stage-1", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.taps = Taps(student=(tap,), teacher=(tap,))

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.own, *self.theirs = (spec.resolve(self.taps.student)[0] for spec in (student, *self.teachers))
        pairs = zip(self.teachers, self.theirs, strict=True)
        self.transforms = nn.ModuleList(transform(student.shapes[self.own], spec.shapes[tap]) for spec, tap in pairs)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        features = (each[tap] for each, tap in zip(t.each, self.theirs, strict=True))
        compared = [
            factor_loss(transformed(s[self.own]), feature)
            for transformed, feature in zip(self.transforms, features, strict=True)
        ]
        return {"ce": cross_entropy(s.logits, batch.y), "feed": torch.stack(compared).sum()}


class SequentialFEED(BAN):
    """Generations of one architecture, each from a fresh start; features carry on what the ones before have learned.

    Generation 1:      L = CE(y, s)
    Generation k > 1:  L = CE(y, s) + β · `factor_loss`(TL(f_k), f_{k-1})

    with the weights of ``first``, ``ce`` and ``feed``, and a fresh transformation TL for each generation. As those of
    `BAN` they share the protocol's epochs, and the last is deployed.

    Args:
        generations: networks trained one after the other.
        tap: where features are compared.
    """

    leaf = "multi-teacher/ensemble-of-features"
    paper = "park2019feed"
    title = "sFEED"
    terms = ("first", "ce", "feed")
    survey: ClassVar = {
        "ensemble_logits": "none",
        "ensemble_features": "one network after the other",
        "unify_data": "no",
        "customize": "no",
        "peers": "no",
        "online": "no",
        "objective": "CE + L1",
    }

    def __init__(self, generations: Annotated[int, Field(ge=2)] = 2, tap: str = "stage-1", **kwargs: Any) -> None:
        super().__init__(generations=generations, **kwargs)
        self.taps = Taps(student=(tap,))

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        super().build(student, teacher, data)
        (self.own,) = student.resolve(self.taps.student)
        shape = student.shapes[self.own]
        self.transforms = nn.ModuleList(transform(shape, shape) for _ in range(self.generations - 1))

    def losses(self, s: Out, t: Out | None, batch: Batch) -> dict[str, Tensor]:
        ce = cross_entropy(s.logits, batch.y)
        if t is None:
            return {"first": ce}
        transformed = self.transforms[int(self.stage.removeprefix("generation")) - 2](s[self.own])
        return {"ce": ce, "feed": factor_loss(transformed, t[self.own])}
