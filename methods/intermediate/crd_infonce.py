"""CRD with a softmax over its keys, an ablation of its paper (Tian, Krishnan, Isola, ICLR 2020, arXiv:1910.10699)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32
from kdbench.taps import Out, Spec
from methods.intermediate.bounds import info_nce_bound
from methods.intermediate.crd import CRD, compared, on_sphere


@in_float32
def info_nce_loss(scores: Tensor) -> Tensor:
    """-log softmax(scores)_0, averaged over the batch, of scores (B, 1 + K); the positive key comes first."""
    return cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long, device=scores.device))


def other_images(index: Tensor, images: int, negatives: int, rng: torch.Generator) -> Tensor:
    """Positions of each of (B,) images, then of `negatives` others, uniform and with replacement: (B, 1 + K)."""
    drawn = torch.rand(len(index), negatives, generator=rng, dtype=torch.float64).to(index.device)
    place = (drawn * max(images - 1, 1)).long()
    place = (place + (place >= index[:, None])) % images
    return torch.cat([index[:, None], place], dim=1)


class CRDInfoNCE(CRD):
    """As CRD, but each side picks the other's embedding of the same image out of 1 + K by a softmax.

    L = CE(y, s) + β · [ `info_nce_loss`(<v_s, bank of v_t> / τ) + `info_nce_loss`(<v_t, bank of v_s> / τ) ]

    Negatives are all other images (i ≠ j in the paper's ablation), not those of other classes alone: so the loss bounds
    I(T; S), see `info_nce_bound`.
    """

    title = "CRD, InfoNCE"
    survey: ClassVar = {**CRD.survey, "distance": "InfoNCE, a bound on I(T; S)"}

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        super().build(student, teacher, data)
        self.log_z.zero_()  # a softmax has no constant to be estimated

    def keys(self, batch: Batch) -> Tensor:
        return other_images(batch.index, self.images, self.negatives, self.rng)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        keys = self.keys(batch)
        v_s, v_t = on_sphere(self.embed_s(s.embed)), on_sphere(self.embed_t(t.embed))
        crd = info_nce_loss(compared(v_s, self.bank_t, keys, self.temperature))
        crd = crd + info_nce_loss(compared(v_t, self.bank_s, keys, self.temperature))
        self._step_saw = (v_s.detach(), v_t.detach(), self.log_z)
        return {"ce": cross_entropy(s.logits, batch.y), "crd": crd}

    def bounds(self, means: Mapping[str, float]) -> dict[str, float]:
        """The mean of both sides' `info_nce_bound`."""
        return {"info_nce": info_nce_bound(means["crd"] / 2, self.negatives)}
