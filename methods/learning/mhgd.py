"""MHGD: graph-based knowledge distillation by a multi-head attention network (Lee and Song, BMVC 2019,
arXiv:1907.02226)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method, Player, Stage
from kdbench.settings import Count, Share
from kdbench.taps import Spec, Taps, aligned
from methods.intermediate.connector import Norm1d
from methods.intermediate.kdsvd import CANDIDATES, alike, as_matrices, decomposed
from methods.intermediate.widths import same_width


class Image(nn.Module):
    """A linear image of vectors, batch-normalised."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(width, size, bias=False), Norm1d(size)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(self.linear(x))
        return found

    def constant(self, x: Tensor) -> Tensor:
        """The same by what was learned: parameters have no gradient, and the norm uses its running statistics."""
        x, norm = F.linear(x, self.linear.weight.detach()), self.norm
        weight, bias = norm.weight.detach(), norm.bias.detach()
        return F.batch_norm(x, norm.running_mean, norm.running_var, weight, bias, eps=norm.eps)


class Attention(nn.Module):
    """A graph for each head: edges from the samples at one layer to the samples at the layer before.

    G[h] = S_h R_hᵀ, with S and R the `Image` of a layer's vectors and of those before.

    Args:
        width, before: number of entries of a vector of the layer, and of the one before it.
    """

    def __init__(self, width: int, before: int, heads: int) -> None:
        super().__init__()
        self.heads, size = heads, (width + before) // 2 * heads
        self.sender, self.receiver = Image(width, size), Image(before, size)

    def forward(self, vectors: Tensor, before: Tensor) -> Tensor:
        """(heads, B, B), of vectors (B, width) and (B, before)."""
        return self.joined(self.sender(vectors), self.receiver(before))

    def constant(self, vectors: Tensor, before: Tensor) -> Tensor:
        return self.joined(self.sender.constant(vectors), self.receiver.constant(before))

    def joined(self, senders: Tensor, receivers: Tensor) -> Tensor:
        s, r = (x.view(len(x), -1, self.heads).permute(2, 0, 1) for x in (senders, receivers))
        return s @ r.mT


class Estimator(nn.Module):
    """Vectors of a layer, from those before and the graph: a head's rows weigh what is passed on, softmaxed."""

    def __init__(self, width: int, before: int, heads: int) -> None:
        super().__init__()
        size = (width + before) // 2
        self.passed = nn.Sequential(nn.Linear(before, size, bias=False), Norm1d(size), nn.ReLU())
        self.joined = nn.Linear(size * heads, width)

    def forward(self, before: Tensor, graph: Tensor, kept: Tensor) -> Tensor:
        """(B, width), of length 1.

        Args:
            before: (B, before).
            graph: (heads, B, B).
            kept: which heads each sample listens to, (heads, B).
        """
        messages = (graph.softmax(2) * kept[..., None]) @ self.passed(before)
        return F.normalize(self.joined(messages.transpose(0, 1).flatten(1)), dim=1)


@in_float32
def estimation_loss(estimated: Tensor, vectors: Tensor) -> Tensor:
    """1 - cos of the estimated vectors and the true ones, both (B, C) of length 1, averaged over the batch."""
    return (1 - (estimated * vectors).sum(1)).mean()


@in_float32
def attention_graph_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ over heads of KL( softmax(tanh G_s) || softmax(tanh G_t) ) of graphs (heads, B, B), by rows.

    Summed over a row and over heads, averaged over the B rows. The student's distribution comes first, as in the
    authors' code (sseung0703/KD_methods_with_TF, nets/Relation.py), which sums over rows, too.
    """
    log_s, log_t = (graph.tanh().log_softmax(2) for graph in (student, teacher.detach()))
    return (log_s.exp() * (log_s - log_t)).sum((0, 2)).mean()


class MHGD(Method):
    """Two stages: attention learns how the teacher's vectors follow from layer to layer; the student has its graphs.

    Stage ``attention``:   L = Σ over layers of `estimation_loss`, of an `Attention` and an `Estimator` alone
    Stage ``distil``:      L = CE(y, s) + λ · Σ over layers of `attention_graph_loss`, by that attention, now a constant

    A vector is the first right singular one of a map's matrix (positions, channels), the end of a stage; the student's
    is that of its first ones which is most like the teacher's, with its sign, after a `same_width`. In the first stage
    each sample listens to a random half of the heads. The authors also clip the gradient of the second term to the
    length of that of the first.

    Args:
        heads: of the attention.
        attention_share: share of the epochs spent on the first stage, within the protocol's budget.
    """

    leaf = "learning/graph"
    paper = "lee2019graph"
    title = "MHGD"
    taps = Taps(student=("stage*",), teacher=("stage*",))
    terms = ("attention", "ce", "graph")
    survey: ClassVar = {
        "nodes": "samples, as singular vectors of two layers",
        "edges": "multi-head attention",
        "objective": "KL of the edges' softmax",
    }

    def __init__(self, heads: Count = 8, attention_share: Share = 0.28571428571428575, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.heads, self.attention_share = heads, attention_share

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        self.pairs = aligned(student, teacher)
        if len(self.pairs) < 2:
            raise DoesNotFit(
                f"MHGD needs two stages, which {student.name} and {teacher.name} do not share: choose another pair."
            )
        self.connectors = nn.ModuleList(same_width(student.shapes[a], teacher.shapes[b]) for a, b in self.pairs)
        widths = [teacher.channels(b) for _, b in self.pairs]
        self.attention = nn.ModuleList(Attention(width, before, self.heads) for before, width in pairwise(widths))
        self.estimators = nn.ModuleList(Estimator(width, before, self.heads) for before, width in pairwise(widths))

    def stages(self) -> Sequence[Stage]:
        return (Stage("attention", self.attention_share), Stage("distil", 1 - self.attention_share))

    def players(self) -> Sequence[Player]:
        if self.stage == "attention":
            return (Player("attention", [*self.attention.parameters(), *self.estimators.parameters()]),)
        return (Player("student", [*self.student.parameters(), *self.connectors.parameters()]),)

    def listened(self, like: Tensor) -> Tensor:
        """Which heads each of B samples listens to, (heads, B): those whose number, drawn, is above the mean."""
        noise = torch.randn(self.heads, len(like), generator=self.rng).to(like)
        return (noise >= noise.mean(0)).to(like)

    def graphs(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Of each layer but the first."""
        ways = zip(self.attention, pairwise(vectors), strict=True)
        return [attend.constant(b, a) for attend, (a, b) in ways]  # type: ignore[operator]

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        t = self.teacher_out(batch.for_teacher.x)
        taught = [decomposed(as_matrices(t[b]), 1)[0] for _, b in self.pairs]
        told = [vectors.squeeze(2) for vectors in taught]
        if self.stage == "attention":
            losses = []
            for attend, estimate, (a, b) in zip(self.attention, self.estimators, pairwise(told), strict=True):
                losses.append(estimation_loss(estimate(a, attend(b, a), self.listened(a)), b))
            yield "attention", {"attention": torch.stack(losses).sum()}
            return
        s = self.student_out(batch.x)
        own = []
        for connect, (tap, _), vectors in zip(self.connectors, self.pairs, taught, strict=True):
            candidates = decomposed(as_matrices(connect(s[tap])), 1 + CANDIDATES)[0]
            own.append(alike(candidates, vectors).squeeze(2))
        losses = [attention_graph_loss(x, y) for x, y in zip(self.graphs(own), self.graphs(told), strict=True)]
        yield "student", {"ce": cross_entropy(s.logits, batch.y), "graph": torch.stack(losses).sum()}
