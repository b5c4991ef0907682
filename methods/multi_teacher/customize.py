"""Customised students by adaptive knowledge amalgamation (Shen et al., ICCV 2019, arXiv:1908.07121)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import in_float32
from kdbench.method import Method, Player, Snapshot, Stage
from kdbench.taps import Out, Spec, Taps
from methods.multi_teacher.ka import groups_of_taps, of_one_size
from methods.multi_teacher.uhc import known_classes


@torch.no_grad()
@in_float32
def least_ambiguous(teachers: Sequence[Tensor]) -> Tensor:
    """argmin_k -Σ_l p_k(l) log p_k(l), (B,): which of the teachers is surest of each sample.

    Args:
        teachers: logits of each over the same number of classes, (B, K).
    """
    return torch.special.entr(torch.stack(list(teachers)).softmax(2)).sum(2).argmin(0)


@in_float32
def selective_loss(students: Sequence[Tensor], teachers: Sequence[Tensor], chosen: Tensor) -> Tensor:
    """Mean over the batch of the mean over elements of (s_k - t_k)², for the k that is chosen for each sample.

    Args:
        students, teachers: what is compared with teacher k, and what is told by it, two of one shape (B, ...).
        chosen: (B,).
    """
    errors = [(s - t).square().flatten(1).mean(1) for s, t in zip(students, teachers, strict=True)]
    return torch.stack(errors).gather(0, chosen[None]).mean()


@in_float32
def unit_norm_loss(weight: Tensor) -> Tensor:
    """Mean over output channels of (‖w_o‖² - 1)², of a weight (O, I, 1, 1): or both sides might align at zero."""
    return (weight.square().sum(1) - 1).square().mean()


def pointwise(c_in: int, c_out: int) -> nn.Conv2d:
    """A 1x1 convolution of weights of variance 1 / c_in, so that their norms are about one."""
    conv = nn.Conv2d(c_in, c_out, 1)
    nn.init.kaiming_uniform_(conv.weight, nonlinearity="linear")
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


class Alignment(nn.Module):
    """1x1 convolutions of a component's map and of a teacher's into a common space of `channels`."""

    def __init__(self, component: int, teacher: int, channels: int) -> None:
        super().__init__()
        self.component, self.teacher = pointwise(component, channels), pointwise(teacher, channels)


class AdaptiveKA(Method):
    """Teachers of the same classes become one component network, the components of all classes become the student.

    Stage ``components``:  for each component c, with k the `least_ambiguous` of its teachers for each sample,
    L = `selective_loss`(c, t_k) of logits + Σ_l `selective_loss`(a_lk(f_c), b_lk(f_k)) + Σ_l Σ_k `unit_norm_loss`(b_lk)

    Stage ``target``:      L = Σ_c ‖s - c‖² / K_c + Σ_l Σ_c ‖r_lc(f_s) - f_c‖² / (C·H·W), means over the batch

    in all stages l of the networks, by 1x1 convolutions a and b (`Alignment`) and r. A component has the student's
    architecture; its logits of the classes that it knows are compared. No labels.

    Args:
        component_share: share of the epochs spent on the components, within the protocol's budget.
    """

    leaf = "multi-teacher/amalgamation"
    paper = "shen2019customizing"
    title = "Adaptive KA"
    needs = frozenset({"teachers", "peers"})
    taps = Taps(student=("stage*",), teacher=("stage*",))
    terms = ("soft", "features", "norm")
    survey: ClassVar = {
        "ensemble_logits": "those of the surest teacher",
        "ensemble_features": "aligned by 1x1 convolutions, layer by layer",
        "unify_data": "yes",
        "customize": "yes",
        "peers": "no",
        "online": "no",
        "objective": "L2",
    }

    def __init__(self, component_share: Annotated[float, Field(gt=0, lt=1)] = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.component_share = component_share

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.classes = known_classes(self.teachers, data)
        sources: dict[frozenset[int], list[int]] = {}
        for k, own in enumerate(self.classes):
            sources.setdefault(frozenset(own), []).append(k)
        self.sources = list(sources.values())
        self.groups = groups_of_taps(student, self.teachers)
        channels = [student.channels(own) for own, *_ in self.groups]
        self.components = nn.ModuleList(self.spawn(k + 1) for k in range(len(self.sources)))
        self.finished = nn.ModuleList(map(Snapshot, self.components))
        self.alignments = nn.ModuleList(
            nn.ModuleList(
                Alignment(c, spec.channels(taps[k + 1]), max(c // 2, 1))
                for c, taps in zip(channels, self.groups, strict=True)
            )
            for k, spec in enumerate(self.teachers)
        )
        self.adapters = nn.ModuleList(nn.ModuleList(pointwise(c, c) for c in channels) for _ in self.sources)

    def stages(self) -> Sequence[Stage]:
        share = self.component_share
        return (Stage("components", share), Stage("target", 1 - share, self.finish_components))

    def finish_components(self) -> None:
        for snapshot, net in zip(self.finished, self.components, strict=True):
            snapshot.take(net)  # type: ignore[operator]

    def players(self) -> Sequence[Player]:
        if self.stage == "components":
            return [Player("components", [*self.components.parameters(), *self.alignments.parameters()])]
        return [Player("student", [*self.student.parameters(), *self.adapters.parameters()])]

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        if self.stage == "components":
            t = self.teach(batch)
            assert t is not None
            components = [self.student_out(batch.x, net) for net in self.components]
            yield "components", self.component_terms(components, t)
        else:
            told = [self.teacher_out(batch.x, net) for net in self.finished]
            yield "student", self.target_terms(self.student_out(batch.x), told)

    def component_terms(self, components: Sequence[Out], t: Out) -> dict[str, Tensor]:
        soft, features = [], []
        for c, sources in zip(components, self.sources, strict=True):
            logits = [t.each[k].logits for k in sources]
            chosen = least_ambiguous(logits)
            soft.append(selective_loss([c.logits[:, list(self.classes[k])] for k in sources], logits, chosen))
            for level, (own, *taps) in enumerate(self.groups):
                mine, *theirs = of_one_size([c[own], *(t.each[k][taps[k]] for k in sources)])
                pairs = [self.alignments[k][level] for k in sources]  # type: ignore[index]
                aligned = [pair.component(mine) for pair in pairs]
                shown = [pair.teacher(x) for pair, x in zip(pairs, theirs, strict=True)]
                features.append(selective_loss(aligned, shown, chosen))
        norms = [unit_norm_loss(pair.teacher.weight) for pairs in self.alignments for pair in pairs]  # type: ignore[attr-defined]
        return {name: torch.stack(of).sum() for name, of in (("soft", soft), ("features", features), ("norm", norms))}

    def target_terms(self, s: Out, told: Sequence[Out]) -> dict[str, Tensor]:
        soft, features = [], []
        for c, sources, adapters in zip(told, self.sources, self.adapters, strict=True):
            own = list(self.classes[sources[0]])
            soft.append(F.mse_loss(s.logits[:, own], c.logits[:, own]))
            for (tap, *_), adapter in zip(self.groups, adapters, strict=True):  # type: ignore[call-overload]
                features.append(F.mse_loss(adapter(s[tap]), c[tap]))
        return {"soft": torch.stack(soft).sum(), "features": torch.stack(features).sum()}
