"""Data distillation (Radosavovic et al., CVPR 2018, arXiv:1712.04440)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method


@torch.no_grad()
@in_float32
def ensembled_labels(views: Sequence[Tensor]) -> Tensor:
    """argmax_l of the mean over views of p_v(l), (B,): hard labels, from logits of each view, (B, K)."""
    return torch.stack(list(views)).softmax(2).mean(0).argmax(1)


class DataDistillation(Method):
    """One teacher labels images without labels by what it says of several views of each; a student learns from both.

    L = CE(y, s) on labelled images + CE(`ensembled_labels`, s) on unlabelled ones

    each a mean over its batch. Views are those of the data's own augmentation, two of each image (the paper's are
    scales and mirror images). An image has one label here, so none is left out for its score, as the paper's boxes are.
    """

    leaf = "multi-teacher/unified-data-sources"
    paper = "radosavovic2018data"
    title = "Data distillation"
    needs = frozenset({"teacher", "labels", "unlabelled"})
    terms = ("ce", "distilled")
    survey: ClassVar = {
        "ensemble_logits": "mean probability over views of an image",
        "ensemble_features": "none",
        "unify_data": "labelled and unlabelled",
        "customize": "no",
        "peers": "no",
        "online": "no",
        "objective": "CE",
    }

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        free = batch["unlabelled"]
        views = [self.teacher_out(view.for_teacher.x).logits for view in (free, free["again"])]
        s = self.student_out(torch.cat([batch.x, free.x])).logits
        yield (
            "student",
            {
                "ce": cross_entropy(s[: len(batch)], batch.y),
                "distilled": cross_entropy(s[len(batch) :], ensembled_labels(views)),
            },
        )
