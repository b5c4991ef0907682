"""Probabilistic knowledge transfer (Passalis & Tefas, ECCV 2018, arXiv:1803.10837)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method
from kdbench.taps import Out, Taps

EPS = 1e-7
"""passalis/probabilistic_kt: nn/pkt.py."""


def affinity(x: Tensor) -> Tensor:
    """Row-stochastic (B, B) matrix of the shifted cosine kernel K = (cos(x_i, x_j) + 1) / 2 of embeddings (B, D)."""
    x = x / (x.norm(dim=1, keepdim=True) + EPS)
    k = (x @ x.T + 1) / 2
    return k / k.sum(1, keepdim=True)


@in_float32
def pkt_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over all B² entries of p_t · log(p_t / p_s), p = `affinity` (equation 8).

    As in the authors' code a sample's affinity to itself is included, and the mean is over B², not over rows: that is
    why published weights are as large as 30,000.
    """
    p_t, p_s = affinity(teacher), affinity(student)
    return (p_t * ((p_t + EPS) / (p_s + EPS)).log()).mean()


class PKT(Method):
    """L = CE(y, s) + λ · `pkt_loss` on the pooled features."""

    leaf = "intermediate/features"
    paper = "passalis2018learning"
    title = "PKT"
    taps = Taps(student=("embed",), teacher=("embed",))
    terms = ("ce", "pkt")
    survey: ClassVar = {
        "teacher_transform": "cosine affinity",
        "student_transform": "cosine affinity",
        "knowledge": "similarity of samples",
        "position": "pooled features",
        "distance": "KL",
        "lost": "the features beyond their affinity",
    }

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {"ce": cross_entropy(s.logits, batch.y), "pkt": pkt_loss(s.embed, t.embed)}
