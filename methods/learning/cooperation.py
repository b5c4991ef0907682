"""Diversity with cooperation: ensembles for few-shot classification (Dvornik, Schmid, Mairal, ICCV 2019,
arXiv:1903.11341)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32, kl_of_logs
from kdbench.method import Method
from kdbench.settings import Temperature
from kdbench.taps import Out, Spec

Relation = Literal["cooperation", "diversity"]
Variant = Literal["paper", "code"]


def wrong(logits: Tensor, y: Tensor) -> Tensor:
    """Logits (B, K) without that of the true class, (B, K - 1)."""
    others = ~F.one_hot(y, logits.shape[1]).bool()
    return logits[others].view(len(y), -1)


def _cooperation(a: Tensor, b: Tensor) -> Tensor:
    log_a, log_b = a.log_softmax(1), b.log_softmax(1)
    return (kl_of_logs(log_a, log_b) + kl_of_logs(log_b, log_a)) / 2


def _diversity(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a.softmax(1), b.softmax(1), dim=1).mean()


@in_float32
def relation_loss(members: Sequence[Tensor], y: Tensor, relation: Relation, temperature: float) -> Tensor:
    """How unlike (``cooperation``) or alike (``diversity``) members are about wrong classes; mean over pairs and batch.

    p = softmax(z / T) over the K - 1 classes other than y.
    cooperation = ½ KL(p_i || p_j) + ½ KL(p_j || p_i);  diversity = cos(p_i, p_j)

    Args:
        members: logits (B, K) of each.
        y: class indices, (B,).
    """
    compare = _cooperation if relation == "cooperation" else _diversity
    softened = [wrong(logits, y) / temperature for logits in members]
    return torch.stack([compare(a, b) for a, b in combinations(softened, 2)]).mean()


@in_float32
def relation_in_code(members: Sequence[Tensor], y: Tensor, relation: Relation, temperature: float) -> Tensor:
    """The same in dvornikita/fewshot_ensemble, models/ensembles.py.

    There p is softmax(z / T) over all classes with a zero at y, not normalised anew. Cooperation is the cross-entropy
    -½ Σ (p_i log p_j + p_j log p_i), with 1e-7 in the logarithms; diversity divides by the lengths of the softmax
    with y in it.
    """
    probabilities = [(logits / temperature).softmax(1) for logits in members]
    target = F.one_hot(y, members[0].shape[1]).bool()
    lengths = [(p.square().sum(1) + 1e-8).sqrt() for p in probabilities]
    p = [each.masked_fill(target, 0) for each in probabilities]
    pairs = list(combinations(range(len(p)), 2))
    if relation == "cooperation":
        both = [p[i] * (p[j] + 1e-7).log() + p[j] * (p[i] + 1e-7).log() for i, j in pairs]
        return -torch.stack([each.sum(1).mean() for each in both]).mean() / 2
    return torch.stack([((p[i] * p[j]).sum(1) / (lengths[i] * lengths[j])).mean() for i, j in pairs]).mean()


class Cooperation(Method):
    """L = Σ_k CE(y, z_k) + γ · `relation_loss`(z_1, ..., z_K), of K networks that are trained together.

    They cooperate, or they are pushed apart. One of them is deployed: what it has of the others. New classes are told
    apart by the nearest centroid of its features (scenario=few_shot). The paper's ensemble of all K, and the network
    that it is distilled into, are the business of recipes of teachers, and of `EnsembleToOne`.

    Args:
        members: K.
        relation: of the members.
        temperature: T.
        variant: of the relation's loss, ``paper`` or the authors' ``code`` (see `relation_in_code`).
    """

    leaf = "learning/few-shot"
    paper = "dvornik2019diversity"
    title = "Cooperation"
    needs = frozenset({"labels", "peers"})
    terms = ("ce", "relation")
    survey: ClassVar = {
        "knowledge": "what other networks say of wrong classes",
        "objective": "Σ CE(y, z_k) + γ KL or cos(p_i, p_j)",
    }

    def __init__(
        self,
        members: Annotated[int, Field(ge=2, le=100)] = 5,
        relation: Relation = "cooperation",
        temperature: Temperature = 1.0,
        variant: Variant = "paper",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.members, self.relation, self.temperature, self.variant = members, relation, temperature, variant

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.others = nn.ModuleList([self.spawn(k) for k in range(1, self.members)])

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        logits = [s.logits, *(self.student_out(batch.x, other).logits for other in self.others)]
        loss = relation_loss if self.variant == "paper" else relation_in_code
        return {
            "ce": torch.stack([cross_entropy(z, batch.y) for z in logits]).sum(),
            "relation": loss(logits, batch.y, self.relation, self.temperature),
        }
