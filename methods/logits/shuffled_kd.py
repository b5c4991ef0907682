"""Distillation by the targets of other images: a control of KD (Hinton, Vinyals, Dean, NIPS 2014 workshop,
arXiv:1503.02531)."""

from __future__ import annotations

from typing import ClassVar

import torch

from kdbench.data.batch import Batch
from kdbench.taps import Out
from methods.logits.kd import KD


class ShuffledKD(KD):
    """KD whose targets belong to other images: the teacher's outputs of a batch, in random order.

    What is left of a gain is that targets are soft, as of label smoothing, and not what a teacher knows of an image.
    peterliht/knowledge-distillation-pytorch trained so by mistake until its commit bc2752f: outputs were stored once
    for each place in a loader that shuffles anew in each epoch.
    """

    paper = "hinton2015distilling"
    title = "KD from other images"
    control = None  # type: ignore[assignment]
    tasks = frozenset({"classification"})
    survey: ClassVar = {
        "description": "softened class probabilities of other images",
        "objective": "(1 - α) CE(y, s) + α T² KL(t'/T, s/T), t' of another image",
    }

    def teach(self, batch: Batch) -> Out:
        t = self.teacher_out(batch.for_teacher.x)
        order = torch.randperm(len(batch), generator=self.rng).to(t.logits.device)
        return Out({"logits": t.logits[order]})
