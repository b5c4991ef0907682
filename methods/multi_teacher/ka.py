"""Layer-wise knowledge amalgamation (Shen et al., AAAI 2019, arXiv:1811.02796)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import in_float32, kl
from kdbench.method import Method, Player
from kdbench.settings import Positive
from kdbench.taps import Spec, Taps, aligned
from methods.multi_teacher.cfl import joined, reconstruction_loss
from methods.multi_teacher.uhc import known_classes

Targets = Literal["kl", "mse"]
"""``mse``: logits are compared, as in the paper; ``kl``: softmax of both, as in zju-vipa/KamalEngine."""


@in_float32
def amalgamation_loss(adapted: Tensor, code: Tensor) -> Tensor:
    """Mean over elements of (r(f_s) - c)²; no gradient reaches the code c, which is there to tell the teachers."""
    return F.mse_loss(adapted, code.detach())


class AmalgamationBlock(nn.Module):
    """An auto-encoder of 1x1 convolutions over the teachers' maps, with as many channels in its code as the student's.

    c = e([f_1, ..., f_n]), of which d(c) gives the f_k back, and r(f_s), the student's own map, adapted.

    Args:
        student, teachers: channels of each map, (B, C, H, W); sizes agree.
    """

    def __init__(self, student: int, teachers: Sequence[int]) -> None:
        super().__init__()
        self.teachers = list(teachers)
        self.encoder = nn.Conv2d(sum(teachers), student, 1)
        self.adapter = nn.Conv2d(student, student, 1)
        self.decoder = nn.Conv2d(student, sum(teachers), 1)

    def forward(self, student: Tensor, teachers: Sequence[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """(the student's map as adapted, the code, the teachers' maps as decoded from it)."""
        code = self.encoder(torch.cat(list(teachers), dim=1))
        return self.adapter(student), code, list(self.decoder(code).split(self.teachers, dim=1))


def of_one_size(maps: Sequence[Tensor]) -> list[Tensor]:
    """Maps (B, C, H, W) of several networks, the larger ones average-pooled to the size of the smallest."""
    size = min(x.shape[2] for x in maps), min(x.shape[3] for x in maps)
    return [F.adaptive_avg_pool2d(x, size) if x.shape[2:] != size else x for x in maps]


def groups_of_taps(student: Spec, teachers: Sequence[Spec]) -> list[tuple[str, ...]]:
    """Stages of equal depth, counted from the deepest: (of the student, of the first teacher, of the second, ...)."""
    pairs = [aligned(student, teacher) for teacher in teachers]
    depth = min(map(len, pairs))
    levels = zip(*(each[-depth:] for each in pairs), strict=True)
    return [(level[0][0], *(theirs for _, theirs in level)) for level in levels]


class KA(Method):
    """One student for the classes of all teachers; in each layer it learns a code of what their features tell together.

    L = KL( `joined`(t) || s ) + Σ_l `amalgamation_loss`(r_l(f_s), c_l) + Σ_lk `reconstruction_loss`(d_lk(c_l), f_lk)

    with an `AmalgamationBlock` for each stage l, whose auto-encoder learns the last term beside the student, with an
    Adam of its own (the paper first trains the codes, then the student layer by layer, then all of it; its authors'
    code, whose losses these are, trains all at once). No labels.

    Args:
        targets: how the student is compared with the teachers' joined logits; ``mse`` of logits is the paper's.
        code_lr: learning rate of the auto-encoders' Adam.
    """

    leaf = "multi-teacher/amalgamation"
    paper = "shen2019amalgamating"
    title = "KA"
    needs = frozenset({"teachers"})
    taps = Taps(student=("stage*",), teacher=("stage*",))
    terms = ("kd", "amalgamation", "reconstruction")
    survey: ClassVar = {
        "ensemble_logits": "concatenated logits",
        "ensemble_features": "a code of concatenated features, layer by layer",
        "unify_data": "yes",
        "customize": "yes",
        "peers": "no",
        "online": "no",
        "objective": "KL + L2 + reconstruction",
    }

    def __init__(self, targets: Targets = "kl", code_lr: Positive = 1e-3, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.code_lr = code_lr
        self.compared = kl if targets == "kl" else in_float32(F.mse_loss)

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.classes = known_classes(self.teachers, data)
        self.groups = groups_of_taps(student, self.teachers)
        self.blocks = nn.ModuleList(
            AmalgamationBlock(
                student.channels(own), [spec.channels(tap) for spec, tap in zip(self.teachers, theirs, strict=True)]
            )
            for own, *theirs in self.groups
        )

    def players(self) -> Sequence[Player]:
        blocks = list(self.blocks.named_parameters())
        adapters = [parameter for name, parameter in blocks if ".adapter." in name]
        codes = [parameter for name, parameter in blocks if ".adapter." not in name]
        adam = {"_target_": "torch.optim.Adam", "lr": self.code_lr}
        return [Player("student", [*self.student.parameters(), *adapters]), Player("codes", codes, adam)]

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        s, t = self.student_out(batch.x), self.teach(batch)
        assert t is not None
        amalgamated, back = [], []
        for block, (own, *taps) in zip(self.blocks, self.groups, strict=True):
            student, *theirs = of_one_size([s[own], *(each[tap] for each, tap in zip(t.each, taps, strict=True))])
            adapted, code, decoded = block(student, theirs)
            amalgamated.append(amalgamation_loss(adapted, code))
            back += [reconstruction_loss(d, feature) for d, feature in zip(decoded, theirs, strict=True)]
        told = joined([each.logits for each in t.each], self.classes, s.logits.shape[1])
        yield "student", {"kd": self.compared(s.logits, told), "amalgamation": torch.stack(amalgamated).sum()}
        yield "codes", {"reconstruction": torch.stack(back).sum()}
