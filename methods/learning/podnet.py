"""PODNet: pooled outputs distillation (Douillard et al., ECCV 2020, arXiv:2004.13513)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import in_float32
from kdbench.settings import Count, Positive, Share, Weight
from kdbench.taps import Out, Spec, Taps
from methods.learning.balanced import Balanced
from methods.learning.lucir import less_forget_loss, pooled
from methods.learning.rehearsal import Mix

Pooling = Literal["spatial", "width", "height", "channels", "gap"]
Form = Literal["paper", "authors"]
Similarity = Literal["cosine", "distance"]
LLOYD = 10
"""Rounds of k-means."""


def pool(maps: Tensor, pooling: Pooling) -> Tensor:
    """Sums of maps (B, C, H, W) over an axis, flattened: (B, ·).

    ``width`` and ``height`` keep C·W and C·H values, ``spatial`` both, ``channels`` H·W; ``gap`` keeps C means. The two
    names are those of the authors' code.
    """
    if pooling == "gap":
        return maps.mean((2, 3))
    if pooling == "spatial":
        return torch.cat([pool(maps, "height"), pool(maps, "width")], 1)
    return maps.sum({"channels": 1, "width": 2, "height": 3}[pooling]).flatten(1)


@in_float32
def pod_loss(student: Sequence[Tensor], past: Sequence[Tensor], pooling: Pooling = "spatial") -> Tensor:
    """Mean over layers and over the batch of ‖ a / ‖a‖₂ - b / ‖b‖₂ ‖₂ with a, b = `pool`(maps²).

    The norm of the difference is not squared (the authors' code). No gradient reaches `past`.

    Args:
        student, past: maps (B, C, H, W) of each layer.
    """
    layers = []
    for s, t in zip(student, past, strict=True):
        a, b = (F.normalize(pool(maps.square(), pooling), dim=1) for maps in (s, t.detach()))
        layers.append((a - b).norm(dim=1).mean())
    return torch.stack(layers).mean()


@in_float32
def nca_rows(
    similarity: Tensor, y: Tensor, scale: float | Tensor = 1.0, margin: float = 0.6, form: Form = "paper"
) -> Tensor:
    """-log( exp(η (ŷ_y - δ)) / Σ_{i≠y} exp(η ŷ_i) ) for each sample: (B,), before the paper's hinge.

    ``paper``: no gradient reaches η by way of the margin, η δ, which would drive it to 0 and beyond.
    ``authors``: the code subtracts δ from every class, where it has no effect, and then the row's maximum m; in the
    place of the true class the denominator has exp(0), that is exp(m).

    Args:
        similarity: ŷ, (B, K) with K > 1.
        scale, margin: η and δ.
    """
    z = scale * similarity
    truth, own = z.gather(1, y[:, None]), F.one_hot(y, z.shape[1]).bool()
    if form == "authors":
        return torch.where(own, z.amax(1, keepdim=True), z).logsumexp(1) - truth.squeeze(1)
    held = scale.detach() if isinstance(scale, Tensor) else scale
    return z.masked_fill(own, -torch.inf).logsumexp(1) - truth.squeeze(1) + held * margin


def nca_loss(
    similarity: Tensor, y: Tensor, scale: float | Tensor = 1.0, margin: float = 0.6, form: Form = "paper"
) -> Tensor:
    """Mean over the batch of `nca_rows`, each with max(0, ·) in form ``paper``."""
    rows = nca_rows(similarity, y, scale, margin, form)
    return (rows.clamp(min=0) if form == "paper" else rows).mean()


class LocalSimilarity(nn.Module):
    """ŷ_c = Σ_k softmax_k( σ_ck ) · σ_ck with σ_ck = cos(θ_ck, h), of features h (B, D): (B, K).

    Each class has several proxies θ_ck; of the first `held` classes they do not learn.

    Args:
        similarity: σ; ``distance`` is -‖ θ/‖θ‖ - h/‖h‖ ‖² = 2 cos - 2.
    """

    def __init__(self, features: int, classes: int, proxies: int, similarity: Similarity = "cosine") -> None:
        super().__init__()
        self.similarity = similarity
        self.weight = nn.Parameter(torch.randn(classes, proxies, features) * features**-0.5)  # the authors' code
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, features: Tensor, held: int = 0) -> Tensor:
        weight = torch.cat([self.weight[:held].detach(), self.weight[held:]])
        near = torch.einsum("bd,ckd->bck", F.normalize(features, dim=1), F.normalize(weight, dim=2))
        if self.similarity == "distance":
            near = 2 * near - 2
        return (near.softmax(2) * near).sum(2)


class ProxyNet(nn.Module):
    """The student's last maps before their ReLU, pooled, under a `LocalSimilarity`."""

    def __init__(self, student: nn.Module, tap: str, head: LocalSimilarity) -> None:
        super().__init__()
        self.student, self.tap_name, self.head = student, tap, head

    def forward(self, x: Tensor) -> Tensor:
        maps = self.student.tap(x, (self.tap_name,))[self.tap_name]  # type: ignore[operator]
        scores: Tensor = self.head.scale * self.head(pooled(maps))
        return scores


def centroids(features: Tensor, k: int, rng: torch.Generator) -> Tensor:
    """Means of `k` clusters of the features (N, D), by k-means from samples drawn at random: (k, D).

    Where there are fewer samples than clusters some are drawn twice; a cluster that loses all stays where it is.
    """
    n = len(features)
    first = torch.cat([torch.randperm(n, generator=rng) for _ in range(-(-k // n))])[:k]
    found = features[first.to(features.device)]
    for _ in range(LLOYD):
        nearest = F.one_hot(torch.cdist(features, found).argmin(1), k).to(features.dtype)
        size = nearest.sum(0)[:, None]
        found = torch.where(size > 0, nearest.T @ features / size.clamp(min=1), found)
    return found


class PODNet(Balanced):
    """Several proxies for each class, and pooled maps of all layers that stay as they were.

    Stage ``train``:  L = `nca_loss`(ŷ, y) + √(seen / new) · ( λ_c · `pod_loss`(maps, past self's)
    + λ_f · mean(1 - cos(h, past self's h)) )  over the classes seen, on new samples and exemplars (chosen by `Herding`)

    Stage ``balance``:  L = `nca_loss` on as many samples of each class, of the proxies alone

    Maps and features are those before the ReLU that ends a stage, as in the authors' code; h is the last ones' mean.
    The past self is the student as it was when the new classes came; then their proxies are imprinted: the centroids
    of their normalised features, as long as the other proxies on average. Old proxies do not learn in the first stage.
    The authors' code compares a fourth map besides, clamps gradients to ±5, and in the second stage its batch norms go
    on with their statistics.

    Args:
        pooling: what of the maps is kept, see `pool`.
        proxies: for each class.
        margin: δ.
        form: of the classification loss, see `nca_rows`.
        similarity: of features and proxies, see `LocalSimilarity`.
    """

    leaf = "learning/incremental"
    paper = "douillard2020podnet"
    title = "PODNet"
    extension = True
    terms = ("nca", "pod", "flat")
    added: ClassVar = {"similarity": "cosine"}
    earlier: ClassVar = frozenset({"6f924b3b433d25e506505fcdbc4106729e0998b7536c82428ff74ae27417519a"})
    taps = Taps(student=("pre*",))
    survey: ClassVar = {
        "knowledge": "pooled maps and feature directions of the past self; herded exemplars",
        "objective": "NCA + distance of pooled outputs + 1 - cos; balanced fine-tuning",
    }

    def __init__(
        self,
        pooling: Pooling = "spatial",
        proxies: Count = 10,
        margin: Weight = 0.6,
        form: Form = "paper",
        similarity: Similarity = "cosine",
        balance_share: Share = 0.11,
        balance_lr: Positive = 0.05,
        mix: Mix = "union",
        **kwargs: Any,
    ) -> None:
        super().__init__(balance_share, balance_lr, mix, **kwargs)
        self.pooling, self.proxies, self.margin = pooling, proxies, margin
        self.form, self.similarity = form, similarity

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        if min(data.experiences, default=data.num_classes) < 2:
            raise DoesNotFit(
                "PODNet compares a class with others: have two or more come first (dataset.scenario.first)."
            )
        super().build(student, teacher, data)
        self.layers = student.resolve(self.taps.student)
        features = student.channels(self.layers[-1])
        head = LocalSimilarity(features, data.num_classes, self.proxies, self.similarity)
        self.net = ProxyNet(self.student, self.layers[-1], head)

    def feature(self, out: Out) -> Tensor:
        return pooled(out[self.layers[-1]])

    @torch.no_grad()
    def welcome(self) -> None:
        """Remember the past self, and imprint the proxies of the new classes."""
        super().welcome()
        if old := self.experience.old:
            weight = self.net.head.weight
            length = weight[:old].norm(dim=2).mean()
            for label, index in self.arrived():
                weight[label] = length * centroids(self.features(index), self.proxies, self.rng)

    @torch.no_grad()
    def even_out(self) -> None:
        super().even_out()
        self.past.take(self.student)  # which is still from now on

    def balances(self) -> list[nn.Parameter]:
        return [self.net.head.weight]

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        if self.stage == "balance":
            still = self.teacher_out(batch.x, self.past)
            yield "balance", {"nca": self.nca(still, batch, held=0)}
        else:
            yield "student", self.losses(self.student_out(batch.x), self.teach(batch), batch)

    def nca(self, out: Out, batch: Batch, held: int) -> Tensor:
        head = self.net.head
        similarity = head(self.feature(out), held)[:, : self.experience.seen]
        return nca_loss(similarity, batch.y, head.scale, self.margin, self.form)

    def losses(self, s: Out, t: Out | None, batch: Batch) -> dict[str, Tensor]:
        old, seen = self.experience.old, self.experience.seen
        terms = {"nca": self.nca(s, batch, held=old)}
        if t:
            factor = (seen / (seen - old)) ** 0.5
            now, before = ([out[name] for name in self.layers] for out in (s, t))
            terms["pod"] = factor * pod_loss(now, before, self.pooling)
            terms["flat"] = factor * less_forget_loss(self.feature(s), self.feature(t))
        return terms

    def deployed(self) -> nn.Module:
        return self.net
