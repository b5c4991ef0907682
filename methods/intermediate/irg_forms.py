"""Further forms of instance relationship graphs (Liu et al., CVPR 2019, DOI 10.1109/CVPR.2019.00726)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import cross_entropy, in_float32, kl
from kdbench.method import Method
from kdbench.settings import Temperature
from kdbench.taps import Out, Spec, Taps, aligned
from methods.intermediate.irg import edge_loss, edges, vertex_loss


@in_float32
def graph_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """`edge_loss` of activations with B rows, and their mean squared difference where they have the same shape.

    The embeddings are edges and vertices in one (DefangChen/SemCKD, distiller_zoo/IRG.py).
    """
    loss = edge_loss(student, teacher)
    return loss + vertex_loss(student, teacher) if student.shape == teacher.shape else loss


@in_float32
def change_loss(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """( d(E(s_1), E(s_2)) - d(E(t_1), E(t_2)) )² with d the mean squared difference, of a layer and a deeper one.

    One number says how much a network's graph E = `edges` changes on the way, over all instances. Where both networks
    keep the shape of their maps there is such a term of the maps themselves, too (DefangChen/SemCKD).
    """

    def change(a: Tensor, b: Tensor) -> Tensor:
        return F.mse_loss(a, b)

    (s1, s2), (t1, t2) = student, teacher
    loss = (change(edges(s1), edges(s2)) - change(edges(t1), edges(t2))).square()
    if s1.shape == s2.shape and t1.shape == t2.shape:
        loss = loss + (change(s1, s2) - change(t1, t2)).square()
    return loss


class IRGEdges(Method):
    """L = CE(y, s) + λ · Σ_ij (E_s - E_t)² / (2B), the edges E of the pooled features alone.

    The first of the authors' two networks, in Caffe's reduction, B / 2 times `edge_loss`. The second adds
    transformations between the first and the last block of a stage, which no tap shows.
    """

    leaf = "intermediate/features"
    paper = "liu2019knowledgegraph"
    title = "IRG, edges"
    taps = Taps(student=("embed",), teacher=("embed",))
    terms = ("ce", "edge")
    survey: ClassVar = {
        "teacher_transform": "instance relationship graph",
        "student_transform": "instance relationship graph",
        "knowledge": "distances between instances",
        "position": "pooled features",
        "distance": "L2 of graphs",
        "lost": "directions in feature space",
    }

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {"ce": cross_entropy(s.logits, batch.y), "edge": len(batch) / 2 * edge_loss(s.embed, t.embed)}


class IRGChanges(Method):
    """L = CE(y, s) + α · T² · KL(t || s) + λ_G · `graph_loss` + λ_T · Σ of `change_loss` over pairs of stages.

    DefangChen/SemCKD's form: the graph is that of the pooled features, and a transformation one number for a batch
    instead of a vector over its instances. Pairs are the first and the second stage, the third and the fourth.
    """

    leaf = "intermediate/features"
    paper = "liu2019knowledgegraph"
    title = "IRG, changes"
    taps = Taps(student=("stage*", "embed"), teacher=("stage*", "embed"))
    terms = ("ce", "kd", "graph", "transform")
    survey: ClassVar = {
        "teacher_transform": "instance relationship graph",
        "student_transform": "instance relationship graph",
        "knowledge": "instances, their distances, how far these change",
        "position": "pooled features, pairs of stages",
        "distance": "L2 of graphs, and of their changes",
        "lost": "directions in feature space, which instance moves",
    }

    def __init__(self, temperature: Temperature = 4.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        self.ways = list(pairwise(aligned(student, teacher)))[::2]
        if not self.ways:
            raise DoesNotFit(
                f"a transformation needs two stages, which {student.name} and {teacher.name} do not share: choose "
                "another pair, or method=irg_edges."
            )

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        changes = [change_loss((s[a], s[b]), (t[c], t[d])) for (a, c), (b, d) in self.ways]
        return {
            "ce": cross_entropy(s.logits, batch.y),
            "kd": kl(s.logits, t.logits, self.temperature),
            "graph": graph_loss(s.embed, t.embed),
            "transform": torch.stack(changes).sum(),
        }
