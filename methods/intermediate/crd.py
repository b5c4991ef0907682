"""Contrastive representation distillation (Tian, Krishnan, Isola, ICLR 2020, arXiv:1910.10699)."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method
from kdbench.settings import Count, Share, Temperature
from kdbench.taps import Out, Spec, Taps

EPS = 1e-7
"""HobbitLong/RepDistiller: crd/criterion.py."""


@in_float32
def compared(anchors: Tensor, bank: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """<anchor, key> / τ, (B, 1 + K), of anchors (B, D) with the rows `keys` (B, 1 + K) of a bank (N, D)."""
    # products with the whole bank cost less memory than the keys' embeddings, (B, 1 + K, D), would
    return (anchors @ bank.T).gather(1, keys) / temperature


@in_float32
def nce_loss(scores: Tensor, log_z: Tensor, samples: int) -> Tensor:
    """-E[ log h(positive) + Σ_negatives log(1 - h(negative)) ], summed over the 1 + K keys, averaged over the batch.

    h = o / (o + K / N), o = e^score / Z, is the critic of equations 17 and 18: the probability that a key came with its
    anchor, and not as one of K from a uniform distribution over N samples. As in RepDistiller's crd/criterion.py the
    denominator has an ε more, which moves each log(1 - h) by a constant.

    Args:
        scores: <anchor, key> / τ, (B, 1 + K); the positive key comes first.
        log_z: logarithm of Z, a constant.
        samples: N.
    """
    noise = (scores.shape[1] - 1) / samples
    odds = scores - log_z - math.log(noise + EPS)  # log of h / (1 - h)
    negatives = F.logsigmoid(-odds[:, 1:]) - math.log1p(EPS / noise)
    return -(F.logsigmoid(odds[:, 0]) + negatives.sum(1)).mean()


def log_normaliser(scores: Tensor, samples: int) -> Tensor:
    """log Z = log( N · mean e^score ): estimated once, from the first batch's scores (B, 1 + K) (crd/memory.py)."""
    return scores.detach().logsumexp((0, 1)) - math.log(scores.numel()) + math.log(samples)


@in_float32
def on_sphere(x: Tensor) -> Tensor:
    """Rows of length one."""
    return F.normalize(x, dim=1)


class CRD(Method):
    """Each side's embedding picks the other side's of the same image out of a bank of all training images.

    L = CE(y, s) + β · [ `nce_loss`(v_s, bank of v_t) + `nce_loss`(v_t, bank of v_s) ]

    with v = W f / ‖W f‖ of pooled features f. Banks hold a running average of each image, v ← m · v + (1 - m) · v_new,
    normalised; keys are constants. Negatives are drawn uniformly from the images not known to be of the anchor's class:
    one that was not seen yet may be. They are drawn with replacement, where RepDistiller draws without: of K = 16,384
    from CIFAR-100's 49,500, about 13,950 differ.

    Args:
        dim: D, of the space in which embeddings are compared.
        negatives: K, per anchor.
        temperature: τ.
        momentum: m.
    """

    leaf = "intermediate/features"
    paper = "tian2019contrastive"
    title = "CRD"
    taps = Taps(student=("embed",), teacher=("embed",))
    terms = ("ce", "crd")
    survey: ClassVar = {
        "teacher_transform": "linear embedding",
        "student_transform": "linear embedding",
        "knowledge": "joint distribution of both features",
        "position": "pooled features",
        "distance": "NCE, a bound on I(T; S)",
        "lost": "what tells no images apart",
    }
    log_z: Tensor
    bank_s: Tensor
    bank_t: Tensor
    labels: Tensor

    def __init__(
        self,
        dim: Count = 128,
        negatives: Count = 16384,
        temperature: Temperature = 0.07,
        momentum: Share = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.dim, self.negatives, self.temperature, self.momentum = dim, negatives, temperature, momentum

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        if not data.n_train:
            raise DoesNotFit(
                "CRD keeps an embedding of every training image, and these data do not say how many there are: give a "
                "datamodule whose `spec` does, and batches with the positions of their images (x, y, index)."
            )
        self.images = data.n_train
        self.embed_s = nn.Linear(student.channels("embed"), self.dim)
        self.embed_t = nn.Linear(teacher.channels("embed"), self.dim)
        bound = math.sqrt(3 / self.dim)
        for side in "st":
            self.register_buffer(f"bank_{side}", torch.empty(self.images, self.dim).uniform_(-bound, bound))
        self.register_buffer("labels", torch.full((self.images,), -1))
        self.register_buffer("log_z", torch.full((2,), torch.inf))  # until the first batch

    def keys(self, batch: Batch) -> Tensor:
        """Positions in the banks, (B, 1 + K): the anchor's own, then its negatives."""
        labels, order = self.labels.scatter(0, batch.index, batch.y).sort(stable=True)
        start, end = (torch.searchsorted(labels, batch.y, right=right) for right in (False, True))  # its own class
        others = (self.images - (end - start)).clamp(min=1)
        drawn = torch.rand(len(batch), self.negatives, generator=self.rng, dtype=torch.float64).to(batch.y.device)
        place = (drawn * others[:, None]).long()
        place = place + (place >= start[:, None]) * (end - start)[:, None]
        return torch.cat([batch.index[:, None], order[place % self.images]], dim=1)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        keys = self.keys(batch)
        anchors = on_sphere(self.embed_s(s.embed)), on_sphere(self.embed_t(t.embed))
        banks = self.bank_t, self.bank_s  # each side meets the other's
        scores = [compared(v, bank, keys, self.temperature) for v, bank in zip(anchors, banks, strict=True)]
        first = torch.stack([log_normaliser(score, self.images) for score in scores])
        log_z = torch.where(self.log_z.isinf(), first, self.log_z)
        self._step_saw = (*(anchor.detach() for anchor in anchors), log_z)
        crd = nce_loss(scores[0], log_z[0], self.images) + nce_loss(scores[1], log_z[1], self.images)
        return {"ce": cross_entropy(s.logits, batch.y), "crd": crd}

    @torch.no_grad()
    def after_step(self, batch: Batch) -> None:
        *anchors, log_z = self._step_saw
        for bank, new in zip((self.bank_s, self.bank_t), anchors, strict=True):
            bank[batch.index] = on_sphere(self.momentum * bank[batch.index] + (1 - self.momentum) * new)
        self.labels[batch.index] = batch.y
        self.log_z.copy_(log_z)
