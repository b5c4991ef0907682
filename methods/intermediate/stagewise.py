"""Stagewise knowledge distillation (Kulkarni, Panchi, Chiddarwar, 2019, arXiv:1911.06786)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, to_smaller
from kdbench.method import Method, Player, Stage
from kdbench.settings import Count
from kdbench.taps import Out, Spec, Taps, aligned
from methods.intermediate.fitnet import hint_loss
from methods.intermediate.widths import same_width


def blocks_of(net: nn.Module, ends: Sequence[str], shape: tuple[int, ...]) -> list[list[str]]:
    """Names of the parameters that come before the first of the taps `ends`, between each two, and behind the last.

    What a tap depends on is known from its gradients, whatever the network is made of.
    """
    training = net.training
    net.eval()  # a pass that leaves no trace
    left = dict(net.named_parameters())
    like = next(iter(left.values()))
    with torch.enable_grad():
        taps = net.tap(torch.zeros(2, *shape, device=like.device, dtype=like.dtype), ends)  # type: ignore[operator]
    net.train(training)
    blocks: list[list[str]] = []
    for end in ends:
        gradients = torch.autograd.grad(taps[end].sum(), list(left.values()), retain_graph=True, allow_unused=True)
        blocks.append([name for name, gradient in zip(left, gradients, strict=True) if gradient is not None])
        left = {name: parameter for name, parameter in left.items() if name not in blocks[-1]}
    return [*blocks, list(left)]


class Stagewise(Method):
    """One block of the student after the other learns the teacher's features, and last the classifier the labels.

    Stage ``block1``, ``block2``, ...:  L = `hint_loss`( s_i, t_i ), of block i's parameters alone
    Stage ``classifier``:               L = CE(y, s), of the classifier's parameters alone

    Blocks end with the stem and with each stage. Each has as many epochs, all of them within the protocol's budget. The
    running statistics of batch norms that learn no more still follow, as in the authors' code. Their students have the
    teacher's widths; where others have not, their maps pass a `same_width`, which is ours.

    Args:
        blocks: how many learn one after the other, counted from the deepest, whose first is all that comes before its
            end; by default all.
    """

    leaf = "intermediate/features"
    paper = "kulkarni2019stagewise"
    title = "Stagewise KD"
    taps = Taps(student=("stem", "stage*"), teacher=("stem", "stage*"))
    terms = ("feature", "ce")
    survey: ClassVar = {
        "teacher_transform": "none",
        "student_transform": "none",
        "knowledge": "feature map, block after block",
        "position": "end of each stage",
        "distance": "L2",
        "lost": "none",
    }

    def __init__(self, blocks: Count | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.blocks = blocks

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        self.pairs = [("stem", "stem"), *aligned(student, teacher)][-(self.blocks or 0) :]
        self.connectors = nn.ModuleList(same_width(student.shapes[a], teacher.shapes[b]) for a, b in self.pairs)
        *parts, self.classifier = blocks_of(self.student, [a for a, _ in self.pairs], data.shape)
        self.parts = {f"block{i}": part for i, part in enumerate(parts, 1)}

    def stages(self) -> Sequence[Stage]:
        return [Stage(name, 1 / (len(self.parts) + 1)) for name in (*self.parts, "classifier")]

    @property
    def course(self) -> int:
        """Position of the block in course."""
        return list(self.parts).index(self.stage)

    def learning(self) -> list[nn.Parameter]:
        """The student's parameters in course."""
        names = self.classifier if self.stage == "classifier" else self.parts[self.stage]
        return [self.student.get_parameter(name) for name in names]

    def players(self) -> Sequence[Player]:
        adapter = [] if self.stage == "classifier" else self.connectors[self.course].parameters()
        return (Player("student", [*self.learning(), *adapter]),)

    @contextmanager
    def others_at_rest(self) -> Iterator[None]:
        """Of all other parameters no gradient is computed, for they would not be used."""
        resting = [
            p for p in self.student.parameters() if p.requires_grad and all(p is not own for own in self.learning())
        ]
        for parameter in resting:
            parameter.requires_grad_(False)
        yield
        for parameter in resting:
            parameter.requires_grad_(True)

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        t = None if self.stage == "classifier" else self.teach(batch)
        with self.others_at_rest():
            terms = self.losses(self.student_out(batch.x), t, batch)  # type: ignore[arg-type]
        yield "student", terms

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        if self.stage == "classifier":
            return {"ce": cross_entropy(s.logits, batch.y)}
        own, taught = self.pairs[self.course]
        return {"feature": hint_loss(*to_smaller(self.connectors[self.course](s[own]), t[taught]))}
