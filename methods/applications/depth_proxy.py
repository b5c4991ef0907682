"""Learning monocular depth by distilling cross-domain stereo networks (Guo et al., ECCV 2018, arXiv:1808.06586)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import in_float32
from kdbench.method import Method
from kdbench.taps import Out

NEAREST = 0.01
"""Metres: below it an inverse depth would say nothing but that."""


@in_float32
def proxy_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over all pixels of |1/d_s - 1/d_t|, for depths in metres of one shape; no gradient reaches `teacher`.

    The paper's L1 distance of disparities, which are inverse depths but for the factor of a camera rig. Its sum over
    four scales of the student's output is left out: the student has one.
    """
    s, t = (depth.clamp(min=NEAREST).reciprocal() for depth in (student, teacher.detach()))
    return (s - t).abs().mean()


class DepthProxy(Method):
    """L = `proxy_loss`(s, t): the teacher's depth is the label, of every pixel, also where no sensor had a reading.

    True depth is not used. In the paper the teacher sees two images (stereo) and the student one; here both see one,
    unless a modality is paired with it.
    """

    leaf = "applications/depth-flow"
    paper = "guo2018learning"
    title = "Depth proxy"
    needs = frozenset({"teacher"})
    terms = ("proxy",)
    tasks = frozenset({"depth"})
    survey: ClassVar = {
        "task": "depth from one image",
        "knowledge": "the teacher's dense depth as label",
        "objective": "L1 of inverse depth",
    }

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {"proxy": proxy_loss(s.logits, t.logits)}
