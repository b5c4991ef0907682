"""A more tolerant teacher educates better students (Yang, Xie, Qiao, Yuille, AAAI 2019, arXiv:1805.05551)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import in_float32
from kdbench.settings import Temperature
from kdbench.taps import Out
from methods.teacher_free.ban import BAN


@in_float32
def score_gap(logits: Tensor, classes: int = 5) -> Tensor:
    """p_(1) - 1 / (K - 1) · Σ_{k=2..K} p_(k), p = softmax(z) in descending order, averaged over the batch.

    How far the first class is ahead of the next K - 1, K = `classes`, or all where there are fewer. Logits are (B, C).
    """
    p = logits.softmax(1)
    top = p.topk(min(classes, p.shape[1]), dim=1).values
    return (top[:, 0] - top[:, 1:].mean(1)).mean()


class TolerantTeacher(BAN):
    """Born-again generations whose first is kept from being too sure of one class.

    Generation 1:      L = η · CE(y, s) + (1 - η) · `score_gap`(s)
    Generation k > 1:  L = λ · CE(y, s) + (1 - λ) · KL( softmax(s_{k-1}) || softmax(s) )

    with η, 1 - η, λ and 1 - λ as the weights of ``first``, ``gap``, ``ce`` and ``kd``. The generations share the
    protocol's epochs, where the paper's have a whole schedule each.

    Args:
        generations: networks trained one after the other.
        temperature: of the divergence, times its square; the paper has none.
        classes: K of the gap.
    """

    leaf = "logits/strictness"
    paper = "yang2019training"
    title = "Tolerant teacher"
    terms = ("first", "gap", "ce", "kd")  # type: ignore[assignment]
    survey: ClassVar = {
        "description": "a teacher that leaves room for secondary classes, then generations",
        "objective": "η CE(y, t) + (1 - η) gap(t); λ CE(y, s) + (1 - λ) KL(t, s)",
    }

    def __init__(
        self,
        generations: Annotated[int, Field(ge=2)] = 2,
        temperature: Temperature = 1.0,
        classes: Annotated[int, Field(ge=2)] = 5,
        **kwargs: Any,
    ) -> None:
        super().__init__(generations=generations, temperature=temperature, **kwargs)
        self.classes = classes

    def losses(self, s: Out, t: Out | None, batch: Batch) -> dict[str, Tensor]:
        terms = super().losses(s, t, batch)
        return terms | {"gap": score_gap(s.logits, self.classes)} if t is None else terms
