"""Graph distillation from privileged modalities (Luo, Hsieh, Jiang, Niebles, Fei-Fei, ECCV 2018, arXiv:1712.00108)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method
from kdbench.settings import Count, Positive
from kdbench.taps import Out, Spec, Taps
from methods.multi_teacher.average import all_of_one_mind


class Graph(nn.Module):
    """Edges e_j of the graph from each teacher j to the student s, from what both say of each sample.

    z = [W_1 logits, W_2 features] of each network;  e_j = softmax over j of α · W_3 [z_s, z_j]

    Networks with features of one width share W_2, as all do in google/graph_distillation.

    Args:
        classes: K.
        widths: of the features of the student and of each teacher.
        size: of W_1's and of W_2's output.
        sharpness: α.
    """

    def __init__(self, classes: int, widths: Sequence[int], size: int, sharpness: float) -> None:
        super().__init__()
        self.logits = nn.Linear(classes, size)
        self.features = nn.ModuleDict({str(width): nn.Linear(width, size) for width in widths})
        self.edge = nn.Linear(4 * size, 1)
        self.sharpness = sharpness

    def forward(self, logits: Sequence[Tensor], features: Sequence[Tensor]) -> Tensor:
        """(B, teachers), each row of sum 1, for logits (B, K) and features (B, D) of the student first."""
        own, *others = (
            torch.cat([self.logits(z), self.features[str(f.shape[1])](f)], dim=1)
            for z, f in zip(logits, features, strict=True)
        )
        edges: Tensor = torch.cat([self.edge(torch.cat([own, other], dim=1)) for other in others], dim=1)
        return (self.sharpness * edges).softmax(1)


@in_float32
def imitation_terms(student: Sequence[Tensor], teachers: Sequence[Tensor], edges: Tensor) -> Tensor:
    """Σ_j mean over the batch of (e_j + p_j) · (1 - cos(s_j, t_j)), with the prior p_j = 1 / number of teachers.

    Args:
        student: for each teacher what is compared with it, (B, D).
        teachers: (B, D).
        edges: (B, teachers).
    """
    far = torch.stack([1 - F.cosine_similarity(s, t, dim=1) for s, t in zip(student, teachers, strict=True)], dim=1)
    return ((edges + 1 / len(teachers)) * far).sum(1).mean()


@in_float32
def regularizer(edges: Tensor) -> Tensor:
    """Σ_j (mean over the batch of e_j - p_j)², with the prior p_j = 1 / number of teachers, of edges (B, teachers)."""
    return (edges.mean(0) - 1 / edges.shape[1]).square().sum()


class GraphDistillation(Method):
    """L = CE(y, s) + λ_1 · `imitation_terms`(logits) + λ_2 · `imitation_terms`(features) + λ_3 · `regularizer`

    Several teachers, each trained before, weighed for each sample by the edges of a learned `Graph` and by a prior.
    The form of google/graph_distillation, classification: edges have a gradient, and teachers have none.

    The paper's teachers see a modality each. Here all see the teachers' one (scenario=paired), and what differs is how
    they were trained. Where a teacher's features are of another width, the student's pass a linear layer.

    Args:
        size: of the graph's hidden space.
        sharpness: α.
    """

    leaf = "cross-modal/supervised"
    paper = "luo2018graph"
    title = "Graph distillation"
    needs = frozenset({"teachers", "labels"})
    taps = Taps(student=("embed",), teacher=("embed",))
    terms = ("ce", "logits", "features", "regularizer")
    survey: ClassVar = {
        "source": "several modalities of video",
        "target": "one of them",
        "teachers": "several",
        "online": "no",
        "knowledge": "logits and features, by a graph",
        "labels": "yes",
        "compression": "no",
    }

    def __init__(self, size: Count = 32, sharpness: Positive = 0.125, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size, self.sharpness = size, sharpness

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        all_of_one_mind("Graph distillation", self.teachers)
        own, *others = widths = [spec.channels("embed") for spec in (student, *self.teachers)]
        self.graph = Graph(student.channels("logits"), widths, self.size, self.sharpness)
        self.adapters = nn.ModuleList(nn.Identity() if own == width else nn.Linear(own, width) for width in others)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        logits, features = [each.logits for each in t.each], [each.embed for each in t.each]
        edges = self.graph([s.logits, *logits], [s.embed, *features])
        adapted = [adapt(s.embed) for adapt in self.adapters]
        return {
            "ce": cross_entropy(s.logits, batch.y),
            "logits": imitation_terms([s.logits] * len(logits), logits, edges),
            "features": imitation_terms(adapted, features, edges),
            "regularizer": regularizer(edges),
        }
