"""PS-KD: self-distillation with progressive refinement of targets (Kim et al., ICCV 2021, arXiv:2006.12000)."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import cross_entropy
from kdbench.method import Method
from kdbench.taps import Out, Spec


class PSKD(Method):
    """Labels give way to what the student itself said of the image an epoch ago.

    L = H( (1 - α_t) · y + α_t · p_{t-1}, s ) = (1 - α_t) · CE(y, s) + α_t · H(p_{t-1}, s)

    with α_t = α · t / E in epoch t of E, a ramp in ``weights``. The predictions p are those of the training pass, in
    whatever view it saw, without a temperature; in the first epoch p is y.
    """

    leaf = "teacher-free/data-augmentation"
    paper = "kim2021self"
    title = "PS-KD"
    extension = True
    needs = frozenset({"labels"})
    terms = ("ce", "past")
    survey: ClassVar = {
        "logits_hints": "predictions of the epoch before",
        "deep_supervision": "none",
        "augmentation": "the epoch before saw another view",
        "architecture": "none",
        "task": "classification",
    }
    predictions: Tensor

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        if not data.n_train:
            raise DoesNotFit(
                "PS-KD keeps a prediction for every training image, and these data do not say how many there are: give "
                "a datamodule whose `spec` does, and batches with the positions of their images (x, y, index)."
            )
        self.register_buffer("predictions", torch.zeros(data.n_train, data.num_classes))  # zeros: none yet

    def teach(self, batch: Batch) -> Out:
        past = self.predictions[batch.index]
        label = F.one_hot(batch.y, past.shape[1]).to(past.dtype)
        return Out({"past": torch.where(past.any(1, keepdim=True), past, label)})

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        logits = s.logits.to(t["past"].dtype)
        self._said = logits.detach().softmax(1)
        return {"ce": cross_entropy(logits, batch.y), "past": cross_entropy(logits, t["past"])}

    def after_step(self, batch: Batch) -> None:
        self.predictions[batch.index] = self._said
