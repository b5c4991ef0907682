"""Hints of several teachers at once: FitNet-MKD, and AE-KD on features (both: Du et al., NeurIPS 2020).

https://proceedings.neurips.cc/paper/2020/hash/91c77393975889bd08f301c9e13a44b7-Abstract.html
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy
from kdbench.settings import Temperature
from kdbench.taps import Out, Spec, Taps
from methods.intermediate.fitnet import Regressor, hint_loss
from methods.multi_teacher.aekd import Tolerance, aekd_loss, balanced_weights, not_too_many
from methods.multi_teacher.average import members_loss
from methods.multi_teacher.pool import Pool, logits_of, tap_of_each


def hint_losses(feature: Tensor, hints: Sequence[Tensor], regressors: Sequence[nn.Module]) -> Tensor:
    """`hint_loss`( r_k(f_s), f_k ) of each teacher, (m,): maps (B, C, H, W), a regressor for each teacher."""
    return torch.stack([hint_loss(r(feature), hint) for r, hint in zip(regressors, hints, strict=True)])


def hint_weights(losses: Tensor, feature: Tensor, tolerance: float) -> Tensor:
    """`balanced_weights` of the gradients of losses (m,) by the feature (B, C, H, W), averaged over the batch first.

    The authors' code compares gradients by features at length one, whatever it does with those by logits.
    """
    scale = feature.numel()  # of no matter but to half precision, which holds no gradients of means
    gradients = [torch.autograd.grad(loss * scale, feature, retain_graph=True)[0] for loss in losses]
    return balanced_weights(torch.stack([g.double().mean(0).flatten() for g in gradients]), tolerance)


class FitNetMKD(Pool):
    """L = CE(y, s) + α · `members_loss` + β · mean over teachers of `hint_losses`.

    In the authors' code the mean of the hints has a value and, by mistake, no gradient; here it has.

    Args:
        hint: tap of teachers and student where the hints are given.
        temperature: T.
    """

    leaf = "multi-teacher/ensemble-of-features"
    paper = "du2020agree"
    title = "FitNet-MKD"
    extension = True
    terms = ("ce", "kd", "hint")
    survey: ClassVar = {
        "ensemble_logits": "mean of the teachers' losses",
        "ensemble_features": "a regressor for each teacher",
        "unify_data": "no",
        "customize": "no",
        "peers": "no",
        "online": "no",
        "objective": "CE + mean KL + mean MSE",
    }

    def __init__(self, hint: str = "stage2", temperature: Temperature = 4.0, **kwargs: Any) -> None:
        super().__init__(temperature, **kwargs)
        self.hint = hint
        self.taps = Taps(student=(hint,), teacher=(hint,))

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        super().build(student, teacher, data)
        self.own, self.theirs = tap_of_each(self.hint, student, self.teachers)
        shapes = [spec.shapes[tap] for spec, tap in zip(self.teachers, self.theirs, strict=True)]
        self.regressors = nn.ModuleList(Regressor(student.shapes[self.own], shape) for shape in shapes)

    def hints(self, s: Out, t: Out) -> Tensor:
        """The loss of each teacher's hint, (m,)."""
        theirs = [each[tap] for each, tap in zip(t.each, self.theirs, strict=True)]
        return hint_losses(s[self.own], theirs, list(self.regressors))

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {
            "ce": cross_entropy(s.logits, batch.y),
            "kd": members_loss(s.logits, logits_of(t), self.temperature),
            "hint": self.hints(s, t).mean(),
        }


class AEKDHint(FitNetMKD):
    """L = CE(y, s) + α · `aekd_loss` + β · Σ_k w_k · `hint_losses`, with `hint_weights` w by the student's feature.

    Unlike in the authors' code, the hints count from the first epoch on.

    Args:
        hint: tap of teachers and student where the hints are given.
        temperature: T.
        tolerance: C, of both terms.
        unit: of the logits' term, see `aekd_loss`.
    """

    title = "AE-KD, hints"
    survey: ClassVar = {
        **FitNetMKD.survey,
        "ensemble_logits": "weighted for a short mean gradient",
        "ensemble_features": "a regressor for each teacher, weighted alike",
        "objective": "CE + min-norm weighted KL and MSE",
    }

    def __init__(
        self,
        hint: str = "stage2",
        temperature: Temperature = 4.0,
        tolerance: Tolerance = 0.6,
        unit: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(hint, temperature, **kwargs)
        self.tolerance, self.unit = tolerance, unit

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        super().build(student, teacher, data)
        not_too_many(self.title, self.teachers)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        hints = self.hints(s, t)
        w = hint_weights(hints, s[self.own], self.tolerance)
        return {
            "ce": cross_entropy(s.logits, batch.y),
            "kd": aekd_loss(s.logits, logits_of(t), self.temperature, self.tolerance, self.unit),
            "hint": w.to(hints.dtype) @ hints,
        }
