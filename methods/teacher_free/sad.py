"""SAD: self attention distillation, of lane detectors (Hou et al., ICCV 2019, arXiv:1908.00821)."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import in_float32
from kdbench.method import Method
from kdbench.taps import Out, Spec, Taps

Variant = Literal["maps", "features"]


def attention(feature: Tensor, size: tuple[int, int], variant: Variant) -> Tensor:
    """Where a feature (B, C, H, W) is strong, enlarged to `size`: a softmax over places, (B, H'·W')."""

    def enlarged(x: Tensor) -> Tensor:
        return x if x.shape[2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    if variant == "maps":
        strength = enlarged(feature.square().sum(1, keepdim=True))
    else:
        strength = enlarged(feature).square().mean(1, keepdim=True)
    return strength.flatten(1).softmax(1)


@in_float32
def attention_step_loss(feature: Tensor, deeper: Tensor, variant: Variant = "maps") -> Tensor:
    """Mean over B·H·W of (A(f) - A(deeper))², with the `attention` A at the size of f; the deeper is a constant.

    ``maps`` (the paper): A = softmax( B( Σ_c f_c² ) ), with the bilinear enlargement B.
    ``features`` (winycg/Self-KD-Lib, methods/sad.py): A = softmax( mean_c B(f)_c² ).
    """
    size = (feature.shape[2], feature.shape[3])
    return (attention(feature, size, variant) - attention(deeper.detach(), size, variant)).square().mean()


class SAD(Method):
    """Each stage attends to where the next one does: layer-wise and top-down, within one network.

    L = task(y, s) + γ · Σ_m `attention_step_loss`(f_m, f_{m+1})

    over the student's stages, from the first step on, where the paper begins when the network is half trained.

    Args:
        variant: whose attention.
    """

    leaf = "teacher-free/deep-supervision"
    paper = "hou2019lightweight"
    title = "SAD"
    extension = True
    needs = frozenset({"labels"})
    tasks = frozenset({"classification", "segmentation"})
    taps = Taps(student=("stage*",))
    terms = ("task", "attention")
    survey: ClassVar = {
        "logits_hints": "attention maps",
        "deep_supervision": "each stage by the next",
        "augmentation": "none",
        "architecture": "none",
        "task": "classification, segmentation",
    }

    def __init__(self, variant: Variant = "maps", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.variant: Variant = variant

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.maps = student.all("stage")
        if len(self.maps) < 2:
            raise DoesNotFit(f"SAD needs at least two stages, {student.name} has fewer: choose another student.")

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        steps = [attention_step_loss(s[tap], s[deeper], self.variant) for tap, deeper in pairwise(self.maps)]
        return {"task": self.task.loss(s.logits, batch.y), "attention": torch.stack(steps).sum()}
