"""BAKE: batch knowledge ensembling (Ge et al., arXiv 2021, arXiv:2104.13298)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy, divergence, in_float32
from kdbench.method import Method
from kdbench.settings import Temperature
from kdbench.taps import Out, Taps

ALONE = -1e9
"""In the place of an image's affinity to itself; alone in its batch it has no other."""


@torch.no_grad()
@in_float32
def ensembled(embed: Tensor, logits: Tensor, temperature: float = 4.0, omega: float = 0.5) -> Tensor:
    """Q = (1 - ω) · (I - ω A)⁻¹ · softmax(z / T), (B, K): predictions passed on between alike images for ever.

    A = softmax over the *other* images of the cosines of features (B, D). No gradient reaches the arguments.
    """
    direction = F.normalize(embed, dim=1)
    itself = torch.eye(len(embed), dtype=torch.bool, device=embed.device)
    affinity = (direction @ direction.T).masked_fill(itself, ALONE).softmax(1)
    passed = itself.to(affinity.dtype) - omega * affinity
    # never singular, so that nobody need wait for the device to say so
    target, _ = torch.linalg.solve_ex(passed, (1 - omega) * (logits / temperature).softmax(1))
    return target.clamp(min=0)  # which rounding alone may undercut


@in_float32
def ensembled_loss(logits: Tensor, target: Tensor, temperature: float = 4.0) -> Tensor:
    """T² · KL( Q || softmax(z / T) ) of logits (B, K) and probabilities Q (B, K).

    Summed over classes, averaged over the batch.
    """
    odds = (logits / temperature).log_softmax(1) - target.clamp(min=torch.finfo(target.dtype).tiny).log()
    return temperature**2 * divergence(target, odds).mean()


class BAKE(Method):
    """An image's soft label is the `ensembled` prediction of the batch, each image counting by how alike it is.

    L = CE(y, s) + λ · T² · KL( Q || softmax(s / T) )

    The authors compose batches of images with three further ones of their class; here they come as the protocol shows
    them.

    Args:
        temperature: T.
        omega: ω, the share that comes from other images.
    """

    leaf = "teacher-free/data-augmentation"
    paper = "ge2021self"
    title = "BAKE"
    extension = True
    needs = frozenset({"labels"})
    taps = Taps(student=("embed",))
    terms = ("ce", "kd")
    survey: ClassVar = {
        "logits_hints": "logits",
        "deep_supervision": "none",
        "augmentation": "alike images of the batch",
        "architecture": "none",
        "task": "classification",
    }

    def __init__(
        self, temperature: Temperature = 4.0, omega: Annotated[float, Field(ge=0, lt=1)] = 0.5, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.temperature, self.omega = temperature, omega

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        target = ensembled(s.embed, s.logits, self.temperature, self.omega)
        return {
            "ce": cross_entropy(s.logits, batch.y),
            "kd": ensembled_loss(s.logits, target, self.temperature),
        }
