"""BYOT as its authors have it at last: self-distillation (Zhang et al., TPAMI 2021, DOI 10.1109/TPAMI.2021.3067100)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32
from kdbench.settings import Temperature
from kdbench.taps import Out, Spec
from methods.teacher_free.byot import BYOT, exit_kd_loss


@in_float32
def feature_distance_loss(adapted: Tensor, final_feature: Tensor) -> Tensor:
    """‖f - f_final‖₂ of features (B, D): *one* root of the sum of squares over samples and elements.

    No gradient reaches `final_feature`.
    """
    return torch.linalg.vector_norm(adapted - final_feature.detach())


class BYOTFinal(BYOT):
    """Exits on the inner stages learn from the last one, as in the authors' later code; the plain network is deployed.

    L = CE(y, z) + Σ_i [ (1 - c) · CE(y, z_i) + c · H( softmax(z / T), softmax(z_i / T) ) ]
            + f · Σ_i `feature_distance_loss`(r_i(f_i), f_final)

    with 1 - c, c and f as the weights of ``exits``, ``kd`` and ``feature``. There is no T²; a linear layer r_i adapts
    each feature, and the last sum leaves out the exit next to the last (ArchipLab-LinfengZhang/
    pytorch-self-distillation-final, train.py). Exits are those of `BYOT`, without the attention that theirs have.

    Args:
        temperature: T.
    """

    paper = "zhang2021self"
    title = "BYOT, final"
    extension = True
    terms = ("ce", "exits", "kd", "feature")  # type: ignore[assignment]

    def __init__(self, temperature: Temperature = 3.0, **kwargs: Any) -> None:
        super().__init__(temperature=temperature, **kwargs)

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        super().build(student, teacher, data)
        features = student.channels("embed")
        self.adapters = nn.ModuleList(nn.Linear(features, features) for _ in self.inner[:-1])

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        exits = [branch(s[tap]) for branch, tap in zip(self.exits, self.inner, strict=True)]
        adapted = [adapt(feature) for adapt, (feature, _) in zip(self.adapters, exits[:-1], strict=True)]
        far = (feature_distance_loss(feature, s.embed) for feature in adapted)
        kd = torch.stack([exit_kd_loss(z, s.logits, self.temperature) for _, z in exits]).sum()
        return {
            "ce": cross_entropy(s.logits, batch.y),
            "exits": torch.stack([cross_entropy(z, batch.y) for _, z in exits]).sum(),
            "kd": kd / self.temperature**2,
            "feature": sum(far, start=s.logits.new_zeros(())),
        }
