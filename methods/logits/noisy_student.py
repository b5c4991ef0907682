"""Self-training with Noisy Student (Xie, Luong, Hovy, Le, CVPR 2020, arXiv:1911.04252)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import cross_entropy
from kdbench.taps import Spec, Taps
from methods.teacher_free.ban import BAN


class NoisyStudent(BAN):
    """Generations, each of which labels the images without labels for the next, which learns from all under noise.

    Generation 1:      L = CE(y, ŝ(x))
    Generation k > 1:  L = CE(y, ŝ(x)) + H( softmax(s_{k-1}(u)), softmax(ŝ(u')) )

    with the weights of ``first``, ``ce`` and ``pseudo``; x has labels, u has none. Both terms are means, over images
    with labels and without; all of them pass the student together. ŝ is the network under noise, `noisy_logits`, and
    u' another view of u. The teacher has no noise but that of the view that it sees. Pseudo labels are soft.

    The paper's student is as large as its teacher, or larger; here it is as large, and begins anew. Of its noise
    RandAugment and stochastic depth are the data's and the network's, so they are not here; its filter and its balance
    of classes, for images of unknown origin, are left out.

    Args:
        generations: networks trained one after the other.
        dropout: the chance of a pooled feature to be dropped before the classifier.
    """

    leaf = "logits/noisy-labels"
    paper = "xie2019self"
    title = "Noisy Student"
    needs = frozenset({"labels", "unlabelled"})
    taps = Taps(student=("embed",))
    terms = ("first", "ce", "pseudo")
    survey: ClassVar = {
        "description": "soft labels of a past self for images without any, learned under noise",
        "objective": "CE(y, ŝ) + H(s_k-1, ŝ)",
    }

    def __init__(
        self,
        generations: Annotated[int, Field(ge=2)] = 3,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(generations=generations, **kwargs)
        self.dropout = dropout

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        super().build(student, teacher, data)
        if not isinstance(getattr(self.student, "head", None), nn.Module):
            raise DoesNotFit(
                f"Noisy Student drops features in front of the classifier, and {student.name} has no `head` that "
                "reads its pooled features: choose a network of the zoo."
            )

    def noisy_logits(self, x: Tensor) -> Tensor:
        """Of images, with dropout on what the classifier reads."""
        embed = self.student_out(x).embed
        kept = torch.rand(embed.shape, generator=self.rng) >= self.dropout
        logits: Tensor = self.student.head(embed * kept.to(embed) / (1 - self.dropout))  # type: ignore[operator]
        return logits

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        if self.stage == "generation1":
            yield "student", {"first": cross_entropy(self.noisy_logits(batch.x), batch.y)}
            return
        free = batch["unlabelled"]
        pseudo = self.teacher_out(free.x, self.parent).logits.softmax(1)
        known, unknown = self.noisy_logits(torch.cat([batch.x, free["again"].x])).split([len(batch), len(free)])
        yield "student", {"ce": cross_entropy(known, batch.y), "pseudo": cross_entropy(unknown, pseudo)}
