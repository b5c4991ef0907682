"""Moonshine: distilling with cheap convolutions (Crowley, Gray, Storkey, NeurIPS 2018, arXiv:1711.02613)."""

from __future__ import annotations

from typing import ClassVar

from methods.intermediate.at import AT


class Moonshine(AT):
    """L = CE(y, s) + β · Σ_stages `methods.intermediate.at.at_loss`: attention transfer to a cheaper teacher.

    The idea is in the pair: the student is the teacher's architecture with its convolutions replaced, here by grouped
    and pointwise ones, so that stages correspond and only what is inside the blocks differs. The authors' WRN hands out
    the sum that ends a stage; here a stage ends behind the batch norm and ReLU that follow, as in all `kdbench.taps`.
    """

    leaf = "teacher-free/architecture"
    paper = "crowley2018moonshine"
    title = "Moonshine"
    survey: ClassVar = {
        "logits_hints": "hints",
        "deep_supervision": "none",
        "augmentation": "none",
        "architecture": "cheap convolutions in the teacher's blocks",
        "task": "classification",
    }
