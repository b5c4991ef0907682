"""FRSKD: feature refinement via self-distillation (Ji et al., CVPR 2021, arXiv:2103.08273)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import add
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import cross_entropy, kl
from kdbench.method import Method
from kdbench.settings import Count, Temperature
from kdbench.taps import Out, Spec, Taps
from methods.intermediate.at import at_loss


def pointwise(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())


def separable(channels: int) -> nn.Sequential:
    """Two 3x3 convolutions per channel, each with a 1x1 convolution and a batch norm behind it."""

    def once() -> list[nn.Module]:
        depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        return [depthwise, nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]

    return nn.Sequential(*once(), *once())


class Mix(nn.Module):
    """A sum with learned weights, none negative, of sum one: Σ_k w_k · x_k / Σ_k w_k."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(inputs))

    def forward(self, *inputs: Tensor) -> Tensor:
        weight = self.weight.relu()
        shares = (weight / (weight.sum() + 1e-6)).unbind()
        return reduce(add, (share * x for share, x in zip(shares, inputs, strict=True)))


class SelfTeacher(nn.Module):
    """The student's maps refined top-down, then bottom-up (a BiFPN of one layer), and a classifier on the last.

    Each refined map has the size of its stage and `width` times the channels (models/bifpnc.py of the authors' code).

    Args:
        stages: shapes of the student's maps, (C, H, W), the shallowest first.
    """

    def __init__(self, stages: Sequence[tuple[int, ...]], width: int, num_classes: int) -> None:
        super().__init__()
        own = [shape[0] for shape in stages]
        wide = [width * channels for channels in own]
        self.sizes = [tuple(shape[1:]) for shape in stages]
        inner = len(stages) - 2
        self.first = nn.ModuleList(map(pointwise, own, wide))
        self.second = nn.ModuleList(map(pointwise, own[1:], wide[1:]))
        self.up = nn.ModuleList(map(pointwise, wide[1:], wide[:-1]))
        self.up_mix = nn.ModuleList(Mix(2) for _ in wide[:-1])
        self.up_conv = nn.ModuleList(map(separable, wide[:-1]))
        self.down = nn.ModuleList(map(pointwise, wide[:-1], wide[1:]))
        self.down_mix = nn.ModuleList(Mix(3 if i < inner else 2) for i in range(len(stages) - 1))
        self.down_conv = nn.ModuleList(map(separable, wide[1:]))
        self.classifier = nn.Linear(wide[-1], num_classes)

    def forward(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
        """(refined maps, logits (B, K))."""
        raised = [each(x) for each, x in zip(self.first, maps, strict=True)]
        for i in reversed(range(len(raised) - 1)):
            above = self.up[i](F.interpolate(raised[i + 1], size=self.sizes[i], mode="nearest"))
            raised[i] = self.up_conv[i](self.up_mix[i](raised[i], above))
        refined = raised[:1]
        for i, x in enumerate(maps[1:]):
            inner = raised[i + 1 : i + 2] if i + 2 < len(maps) else []
            below = self.down[i](self.shrunk(refined[-1], i))
            refined.append(self.down_conv[i](self.down_mix[i](self.second[i](x), *inner, below)))
        return refined, self.classifier(refined[-1].mean((2, 3)))

    def shrunk(self, x: Tensor, i: int) -> Tensor:
        """The map of stage i at the size of the next, by the largest of 3x3 neighbours."""
        stride = [-(-size // smaller) for size, smaller in zip(self.sizes[i], self.sizes[i + 1], strict=True)]
        return F.max_pool2d(x, 3, stride, padding=1)


class FRSKD(Method):
    """A teacher grown on the student's own maps hands its refined maps and its logits back; the student is deployed.

    L = CE(y, s) + CE(y, t) + α · T² · KL( softmax(t / T) || softmax(s / T) )
            + β · Σ_i `methods.intermediate.at.at_loss`

    with the logits t of a `SelfTeacher`, and the attention of the student's stages and of its refined maps, which are
    constants. It learns from labels alone, and through it the student's layers below.

    Args:
        temperature: T.
        width: channels of a refined map for each of the student's.
        target: what t is for the divergence: ``constant`` (the paper, MingiJi/FRSKD), or ``learning``, with a gradient
            (winycg/Self-KD-Lib, methods/frskd.py).
    """

    leaf = "teacher-free/deep-supervision"
    paper = "ji2021refine"
    title = "FRSKD"
    extension = True
    needs = frozenset({"labels"})
    taps = Taps(student=("stage*",))
    terms = ("ce", "self_teacher", "kd", "attention")
    survey: ClassVar = {
        "logits_hints": "logits and attention maps",
        "deep_supervision": "a feature pyramid on all stages",
        "augmentation": "none",
        "architecture": "none",
        "task": "classification",
    }

    def __init__(
        self,
        temperature: Temperature = 4.0,
        width: Count = 2,
        target: Literal["constant", "learning"] = "constant",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.temperature, self.width, self.target = temperature, width, target

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.maps = student.all("stage")
        if len(self.maps) < 2:
            raise DoesNotFit(f"FRSKD needs at least two stages, {student.name} has fewer: choose another student.")
        self.self_teacher = SelfTeacher([student.shapes[tap] for tap in self.maps], self.width, data.num_classes)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        maps = [s[tap] for tap in self.maps]
        refined, logits = self.self_teacher(maps)
        target = logits.detach() if self.target == "constant" else logits
        attention = [at_loss(x, better.detach()) for x, better in zip(maps, refined, strict=True)]
        return {
            "ce": cross_entropy(s.logits, batch.y),
            "self_teacher": cross_entropy(logits, batch.y),
            "kd": kl(s.logits, target, self.temperature),
            "attention": torch.stack(attention).sum(),
        }
