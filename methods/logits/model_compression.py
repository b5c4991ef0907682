"""Model compression (Bucila, Caruana, Niculescu-Mizil, KDD 2006, DOI 10.1145/1150402.1150464)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import in_float32
from kdbench.method import Method
from kdbench.settings import Positive, Share
from kdbench.taps import Out, Spec
from methods.multi_teacher.average import all_of_one_mind


@torch.no_grad()
def munged(x: Tensor, swapped: Tensor, noise: Tensor, variance: float) -> Tensor:
    """MUNGE: each `swapped` attribute of a sample is drawn from N( e', (|e - e'| / s)² ), e' its nearest neighbour's.

    Nearest in this batch, by Euclidean distance; a sample alone stays as it is. The paper looks through the whole data
    set, one sample after the other, and the neighbour takes the sample's attribute in exchange.

    Args:
        x: samples (B, ...), whose every entry is a continuous attribute.
        swapped, noise: which ones, bool, and standard normal, both like x.
        variance: s, the local variance parameter: the larger, the less noise.
    """
    flat = x.flatten(1)
    apart = torch.cdist(flat, flat) + torch.diag(torch.full_like(flat[:, 0], torch.inf))
    near = x[apart.argmin(1)]
    return torch.where(swapped, near + noise * (x - near).abs() / variance, x)


@in_float32
def mean_probability_loss(student: Tensor, teachers: Sequence[Tensor]) -> Tensor:
    """Σ_k ( softmax(s)_k - q_k )², averaged over the batch; q is the teachers' mean of softmax(t), of logits (B, K)."""
    q = torch.stack([teacher.softmax(1) for teacher in teachers]).mean(0)
    return (student.softmax(1) - q).square().sum(1).mean()


class ModelCompression(Method):
    """L = `mean_probability_loss` on synthetic images, which no label is known of: the ensemble labels them.

    Each batch is `munged` first. The paper makes some ten times as many samples of tabular data as there are, once; for
    images, their pixels are the attributes here, and each epoch makes new ones.

    Args:
        swap: p, how likely an attribute is to be drawn anew.
        variance: s.
    """

    leaf = "logits/softened-labels"
    paper = "bucilua2006model"
    title = "Model compression"
    needs = frozenset({"teachers"})
    terms = ("mimic",)
    survey: ClassVar = {
        "description": "probabilities of an ensemble, on synthetic samples",
        "objective": "‖ mean softmax(t) - softmax(s) ‖²",
    }

    def __init__(self, swap: Share = 0.2, variance: Positive = 5.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.swap, self.variance = swap, variance

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        all_of_one_mind(self.title, self.teachers)
        if data.shape_for_teacher is not None:
            raise DoesNotFit(
                "Model compression has its teachers label new images, and they see another modality here: choose a "
                "scenario that shows both the same."
            )

    def batch(self, batch: Batch) -> Batch:
        swapped = torch.rand(batch.x.shape, generator=self.rng) < self.swap
        noise = torch.randn(batch.x.shape, generator=self.rng).to(batch.x)
        return replace(batch, x=munged(batch.x, swapped.to(batch.x.device), noise, self.variance))

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {"mimic": mean_probability_loss(s.logits, [each.logits for each in t.each])}
