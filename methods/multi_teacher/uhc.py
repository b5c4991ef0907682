"""Unifying heterogeneous classifiers with distillation (Vongkulbhisal et al., CVPR 2019, arXiv:1904.06062)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kdbench.losses import in_float32, kl


@in_float32
def uhc_loss(
    student: Tensor, teachers: Sequence[Tensor], classes: Sequence[Sequence[int]], temperature: float = 3.0
) -> Tensor:
    """Σ_k T² · KL( softmax(teacher_k / T) || softmax(student / T), restricted to C_k and renormalised ).

    Summed over classes and teachers, averaged over the batch: the cross-entropy form of the paper, minimised over the
    student itself rather than, before, over a table of soft labels. Classes of different teachers may overlap.

    Args:
        student: logits over the union of classes, (B, K).
        teachers: logits over each teacher's own classes, (B, K_k).
        classes: C_k, what each output of teacher k means, as positions among the K.
    """
    parts = [kl(student[:, list(own)], teacher, temperature) for teacher, own in zip(teachers, classes, strict=True)]
    return torch.stack(parts).sum()
