"""MEAL: multi-model ensemble via adversarial learning (Shen, He, Xue, AAAI 2019, arXiv:1812.02425)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import in_float32
from kdbench.method import Method, Player
from kdbench.settings import Positive
from kdbench.taps import Out, Spec, Taps
from methods.multi_teacher.average import all_of_one_mind


@in_float32
def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """-Σ softmax(t) · log softmax(s) of outputs (B, D), summed over D, averaged over the batch."""
    return F.cross_entropy(student, teacher.softmax(1))


@in_float32
def told_apart(student: Tensor, teacher: Tensor) -> Tensor:
    """How well a discriminator tells student and teacher apart: the smaller, the better.

    Binary cross-entropy, averaged over both logits of 2B rows, of what it says of the student's outputs, (B, 2), for
    targets [1, 0], and of the teacher's, (B, 2), for [0, 1].
    """
    target = torch.cat(
        [student.new_tensor([[1.0, 0.0]]).expand_as(student), student.new_tensor([[0.0, 1.0]]).expand_as(teacher)]
    )
    return F.binary_cross_entropy_with_logits(torch.cat([student, teacher]), target)


class Discriminator(nn.Sequential):
    """Three 1x1 convolutions, D -> D / 2 -> D / 4 -> 2, with ReLUs between them: whose output (B, D) is this?

    The authors' has a ReLU behind the last one, too (`rectified`), so that its logits are never negative.
    """

    def __init__(self, size: int, rectified: bool = False) -> None:
        widths = (size, max(size // 2, 1), max(size // 4, 1))
        super().__init__(
            nn.Unflatten(1, (size, 1, 1)),
            nn.Conv2d(widths[0], widths[1], 1),
            nn.ReLU(),
            nn.Conv2d(widths[1], widths[2], 1),
            nn.ReLU(),
            nn.Conv2d(widths[2], 2, 1),
            *([nn.ReLU()] if rectified else []),
            nn.Flatten(),
        )


class MEAL(Method):
    """In each step one teacher, drawn at random; outputs o_l of each block become like its, and a discriminator's prey.

    Student:          L = Σ_l α · `similarity_loss`( o_l(s), o_l(t) ) - β · `told_apart`( D_l(o_l(s)), D_l(o_l(t)) )
    Discriminators:   L = Σ_l `told_apart`( D_l(o_l(s)), D_l(o_l(t)) )

    with the weights of ``similarity`` and ``adversarial``; no labels. o_l is the map of a stage, pooled to the smallest
    size of all networks and averaged over channels (as in the authors' code), and last the logits.

    In the variant ``authors``, the settings of their scripts, only logits are compared, gradients are not reversed, so
    that the student *minimises* `told_apart` with the discriminators, and these are rectified.

    Args:
        variant: the game of the paper, or what the authors' scripts play.
        discriminator_lr: learning rate of their SGD.
    """

    leaf = "intermediate/features"
    paper = "shen2019meal"
    title = "MEAL"
    needs = frozenset({"teachers"})
    terms = ("similarity", "adversarial", "discriminator")
    survey: ClassVar = {
        "teacher_transform": "adaptive pooling",
        "student_transform": "adaptive pooling",
        "knowledge": "outputs of blocks, of one of several teachers",
        "position": "end of each stage, logits",
        "distance": "cross-entropy, GAN",
        "lost": "channels",
    }

    def __init__(
        self, variant: Literal["paper", "authors"] = "paper", discriminator_lr: Positive = 1e-3, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.variant, self.discriminator_lr = variant, discriminator_lr
        if variant == "paper":
            self.taps = Taps(student=("stage*",), teacher=("stage*",))

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        all_of_one_mind("MEAL", self.teachers)
        stages = [spec.all("stage") for spec in (student, *self.teachers)]
        depth = min(map(len, stages)) if self.variant == "paper" else 0
        self.own, *self.theirs = [taps[len(taps) - depth :] for taps in stages]
        shapes = [
            [spec.shapes[tap] for tap in taps[len(taps) - depth :]]
            for spec, taps in zip((student, *self.teachers), stages, strict=True)
        ]
        self.sizes = [tuple(map(min, *(shape[1:] for shape in at))) for at in zip(*shapes, strict=True)]
        outputs = [*(height * width for height, width in self.sizes), *student.shapes["logits"]]
        self.discriminators = nn.ModuleList(Discriminator(size, self.variant == "authors") for size in outputs)

    def players(self) -> Sequence[Player]:
        sgd = {"_target_": "torch.optim.SGD", "lr": self.discriminator_lr, "momentum": 0.9}
        return [
            Player("student", list(self.student.parameters())),
            Player("discriminators", list(self.discriminators.parameters()), sgd),
        ]

    def outputs(self, out: Out, taps: Sequence[str]) -> list[Tensor]:
        """o_l, each (B, D_l)."""
        maps = [F.adaptive_avg_pool2d(out[tap], size) for tap, size in zip(taps, self.sizes, strict=True)]
        return [*(x.mean(1).flatten(1) for x in maps), out.logits]

    def found_out(self, students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
        """Σ_l `told_apart`."""
        triples = zip(self.discriminators, students, teachers, strict=True)
        return torch.stack([told_apart(judge(s), judge(t)) for judge, s, t in triples]).sum()

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        each = self.teacher_out(batch.for_teacher.x).each  # all are asked, as cells in lockstep share what they say
        chosen = int(torch.randint(len(each), (1,), generator=self.rng))
        s, t = self.outputs(self.student_out(batch.x), self.own), self.outputs(each[chosen], self.theirs[chosen])
        similar = torch.stack([similarity_loss(a, b) for a, b in zip(s, t, strict=True)]).sum()
        sign = -1 if self.variant == "paper" else 1
        yield "student", {"similarity": similar, "adversarial": sign * self.found_out(s, t)}
        yield "discriminators", {"discriminator": self.found_out([output.detach() for output in s], t)}
