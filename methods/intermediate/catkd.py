"""Class attention transfer (Guo, Yan, Li, Lin, CVPR 2023, arXiv:2304.12777)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method
from kdbench.settings import Count
from kdbench.taps import Out, Spec, Taps
from methods.intermediate.connector import classifier


@in_float32
def activation_maps(maps: Tensor, weight: Tensor) -> Tensor:
    """CAM_k = Σ_c w_kc F_c of maps (B, C, H, W) and a classifier's weight (K, C), as (B, K, H, W).

    The mean of CAM_k over its positions is the logit of class k, less the bias.
    """
    return F.conv2d(maps, weight[:, :, None, None])


def binarized(cams: Tensor) -> Tensor:
    """1 where an activation is above the mean of its map's absolute values, else 0."""
    return (cams > cams.abs().mean((2, 3), keepdim=True)).to(cams.dtype)


@in_float32
def cat_loss(student: Tensor, teacher: Tensor, size: int = 2, normalize: bool = False) -> Tensor:
    """Mean over B·K·r² of (φ(s) - φ(t))² of class activation maps (B, K, H, W); their sizes may differ.

    φ pools to r x r = `size` x `size` on average, and with `normalize` divides each class's map by its 2-norm.
    """

    def transferred(cams: Tensor) -> Tensor:
        pooled = F.adaptive_avg_pool2d(cams, size)
        return F.normalize(pooled.flatten(2), dim=2) if normalize else pooled.flatten(2)

    return F.mse_loss(transferred(student), transferred(teacher))


class CATKD(Method):
    """L = CE(y, s) + β · `cat_loss`( CAM_s, CAM_t ), with `activation_maps` of all classes.

    The authors move the classifier in front of the pooling, as a 1x1 convolution without bias. The weight of a network
    that ends in pooling and one linear layer makes the same maps, so networks stay as they are.

    Args:
        size: r, of the maps that are compared.
        normalize: whether each is of length one: where architectures differ.
        binarize: whether the teacher's only say where its activation is above average.
    """

    leaf = "intermediate/features"
    paper = "guo2023class"
    title = "CAT-KD"
    extension = True
    taps = Taps(student=("stage-1",), teacher=("stage-1",))
    terms = ("ce", "cat")
    survey: ClassVar = {
        "teacher_transform": "class activation maps, pooled",
        "student_transform": "class activation maps, pooled",
        "knowledge": "where each class is seen",
        "position": "last stage",
        "distance": "L2",
        "lost": "channels",
    }

    def __init__(self, size: Count = 2, normalize: bool = False, binarize: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size, self.normalize, self.binarize = size, normalize, binarize

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        (self.own,), (self.taught,) = student.resolve(self.taps.student), teacher.resolve(self.taps.teacher)
        # a tuple hides layers that belong to the networks from nn.Module
        shown = data.shape_for_teacher or data.shape
        self.heads = (classifier(student, data.shape, self.own), classifier(teacher, shown, self.taught))

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        own, taught = (head.weight for head in self.heads)
        cams_s, cams_t = activation_maps(s[self.own], own), activation_maps(t[self.taught], taught)
        cat = cat_loss(cams_s, binarized(cams_t) if self.binarize else cams_t, self.size, self.normalize)
        return {"ce": cross_entropy(s.logits, batch.y), "cat": cat}
