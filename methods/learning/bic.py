"""BiC: large scale incremental learning (Wu et al., CVPR 2019, arXiv:1905.13260)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Player, Snapshot, Stage
from kdbench.settings import Positive, Share, Temperature
from kdbench.taps import Spec
from methods.learning.lwf import old_classes_loss
from methods.learning.rehearsal import Mix, Rehearsal, drawn, first_of_each


def corrected(logits: Tensor, scale: Tensor, shift: Tensor, old: int, seen: int) -> Tensor:
    """α·z + β for the classes old..seen-1, the others as they are: (B, K)."""
    new = scale * logits[:, old:seen] + shift
    return logits.slice_scatter(new.to(logits.dtype), 1, old, seen)


@in_float32
def bias_loss(logits: Tensor, y: Tensor, shift: Tensor, penalty: float = 0.1) -> Tensor:
    """CE of the corrected logits (B, seen), plus penalty · β² / 2 (the authors' code)."""
    return cross_entropy(logits, y) + penalty * shift.square().sum() / 2


class BiasCorrected(nn.Module):
    """A network with a scale and a shift for the logits of each experience's classes, from the second one on."""

    def __init__(self, net: nn.Module, ends: Sequence[int]) -> None:
        super().__init__()
        self.net, self.parts = net, list(zip((0, *ends), ends, strict=False))[1:]
        self.scales = nn.ParameterList(torch.ones(1) for _ in self.parts)
        self.shifts = nn.ParameterList(torch.zeros(1) for _ in self.parts)

    @torch.no_grad()
    def forget(self) -> None:
        """Correct nothing any more."""
        for scale, shift in zip(self.scales, self.shifts, strict=True):
            scale.fill_(1)
            shift.fill_(0)

    def correct(self, logits: Tensor) -> Tensor:
        for (old, seen), scale, shift in zip(self.parts, self.scales, self.shifts, strict=True):
            logits = corrected(logits, scale, shift, old, seen)
        return logits

    def forward(self, x: Tensor) -> Tensor:
        return self.correct(self.net(x))

    def tap(self, x: Tensor, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """As of `kdbench.taps.Net`."""
        taps: dict[str, Tensor] = self.net.tap(x, names)  # type: ignore[operator]
        return taps | {"logits": self.correct(taps["logits"])}


class BiC(Rehearsal):
    """A scale and a shift of the new classes' logits undo the bias towards them; both are learned on held-out samples.

    Stage ``train``:  L = old/seen · `old_classes_loss`(s, past self) + new/seen · CE(y, s)
    Stage ``bias``:   L = `bias_loss`( α·s + β for new classes, s for old ones ), s held still

    From every class the first tenth (`held_out`) of what will be its exemplars is held out of the first stage and alone
    makes the second. The past self is the corrected student as it was when the new classes came; from then on the
    student learns what the correction made of these classes, and it corrects none but the newest. The first experience
    has no second stage. Exemplars are the first of each class, where the authors herd them.

    Args:
        temperature: T of the distillation.
        held_out: share of the exemplars that only the bias is learned on; one of each class at least.
        bias_share: share of the epochs of an experience in which it is.
        bias_lr: learning rate of its SGD with momentum .9, constant; the authors' falls to a tenth four times.
        corrections: of the ``newest`` classes alone, as in the paper, or of ``all`` but the first, each with what was
            found when it was the newest, which counts twice what the student has learned from its corrected past self.
    """

    leaf = "learning/incremental"
    paper = "wu2019large"
    title = "BiC"
    terms = ("ce", "kd", "bias")
    added: ClassVar = {"corrections": "all"}
    earlier: ClassVar = frozenset(
        {
            "602c108da40e85917b7182c937feee10f6b299318908217c0ea7d9938d12039a",
            "11ccaa0b8295d10005e619dbacc285a1c25a27bf0806523668534f4f2440f259",
            "546771befdb5614ce0af8ea1b23a0abeada1c6c4255c8fbc1f54f16bf7a1c9e5",
        }
    )
    survey: ClassVar = {
        "knowledge": "softened old-class scores of the past self; exemplars",
        "objective": "λ CE(past/T, s/T) + (1 - λ) CE; linear bias correction",
    }
    held: Tensor
    validation: Tensor

    def __init__(
        self,
        temperature: Temperature = 2.0,
        held_out: Share = 0.1,
        bias_share: Share = 0.2,
        bias_lr: Positive = 0.1,
        corrections: Literal["newest", "all"] = "newest",
        mix: Mix = "union",
        **kwargs: Any,
    ) -> None:
        super().__init__(mix=mix, **kwargs)
        self.temperature, self.held_out = temperature, held_out
        self.bias_share, self.bias_lr, self.corrections = bias_share, bias_lr, corrections

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        if data.memory < 2 * data.num_classes:
            raise DoesNotFit(
                f"BiC trains and holds out exemplars of {data.num_classes} classes, and there is memory for "
                f"{data.memory}: raise dataset.scenario.memory to {2 * data.num_classes} or more."
            )
        self.corrected = BiasCorrected(self.student, data.experiences)
        self.past = Snapshot(self.corrected)
        for name in ("held", "validation"):
            self.register_buffer(name, torch.zeros(data.n_train, dtype=torch.bool))

    def stages(self) -> Sequence[Stage]:
        keep = Stage("keep", 0, self.keep_some)
        if not self.experience.old:
            return (Stage("train", begin=self.welcome), keep)
        return (
            Stage("train", 1 - self.bias_share, self.welcome),
            Stage("bias", self.bias_share, self.hold_still),
            keep,
        )

    @property
    def held_per_class(self) -> int:
        return max(1, int(self.held_out * self.per_class))

    def welcome(self) -> None:
        """Remember the past self, and hold some of the new samples out."""
        self.past.take(self.corrected)
        if self.corrections == "newest":
            self.corrected.forget()
        index = self.positions().cpu()
        y = self.labels(index)
        fewest = int(y.unique(return_counts=True)[1].min())
        n = min(self.held_per_class, max(1, int(self.held_out * fewest)))  # of classes smaller than the memory
        self.held[first_of_each(y, index, n)] = True

    def hold_still(self) -> None:
        """From now on the corrected student is still, and as many held-out samples of each class are the data."""
        self.past.take(self.corrected)
        self.validation.zero_()
        self.validation[self.balanced(torch.cat([self.kept, self.positions().cpu()]), held=True)] = True

    def keep_some(self) -> None:
        index = torch.cat([self.kept, self.positions().cpu()])
        self.keep(torch.cat([self.balanced(index, True), self.balanced(index, False)]))

    def balanced(self, index: Tensor, held: bool) -> Tensor:
        """Of these positions, as many of each class as there is memory for: of the held-out ones, or of the others."""
        index = index[self.held.cpu()[index] == held]
        y, n = self.labels(index), self.held_per_class if held else self.per_class - self.held_per_class
        if held:
            n = min(n, int(y.unique(return_counts=True)[1].min()))
        return first_of_each(y, index, n)

    def batch(self, batch: Batch) -> Batch:
        if self.stage == "bias":
            return self.take(drawn(self.validation.cpu().nonzero()[:, 0], len(batch), self.rng))
        trained = ~self.held[batch.index]
        if trained.any():
            batch = Batch(batch.x[trained], batch.y[trained], batch.index[trained], batch.view[trained])
        else:  # a small last batch, all of it held out
            index = self.positions().cpu()
            batch = self.take(drawn(index[~self.held.cpu()[index]], len(batch), self.rng))
        return self.with_exemplars(batch, self.kept[~self.held.cpu()[self.kept]])

    def players(self) -> Sequence[Player]:
        if self.stage == "train":
            return (Player("student", list(self.student.parameters())),)
        k = self.experience.number - 1
        sgd = {"_target_": "torch.optim.SGD", "lr": self.bias_lr, "momentum": 0.9}
        return (Player("bias", [self.corrected.scales[k], self.corrected.shifts[k]], sgd),)

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        k, old, seen = self.experience.number - 1, self.experience.old, self.experience.seen
        if self.stage == "bias":
            still = self.teacher_out(batch.x, self.past).logits[:, :seen]
            logits = corrected(still, self.corrected.scales[k], self.corrected.shifts[k], old, seen)
            yield "bias", {"bias": bias_loss(logits, batch.y, self.corrected.shifts[k])}
            return
        s = self.student_out(batch.x).logits
        terms = {"ce": (1 - old / seen) * cross_entropy(s[:, :seen], batch.y)}
        if old:
            past = self.teacher_out(batch.x, self.past).logits
            terms["kd"] = old / seen * old_classes_loss(s[:, :old], past[:, :old], self.temperature)
        yield "student", terms

    def deployed(self) -> nn.Module:
        return self.corrected
