"""Learning from multiple experts: self-paced distillation (Xiang, Ding, Han, ECCV 2020, arXiv:2001.01536)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32, kl
from kdbench.method import Method, Stage
from kdbench.settings import Share, Temperature
from kdbench.taps import Out, Spec
from methods.multi_teacher.cfl import joined
from methods.multi_teacher.pool import images_of, logits_of
from methods.multi_teacher.uhc import known_classes


@in_float32
def experts_loss(
    student: Tensor,
    experts: Sequence[Tensor],
    classes: Sequence[Sequence[int]],
    weights: Tensor,
    temperature: float = 2.0,
) -> Tensor:
    """Σ_g w_g · KL( softmax(t_g / T) || softmax(s / T) over the classes of expert g ), without T².

    Summed over classes, averaged over the whole batch, as in xiangly55/LFME, loss/DistillationLoss.py: of images that
    belong to no class of an expert, it speaks, too.

    Args:
        student: logits, (B, K).
        experts: logits of each over its own classes, (B, K_g).
        classes: what their outputs mean, as positions among the K.
        weights: w, (G,), constants.
    """
    parts = [kl(student[:, list(own)], expert, temperature) for expert, own in zip(experts, classes, strict=True)]
    return weights.to(student.dtype) @ torch.stack(parts) / temperature**2


@in_float32
def paced_cross_entropy_loss(student: Tensor, y: Tensor, weights: Tensor) -> Tensor:
    """Mean over the batch of v_n · CE(y_n, s_n), of logits (B, K), labels and weights (B,)."""
    return (weights * cross_entropy(student, y, reduction="none")).mean()


def expert_weights(student: Tensor, experts: Tensor, threshold: float) -> Tensor:
    """w_g = 1 while A_s < α · A_g, then (A_g - A_s) / ((1 - α) · A_g), and 0 from A_s = A_g on; of accuracies (G,)."""
    gap = (experts - student) / ((1 - threshold) * experts).clamp(min=1e-12)
    return torch.where(student < threshold * experts, torch.ones_like(gap), gap.clamp(min=0, max=1))


def instance_weights(confidence: Tensor, y: Tensor, floor: Tensor) -> Tensor:
    """v_n at first, (N,): the confidence in the label, stretched to [θ, 1] within each class.

    Args:
        confidence, y: of each sample, (N,).
        floor: θ of each class, (K,).
    """
    low = torch.full_like(floor, torch.inf).scatter_reduce(0, y, confidence, "amin")
    high = torch.full_like(floor, -torch.inf).scatter_reduce(0, y, confidence, "amax")
    place = (confidence - low[y]) / (high - low)[y].clamp(min=1e-12)
    return floor[y] + (1 - floor[y]) * place


class LFME(Method):
    """Experts for groups of classes teach, each until the student is as good; easy samples of large groups come first.

    L = `paced_cross_entropy_loss`(s, y, v) + Σ_g w_g · KL_g, see `experts_loss`

    Self-paced expert selection: w = `expert_weights` of accuracies on each group's training samples in the epoch before
    (the paper's are those of validation, which no method sees), 1 in the first epoch.

    Curriculum instance selection: v starts at the `instance_weights` of the experts' confidence in unaugmented images,
    with θ the number of samples per class in the smallest group over that in the sample's own, and rises linearly to 1.
    Where groups are of one size θ = 1, and all samples count from the start. The authors' code multiplies the student's
    logits by v instead. Its sampling of classes at equal rates is up to the data.

    Args:
        temperature: T.
        threshold: α, the share of an expert's accuracy at which it begins to withdraw.
        until: the share of the epochs after which v = 1.
    """

    leaf = "multi-teacher/ensemble-of-logits"
    paper = "xiang2020learning"
    title = "LFME"
    needs = frozenset({"teachers", "labels"})
    terms = ("ce", "kd")
    survey: ClassVar = {
        "ensemble_logits": "distributions of experts, weighted by their lead",
        "ensemble_features": "none",
        "unify_data": "yes",
        "customize": "no",
        "peers": "no",
        "online": "no",
        "objective": "curriculum CE + self-paced KL on each expert's classes",
    }
    member: Tensor
    instances: Tensor
    lead: Tensor
    hits: Tensor
    seen: Tensor
    counted: Tensor

    def __init__(
        self,
        temperature: Temperature = 2.0,
        threshold: Annotated[float, Field(ge=0, lt=1)] = 0.3,
        until: Share = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.temperature, self.threshold, self.until = temperature, threshold, until

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.classes = known_classes(self.teachers, data)
        groups = len(self.classes)
        member = torch.zeros(groups, data.num_classes)
        for g, own in enumerate(self.classes):
            member[g, list(own)] = 1
        self.register_buffer("member", member)
        self.register_buffer("instances", torch.ones(images_of("LFME", data)))
        self.register_buffer("lead", torch.ones(groups))
        self.register_buffer("hits", torch.zeros(2, groups))  # the student's and each expert's, in the epoch `counted`
        self.register_buffer("seen", torch.zeros(groups))
        self.register_buffer("counted", torch.tensor(0))

    def stages(self) -> Sequence[Stage]:
        return (Stage("order", 0, self.order), Stage("train"))

    @torch.no_grad()
    def order(self) -> None:
        """Ask the experts which samples are easy."""
        parts = [self.confidence(part) for part in self.positions().split(self.protocol.batch_size)]
        index, y, confidence = (torch.cat(each) for each in zip(*parts, strict=True))
        counts = torch.bincount(y, minlength=self.member.shape[1]).to(confidence)
        shots = self.member @ counts / self.member.sum(1)
        own = (shots @ self.member) / self.member.sum(0)  # of a class that several experts know, their mean
        self.instances[index] = instance_weights(confidence, y, (shots.min() / own.clamp(min=1)).clamp(max=1))

    def confidence(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(positions, labels, probability of the label by whoever knows its class), (N,) each."""
        batch = self.take(index, plain=True)
        told = [z.float().softmax(1) for z in logits_of(self.teacher_out(batch.for_teacher.x))]
        p = joined(told, self.classes, self.member.shape[1])
        return batch.index, batch.y, p.gather(1, batch.y[:, None])[:, 0]

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        experts = logits_of(t)
        self.count(s.logits, experts, batch.y)
        v = self.instances[batch.index]
        risen = min(self.epoch / max(self.until * self.protocol.epochs, 1e-12), 1.0)
        return {
            "ce": paced_cross_entropy_loss(s.logits, batch.y, v + (1 - v) * risen),
            "kd": experts_loss(s.logits, experts, self.classes, self.lead, self.temperature),
        }

    @torch.no_grad()
    def count(self, student: Tensor, experts: Sequence[Tensor], y: Tensor) -> None:
        """Who is right, by groups; with the first batch of an epoch the lead follows from the epoch before."""
        new = self.counted != self.epoch
        accuracy = self.hits / self.seen.clamp(min=1)
        lead = expert_weights(accuracy[0], accuracy[1], self.threshold)
        self.lead = torch.where(new & (self.seen > 0), lead, self.lead)
        own = self.member[:, y]
        told = [y.new_tensor(known)[expert.argmax(1)] for known, expert in zip(self.classes, experts, strict=True)]
        right = torch.stack([(student.argmax(1) == y).expand_as(own), torch.stack(told) == y])
        self.hits = torch.where(new, 0.0, self.hits) + (own * right).sum(2)
        self.seen = torch.where(new, 0.0, self.seen) + own.sum(1)
        self.counted = torch.full_like(self.counted, self.epoch)
