"""Knowledge distillation from a stronger teacher, DIST (Huang et al., NeurIPS 2022, arXiv:2205.10536)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import in_float32
from kdbench.method import Method
from kdbench.settings import Temperature
from kdbench.taps import Out

EPS = 1e-8
"""Added to the product of two norms: hunto/image_classification_sota, lib/models/losses/dist_kd.py."""


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation of each row of `a` with that of `b`, both (N, M): (N,); 0 for a constant row."""
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + EPS)


@in_float32
def dist_terms(student: Tensor, teacher: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """(inter, intra) of logits (B, K), or of maps (B, K, H, W) whose pixels count as samples; p = softmax(z / τ).

    inter = τ² · (1 - mean over samples of the correlation of p_s and p_t over classes)
    intra = τ² · (1 - mean over classes of the correlation of p_s and p_t over samples)

    With τ = 1 both are those of the authors' segmentation code, which has neither temperature nor factor.
    """
    p, q = ((z if z.dim() == 2 else z.flatten(2).movedim(1, 2).flatten(0, 1)) for z in (student, teacher))
    p, q = (p / temperature).softmax(1), (q / temperature).softmax(1)
    scale = temperature**2
    return scale * (1 - pearson(p, q).mean()), scale * (1 - pearson(p.T, q.T).mean())


class DIST(Method):
    """L = α · CE(y, s) + β · inter + γ · intra; see `dist_terms`. Correlated is enough: scale and shift may differ."""

    leaf = "logits/softened-labels"
    paper = "huang2022knowledge"
    title = "DIST"
    extension = True
    terms = ("ce", "inter", "intra")
    tasks = frozenset({"classification", "segmentation"})
    survey: ClassVar = {
        "description": "correlation of probabilities, over classes and over samples",
        "objective": "CE(y, s) + β (1 - ρ(rows)) + γ (1 - ρ(columns))",
    }

    def __init__(self, temperature: Temperature = 4.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        inter, intra = dist_terms(s.logits, t.logits, self.temperature)
        return {"ce": self.task.loss(s.logits, batch.y), "inter": inter, "intra": intra}
