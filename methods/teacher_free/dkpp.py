"""BAN with permuted dark knowledge, DKPP (Furlanello et al., ICML 2018, arXiv:1805.04770)."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy, kl
from kdbench.taps import Out
from methods.teacher_free.ban import BAN


def permuted(logits: Tensor, kept: Tensor, keys: Tensor) -> Tensor:
    """Logits (B, K) of which in each row that of one class stays where it is, and all others change places.

    Args:
        kept: the class that stays, (B,).
        keys: positive numbers, (B, K); their order is that of the others.
    """
    stays = torch.zeros_like(keys, dtype=torch.bool).scatter(1, kept[:, None], True)
    places = torch.arange(keys.shape[1], device=keys.device).expand_as(keys)
    to, of = (order.masked_fill(stays, -1).argsort(1) for order in (places, keys))
    return torch.empty_like(logits).scatter(1, to, logits.gather(1, of))


class DKPP(BAN):
    """A past self teaches its likeliest class, and the others' probabilities at each other's places; no labels.

    Generation 1:      L = CE(y, s)
    Generation k > 1:  L = T² · KL( softmax(`permuted`(s_{k-1}) / T) || softmax(s / T) )

    So the target keeps its entropy and says nothing of which classes are alike: dark knowledge with permuted
    predictions. How often is not given; here each sample is permuted anew whenever it is seen.
    """

    title = "BAN-DKPP"
    terms = ("first", "kd")  # type: ignore[assignment]
    survey: ClassVar = {**BAN.survey, "logits_hints": "logits, permuted but for the largest"}

    def losses(self, s: Out, t: Out | None, batch: Batch) -> dict[str, Tensor]:
        if t is None:
            return {"first": cross_entropy(s.logits, batch.y)}
        keys = torch.rand(t.logits.shape, generator=self.rng).to(t.logits.device)
        return {"kd": kl(s.logits, permuted(t.logits, t.logits.argmax(1), keys), self.temperature)}
