"""A comprehensive overhaul of feature distillation (Heo et al., ICCV 2019, arXiv:1904.01866)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import cross_entropy, in_float32, to_smaller
from kdbench.method import Method
from kdbench.taps import Out, Spec, Taps, aligned

RARE = 0.001
"""More rarely negative channels have a margin of -3 σ (clovaai/overhaul-distillation, CIFAR-100/distiller.py)."""


def margin(weight: Tensor, bias: Tensor) -> Tensor:
    """m_c = E[ x | x < 0 ] of what a batch norm returns in each channel, (C,): the margins of the teacher's ReLU.

    x is normal with mean b, the bias, and standard deviation σ = |weight|, so that

    m = b - σ · φ(b / σ) / Φ(-b / σ),

    with density φ and distribution function Φ. Where Φ(-b / σ), the share of negative values, is at most `RARE`, it is
    -3 σ, without the bias, as in the authors' code. In float64.
    """
    sigma, mean = weight.detach().double().abs(), bias.detach().double()
    ratio = mean / sigma.clamp(min=torch.finfo(torch.float64).tiny)
    negative = torch.special.ndtr(-ratio)
    density = (-ratio.square() / 2).exp() / math.sqrt(2 * math.pi)
    return torch.where(negative > RARE, mean - sigma * density / negative.clamp(min=RARE), -3 * sigma)


@in_float32
def partial_l2(student: Tensor, teacher: Tensor, margins: Tensor) -> Tensor:
    """(s - t')² where s > t' or t' > 0, else 0, with the margin ReLU t' = max(t, m); summed over C·H·W, mean over B.

    So a neuron that shall be silent costs nothing where it is. Maps (B, C, H, W) before a ReLU, margins (C,).
    """
    target = torch.maximum(teacher, margins.to(teacher.dtype).view(-1, 1, 1))
    skipped = (student <= target) & (target <= 0)
    return (student - target).square().masked_fill(skipped, 0).flatten(1).sum(1).mean()


@in_float32
def ofd_loss(students: Sequence[Tensor], teachers: Sequence[Tensor], margins: Sequence[Tensor]) -> Tensor:
    """Σ_i 2^(i - n) · `partial_l2` of layers i = 1..n (sizes may differ: the larger map is average-pooled before)."""
    costs = [partial_l2(s, t, m) for s, t, m in zip(students, teachers, margins, strict=True)]
    return torch.stack([cost / 2**depth for depth, cost in enumerate(reversed(costs))]).sum()


def connector(student: int, teacher: int) -> nn.Sequential:
    """1x1 convolution and batch norm from the student's channels to the teacher's, also where these are as many."""
    conv = nn.Conv2d(student, teacher, 1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(teacher))


@torch.no_grad()
def norms_before(teacher: Spec, taps: Sequence[str], shape: tuple[int, ...]) -> list[nn.BatchNorm2d]:
    """The batch norm that each ``pre`` tap comes from, found by a forward pass of blank images.

    That is the last one that returned its shape: the tap itself or, where a residual block adds a branch to a shortcut,
    the branch, as in the authors' code (CIFAR-100/models, get_bn_before_relu).

    Raises:
        DoesNotFit: there is none.
    """
    net = teacher.net
    assert net is not None
    calls: list[tuple[str, nn.Module, Tensor, Tensor]] = []  # in order: name, module, input, output
    hooks = [
        module.register_forward_hook(lambda module, given, out, name=name: calls.append((name, module, given[0], out)))
        for name, module in net.named_modules()
        if module is not net
    ]
    like = next(net.parameters())
    found = net.tap(torch.zeros(2, *shape, device=like.device, dtype=like.dtype))  # type: ignore[operator]
    for hook in hooks:
        hook.remove()
    norms: list[nn.BatchNorm2d] = []
    for tap in taps:
        pre, active = found[tap], found[tap.replace("pre", "stage")]
        end = next((i for i, (_, _, given, _) in enumerate(calls) if given is active), len(calls))
        near = [
            norm
            for name, norm, _, out in calls[:end]
            if isinstance(norm, nn.BatchNorm2d) and out.shape == pre.shape and "shortcut" not in name
        ]
        if not near:
            raise DoesNotFit(
                f"OFD takes its margins from the batch norm before a ReLU, and {teacher.name} has none for '{tap}': "
                "choose another teacher."
            )
        norms.append(near[-1])
    return norms


class OFD(Method):
    """L = CE(y, s) + λ · `ofd_loss`( r(s), t, m ).

    Features are compared before the last ReLU of each stage: the student's behind a `connector` r, the teacher's behind
    a ReLU that keeps a part of what is negative, down to the `margin` m of each channel.
    """

    leaf = "intermediate/features"
    paper = "heo2019comprehensive"
    title = "OFD"
    taps = Taps(student=("pre*",), teacher=("pre*",))
    terms = ("ce", "ofd")
    survey: ClassVar = {
        "teacher_transform": "margin ReLU",
        "student_transform": "1x1 convolution",
        "knowledge": "feature map",
        "position": "before the last ReLU of each stage",
        "distance": "partial L2",
        "lost": "how negative the negative is",
    }

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        self.pairs = aligned(student, teacher, "pre")
        self.connectors = nn.ModuleList(connector(student.channels(a), teacher.channels(b)) for a, b in self.pairs)
        norms = norms_before(teacher, [b for _, b in self.pairs], data.shape_for_teacher or data.shape)
        for i, norm in enumerate(norms):
            self.register_buffer(f"margin{i}", margin(norm.weight, norm.bias).float())

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        sized = [to_smaller(s[a], t[b]) for a, b in self.pairs]
        students = [connect(own) for connect, (own, _) in zip(self.connectors, sized, strict=True)]
        margins = [self.get_buffer(f"margin{i}") for i in range(len(sized))]
        ofd = ofd_loss(students, [taught for _, taught in sized], margins)
        return {"ce": cross_entropy(s.logits, batch.y), "ofd": ofd}
