"""Knowledge distillation weighted by the teachers' entropy (Kwon et al., ICASSP 2020).

DOI 10.1109/ICASSP40776.2020.9054698.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy, in_float32
from kdbench.taps import Out
from methods.multi_teacher.pool import Pool, logits_of, weighted_members_loss


@in_float32
def entropy_weights(teachers: Sequence[Tensor]) -> Tensor:
    """w_k(n) = 1 - H_k(n) / Σ_j H_j(n), (m, B), of logits (B, K): who is in doubt counts less.

    H is the entropy of softmax(t), at T = 1. Over the teachers the weights sum to m - 1, not to 1.
    """
    log_q = torch.stack(list(teachers)).log_softmax(2)
    entropy = -(log_q.exp() * log_q).sum(2)
    return 1 - entropy / entropy.sum(0).clamp(min=torch.finfo(entropy.dtype).tiny)


@in_float32
def ebkd_loss(student: Tensor, teachers: Sequence[Tensor], temperature: float = 4.0) -> Tensor:
    """`weighted_members_loss` with `entropy_weights`, of logits (B, K), as Rorozhl/CA-MKD has it in helper/loops.py."""
    return weighted_members_loss(student, teachers, entropy_weights(teachers), temperature)


class EBKD(Pool):
    """L = CE(y, s) + α · `ebkd_loss` over all teachers.

    The paper is about speech; this is the form in which the authors of CA-MKD compare with it on images.
    """

    leaf = "multi-teacher/ensemble-of-logits"
    paper = "kwon2020adaptive"
    title = "EBKD"
    extension = True
    least = 2
    survey: ClassVar = {
        "ensemble_logits": "weighted by entropy, for each sample",
        "ensemble_features": "none",
        "unify_data": "no",
        "customize": "no",
        "peers": "no",
        "online": "no",
        "objective": "CE + weighted KL",
    }

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {"ce": cross_entropy(s.logits, batch.y), "kd": ebkd_loss(s.logits, logits_of(t), self.temperature)}
