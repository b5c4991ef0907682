"""SNTG: smooth neighbours on teacher graphs (Luo et al., CVPR 2018, arXiv:1711.00258)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import in_float32
from kdbench.settings import Positive
from kdbench.taps import Out, Taps
from methods.learning.consistency import labelled_share
from methods.learning.pi_model import PiModel
from methods.learning.temporal_ensembling import Decay, TemporalEnsembling


@in_float32
def smooth_neighbours_loss(
    a: Tensor, b: Tensor, same: Tensor, known: Tensor | None = None, margin: float = 1.0
) -> Tensor:
    """Mean over B pairs of d² if they are of the `same` class (B,), else of max(m - d, 0)².

    d² is the mean over D of ( a - b )², for embeddings (B, D), so that m is in units of one feature, as in the authors'
    code; the paper has the sum. Pairs that are not `known` (B,) count as 0.
    """
    squared = (a - b).square().mean(1)
    distance = squared.clamp(min=torch.finfo(squared.dtype).tiny).sqrt()  # its gradient at 0 would not be finite
    each = torch.where(same, squared, (margin - distance).clamp(min=0).square())
    return (each if known is None else each * known).mean()


def between_pairs(embedding: Tensor, label: Tensor, known: Tensor, order: Tensor, margin: float) -> Tensor:
    """`smooth_neighbours_loss` between the first half of the `order` of N samples and the second."""
    half = len(order) // 2
    i, j = order[:half], order[half : 2 * half]
    return smooth_neighbours_loss(embedding[i], embedding[j], label[i] == label[j], known[i] & known[j], margin)


def completed(y: Tensor, teacher: Tensor) -> Tensor:
    """The labels of the first samples, (M,), and the teacher's choice for all others, from its scores (N, K): (N,)."""
    return torch.cat([y, teacher[len(y) :].argmax(1)])


class SNTG(TemporalEnsembling):
    """Images that the teacher takes for one class come together, others are kept apart.

    L = (1 / N) · Σ CE(y, s) of labelled images + w · (M / N) · ( `ensemble_target_loss`(s, z̃) + λ · S )

    S is the `smooth_neighbours_loss` of pooled features between the halves of a batch, in random order. The class of an
    image is its label, or else the one that temporal ensembling's z̃ finds likeliest (see
    `methods.learning.temporal_ensembling.TemporalEnsembling`); pairs with an image that has neither count as 0.

    Args:
        decay: α of the average.
        margin: m, how far apart images of two classes are kept.
    """

    leaf = "learning/graph"
    paper = "luo2018smooth"
    title = "SNTG"
    taps = Taps(student=("embed",))
    terms = ("ce", "consistency", "neighbours")
    survey: ClassVar = {
        "nodes": "images of a batch",
        "edges": "0 or 1: of one class for the averaged student",
        "objective": "contrastive loss of pooled features",
    }

    def __init__(self, decay: Decay = 0.6, margin: Positive = 1.0, **kwargs: Any) -> None:
        super().__init__(decay=decay, **kwargs)
        self.margin = margin

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        terms = super().losses(s, t, batch)
        known = t["known"].index_fill(0, torch.arange(len(batch), device=s.logits.device), True)
        order = torch.randperm(len(known), generator=self.rng).to(known.device)
        neighbours = between_pairs(s.embed, completed(batch.y, t["target"]), known, order, self.margin)
        return {**terms, "neighbours": labelled_share(batch) * neighbours}


class PiSNTG(PiModel):
    """`SNTG` on the Π-model: the teacher is the student's second pass.

    L = (1 / N) · Σ CE(y, s) of labelled images + w · (M / N) · ( `two_pass_loss`(s, s') + λ · S )

    Args:
        margin: m, how far apart images of two classes are kept.
    """

    leaf = "learning/graph"
    paper = "luo2018smooth"
    title = "SNTG on the Π-model"
    taps = Taps(student=("embed",))
    terms = ("ce", "consistency", "neighbours")
    survey: ClassVar = {**SNTG.survey, "edges": "0 or 1: of one class for the student's second pass"}

    def __init__(self, margin: Positive = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.margin = margin

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        terms = super().losses(s, t, batch)
        known = torch.ones(len(s.logits), dtype=torch.bool, device=s.logits.device)
        order = torch.randperm(len(known), generator=self.rng).to(known.device)
        neighbours = between_pairs(s.embed, completed(batch.y, t.logits), known, order, self.margin)
        return {**terms, "neighbours": labelled_share(batch) * neighbours}
