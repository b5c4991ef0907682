"""Contrastive representation distillation with KD beside it (Tian, Krishnan, Isola, ICLR 2020, arXiv:1910.10699)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import kl
from kdbench.settings import Count, Share, Temperature
from kdbench.taps import Out
from methods.intermediate.crd import CRD


class CRDKD(CRD):
    """CRD and the divergence of softened logits, as in the last rows of the paper's tables.

    L = CE(y, s) + α · T² · KL( softmax(t / T) || softmax(s / T) ) + β · [ the two `nce_loss` of `CRD` ]

    Args:
        kd_temperature: T.
    """

    title = "CRD + KD"
    terms = ("ce", "kd", "crd")  # type: ignore[assignment]

    def __init__(
        self,
        dim: Count = 128,
        negatives: Count = 16384,
        temperature: Temperature = 0.07,
        momentum: Share = 0.5,
        kd_temperature: Temperature = 4.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(dim=dim, negatives=negatives, temperature=temperature, momentum=momentum, **kwargs)
        self.kd_temperature = kd_temperature

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return super().losses(s, t, batch) | {"kd": kl(s.logits, t.logits, self.kd_temperature)}
