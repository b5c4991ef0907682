"""Noisy collaboration in knowledge distillation (Sarfraz, Arani, Zonooz, OpenReview 2019, arXiv:1910.05057)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy, kl
from kdbench.method import Method
from kdbench.settings import Share, Temperature
from kdbench.taps import Out


def another_class(y: Tensor, wrong: Tensor, step: Tensor, classes: int) -> Tensor:
    """Class indices y (B,), where `wrong` (B,) says so `step` (1 .. classes - 1) further on, and so never the same."""
    return torch.where(wrong, (y + step) % classes, y)


class NoisyCollaboration(Method):
    """KD, one side of which varies; what varies is said by those derived from it."""

    leaf = "logits/noisy-labels"
    paper = "sarfraz2019noisy"
    terms = ("ce", "kd")

    def __init__(self, temperature: Temperature = 4.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.temperature = temperature

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {"ce": cross_entropy(s.logits, batch.y), "kd": kl(s.logits, t.logits, self.temperature)}


class SoftRandomization(NoisyCollaboration):
    """L = (1 - α) · CE(y, s(x + σ·ξ)) + α · T² · KL( softmax(t(x) / T) || softmax(s(x + σ·ξ) / T) ), α in ``weights``

    The student sees images under standard normal noise ξ, and learns what the teacher says of the clean ones.

    Args:
        temperature: T.
        noise: σ, in the units of normalised pixels.
    """

    title = "Soft randomization"
    survey: ClassVar = {
        "description": "a teacher of clean images, a student of noisy ones",
        "objective": "(1 - α) CE(y, s(x + δ)) + α T² KL(t(x)/T, s(x + δ)/T)",
    }

    def __init__(
        self, temperature: Temperature = 4.0, noise: Annotated[float, Field(ge=0)] = 0.1, **kwargs: Any
    ) -> None:
        super().__init__(temperature=temperature, **kwargs)
        self.noise = noise

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        noise = torch.randn(batch.x.shape, generator=self.rng).to(batch.x)
        s, t = self.student_out(batch.x + self.noise * noise), self.teacher_out(batch.for_teacher.x)
        yield "student", self.losses(s, t, batch)


class MessyCollaboration(NoisyCollaboration):
    """L = (1 - α) · CE(ỹ, s) + α · T² · KL( softmax(t / T) || softmax(s / T) ), with α in ``weights``

    ỹ is for a share of the samples, drawn anew each time that they are seen, any class but their own. It is the form
    in which the student's targets vary; nearest to a teacher whose targets did is one of ``scenario=noisy_labels``.

    Args:
        temperature: T.
        share: the chance of a label to be wrong.
    """

    title = "Messy collaboration"
    survey: ClassVar = {
        "description": "a student of labels that are wrong at times, and of a teacher",
        "objective": "(1 - α) CE(ỹ, s) + α T² KL(t/T, s/T)",
    }

    def __init__(self, temperature: Temperature = 4.0, share: Share = 0.1, **kwargs: Any) -> None:
        super().__init__(temperature=temperature, **kwargs)
        self.share = share

    def batch(self, batch: Batch) -> Batch:
        classes = self.data.num_classes
        wrong = torch.rand(len(batch), generator=self.rng) < self.share
        step = torch.randint(1, classes, (len(batch),), generator=self.rng)
        return replace(batch, y=another_class(batch.y, wrong.to(batch.y.device), step.to(batch.y.device), classes))
