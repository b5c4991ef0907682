"""The contrastive bound of CRD, logged (Tian, Krishnan, Isola, ICLR 2020, arXiv:1910.10699)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from kdbench.data.batch import Batch
from methods.intermediate.bounds import nce_bound
from methods.intermediate.crd import CRD
from methods.intermediate.crd_infonce import other_images


class ContrastiveBound(CRD):
    """L = CE(y, s) + β · [ the two `nce_loss` of CRD ], and after each epoch the bound that they raise.

    I(T; S) >= log K - `nce_loss`, the mean of both sides (see `nce_bound`). That holds for negatives from the product
    of marginals, so they are all other images (i ≠ j in the paper's ablation): among those of other classes alone, as
    CRD takes them, the class gives the positive away, and the bound may exceed I(T; S).
    """

    leaf = "theory"
    title = "CRD, its bound"
    survey: ClassVar = {"bound": "log K - NCE"}

    def keys(self, batch: Batch) -> Tensor:
        return other_images(batch.index, self.images, self.negatives, self.rng)

    def bounds(self, means: Mapping[str, float]) -> dict[str, float]:
        return {"nce": nce_bound(means["crd"] / 2, self.negatives)}
