"""Mutual contrastive learning for visual representations (Yang et al., AAAI 2022, arXiv:2104.12565)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32, kl
from kdbench.method import Method
from kdbench.settings import Count, Temperature
from kdbench.taps import Out, Spec, Taps


@in_float32
def similarities(embeddings: Sequence[Tensor], temperature: float = 0.1) -> Tensor:
    """v_i(a) · v_j(b) / τ for the samples a, b of networks i, j, (m, m, B, B), of unit embeddings v_i, each (B, D)."""
    v = torch.stack(list(embeddings))
    return torch.einsum("iad,jbd->ijab", v, v) / temperature


@in_float32
def contrast(logits: Tensor, y: Tensor) -> Tensor:
    """Mean over anchors a of - 1/|P(a)| · Σ_{p in P(a)} log( exp(l_ap) / Σ_{b≠a} exp(l_ab) ), of similarities (B, B).

    P(a) are the other samples of a's class, by labels (B,). Anchors without any are left out, of which winycg/MCL has
    none, as its batches show each class twice; 0 where there is no anchor.
    """
    itself = torch.eye(len(y), dtype=torch.bool, device=y.device)
    positive = (y[:, None] == y) & ~itself
    # not to minus infinity: of a single sample nothing would be left, and its gradient would be no number
    others = logits.masked_fill(itself, torch.finfo(logits.dtype).min)
    log_p = (logits - others.logsumexp(1, keepdim=True)).masked_fill(~positive, 0)
    count = positive.sum(1)
    return -(log_p.sum(1) / count.clamp(min=1)).sum() / (count > 0).sum().clamp(min=1)


@in_float32
def mutual_contrast(logits: Tensor, y: Tensor, temperature: float = 3.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(VCL, soft VCL, ICL, soft ICL) of `similarities` (m, m, B, B) and labels (B,); summed over networks or pairs.

    VCL (vanilla) contrasts the samples of a network, ICL (interactive) a network's anchors with another's samples; see
    `contrast`. Soft ones are T² · KL between distributions over samples, whose targets are constants: a network's own
    similarities learn from each other's, l_ij from l_ji. As in winycg/MCL an anchor itself is among those samples.
    """
    m = len(logits)
    pairs = list(permutations(range(m), 2))
    own = [logits[i, i] for i in range(m)]
    return (
        torch.stack([contrast(each, y) for each in own]).sum(),
        torch.stack([kl(own[i], own[j].detach(), temperature) for i, j in pairs]).sum(),
        torch.stack([contrast(logits[i, j], y) for i, j in pairs]).sum(),
        torch.stack([kl(logits[i, j], logits[j, i].detach(), temperature) for i, j in pairs]).sum(),
    )


class Projection(nn.Sequential):
    """Linear - ReLU - linear: embeddings (B, D) of unit length of pooled features."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(super().forward(x), dim=1)


class MCL(Method):
    """Networks contrast samples within and across their embeddings, and learn each other's contrastive distributions.

    L = Σ_k CE(y, z_k) + α · VCL + γ · soft VCL + β · ICL + λ · soft ICL,  see `mutual_contrast`

    with the weights of ``ce``, ``vcl``, ``soft_vcl``, ``icl`` and ``soft_icl``. Each network has a `Projection` of its
    own; the first network is deployed.

    Args:
        networks: m.
        temperature: T of the soft terms.
        contrast_temperature: τ, which similarities are divided by.
        width: D of the embeddings.
    """

    leaf = "online/individual-students"
    paper = "yang2022mutual"
    title = "MCL"
    extension = True
    needs = frozenset({"labels", "peers"})
    taps = Taps(student=("embed",))
    terms = ("ce", "vcl", "soft_vcl", "icl", "soft_icl")
    survey: ClassVar = {
        "type": "individual students",
        "students": "2 or more",
        "targets": "each other's samples and contrastive distributions",
        "loss": "CE + contrastive + KL",
        "adaptation": "learned projections",
    }

    def __init__(
        self,
        networks: Annotated[int, Field(ge=2, le=100)] = 2,
        temperature: Temperature = 3.0,
        contrast_temperature: Temperature = 0.1,
        width: Count = 128,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.networks, self.temperature = networks, temperature
        self.contrast_temperature, self.width = contrast_temperature, width

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.others = nn.ModuleList([self.spawn(k) for k in range(1, self.networks)])
        features = student.channels("embed")
        self.projections = nn.ModuleList([Projection(features, self.width) for _ in range(self.networks)])

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        outs = [s, *(self.student_out(batch.x, net) for net in self.others)]
        embeddings = [projection(out.embed) for projection, out in zip(self.projections, outs, strict=True)]
        logits = similarities(embeddings, self.contrast_temperature)
        vcl, soft_vcl, icl, soft_icl = mutual_contrast(logits, batch.y, self.temperature)
        return {
            "ce": torch.stack([cross_entropy(out.logits, batch.y) for out in outs]).sum(),
            "vcl": vcl,
            "soft_vcl": soft_vcl,
            "icl": icl,
            "soft_icl": soft_icl,
        }
