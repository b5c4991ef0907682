"""SLA+SD: labels augmented by self-supervision, self-distilled (Lee, Hwang, Shin, ICML 2020, arXiv:1910.05872)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import cross_entropy, in_float32, kl
from kdbench.method import Method
from kdbench.settings import Temperature
from kdbench.taps import Out, Spec, Taps
from methods.learning.sskd import ROTATIONS, rotated, split


def joint_labels(y: Tensor) -> Tensor:
    """The class of each of an image's M rotations, M · y + j, (M B,), in the order of `rotated` images."""
    return (ROTATIONS * y[:, None] + torch.arange(ROTATIONS, device=y.device)).flatten()


@in_float32
def aggregated(joint: Tensor) -> Tensor:
    """Logits of the classes, (B, K): mean over rotations j of the logit of (class, j) for the image so rotated.

    Args:
        joint: logits of `rotated` images over classes and rotations, (M B, M K), numbered as `joint_labels` are.
    """
    images = joint.unflatten(0, (-1, ROTATIONS)).unflatten(2, (-1, ROTATIONS))  # (B, M, K, M)
    return images.diagonal(dim1=1, dim2=3).mean(2)


class SLASD(Method):
    """One head tells class and rotation at once; what its rotations agree on is distilled into the plain classifier.

    L = CE(`joint_labels`, z) + CE(y, s) + T² · KL( softmax(`aggregated`(z) / T) || softmax(s / T) )

    with the logits z of a second head on all four rotations and the student's own, s, on plain images; the aggregate is
    a constant. The student is deployed without the second head. Each step shows every image four times.

    Args:
        temperature: T.
    """

    leaf = "teacher-free/data-augmentation"
    paper = "lee2019rethinking"
    title = "SLA+SD"
    needs = frozenset({"labels"})
    taps = Taps(student=("embed",))
    terms = ("joint", "ce", "kd")
    survey: ClassVar = {
        "logits_hints": "logits",
        "deep_supervision": "none",
        "augmentation": "four rotations, as labels",
        "architecture": "none",
        "task": "classification",
    }

    def __init__(self, temperature: Temperature = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        if data.shape[1] != data.shape[2]:
            raise DoesNotFit(f"SLA+SD rotates images, and {data.shape} is not square: choose another data set.")
        self.joint = nn.Linear(student.channels("embed"), ROTATIONS * data.num_classes)

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        s = self.student_out(rotated(batch.x))
        yield "student", self.losses(s, s, batch)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        """Of what is said of `rotated` images."""
        plain, _ = split(s.logits)
        joint = self.joint(s.embed)
        return {
            "joint": cross_entropy(joint, joint_labels(batch.y)),
            "ce": cross_entropy(plain, batch.y),
            "kd": kl(plain, aggregated(joint.detach()), self.temperature),
        }
