"""EEIL: end-to-end incremental learning (Castro et al., ECCV 2018, arXiv:1807.09536)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy, in_float32
from kdbench.settings import Positive, Share, Temperature
from kdbench.taps import Taps
from methods.learning.balanced import Balanced
from methods.learning.lwf import by_head, old_classes_loss
from methods.learning.rehearsal import Mix

Form = Literal["paper", "facil"]


@in_float32
def binary_loss(student: Tensor, past: Tensor, temperature: float = 2.0) -> Tensor:
    """Binary cross-entropy of softmax(s / T) with targets softmax(t / T), averaged over samples and classes (FACIL).

    Of logits (B, K). It adds (1 - q) log(1 - p) to the cross-entropy of each class, whose logarithms are cut at -100,
    as PyTorch's are. No gradient reaches `past`.
    """
    z, q = student / temperature, (past.detach() / temperature).softmax(1)
    itself = torch.eye(z.shape[1], dtype=torch.bool, device=z.device)
    others = z[:, None].masked_fill(itself, torch.finfo(z.dtype).min).logsumexp(2)  # without ever forming 1 - p
    log_p, log_not = (each - z.logsumexp(1, keepdim=True) for each in (z, others))
    return -(q * log_p.clamp(min=-100) + (1 - q) * log_not.clamp(min=-100)).mean()


def heads_loss(
    student: Tensor, past: Tensor, ends: Sequence[int], temperature: float = 2.0, form: Form = "paper"
) -> Tensor:
    """Σ_f L_f over heads f, the classes that came at one time, see `by_head` (equations 1 and 3).

    ``paper``: L_f = H( softmax(t_f / T), softmax(s_f / T) ), summed over the head's classes, averaged over the batch,
    without a factor T² (`old_classes_loss`; the authors' vl_nnsoftmaxdiff.m, and equation 3 of LwF for several tasks).
    ``facil``: `binary_loss` (mmasana/FACIL).

    Args:
        student, past: logits, (B, ends[-1] or more).
        ends: how many classes had been seen when a head was complete.
    """
    return by_head(student, past, ends, temperature, old_classes_loss if form == "paper" else binary_loss)


class EEIL(Balanced):
    """L = CE(y, s) over the classes seen + λ · `heads_loss`(s, past self), at last on as many samples of each class.

    Stage ``train``: on new samples and exemplars, with the heads of old classes; the past self is the student as it was
    when the new classes came.

    Stage ``balance``: on as many samples of each class, with the head of the new classes, too; the past self is the
    student at the end of the first stage (the authors' incremental_training.m).

    Exemplars are chosen by `Herding`. The authors' noise on gradients and their twelve views of each image are left
    out: views are the protocol's.

    Args:
        form: ``paper``, or ``facil`` as mmasana/FACIL has it: binary cross-entropies, the past self is always the one
            before the new classes, and the newest head that there is to distil is left out of either stage.
    """

    leaf = "learning/incremental"
    paper = "castro2018end"
    title = "EEIL"
    terms = ("ce", "kd")
    taps = Taps(student=("embed",))
    earlier: ClassVar = frozenset(
        {
            "02a8fd68b1c080fd4071bff3feaaa2f78b8b7f7b771396ba86898831b95a1220",
            "d8adcae92cb12dbcc49c86070f4a4b7d5b41922ab6d77eb5467d44792fa1ca47",
        }
    )
    survey: ClassVar = {
        "knowledge": "softened scores of each group of old classes; herded exemplars",
        "objective": "CE + Σ CE(past/T, s/T) by group; balanced fine-tuning",
    }

    def __init__(
        self,
        temperature: Temperature = 2.0,
        form: Form = "paper",
        balance_share: Share = 0.4,
        balance_lr: Positive = 0.01,
        mix: Mix = "union",
        **kwargs: Any,
    ) -> None:
        super().__init__(balance_share, balance_lr, mix, **kwargs)
        self.temperature, self.form = temperature, form

    @torch.no_grad()
    def even_out(self) -> None:
        super().even_out()
        if self.form == "paper":
            self.past.take(self.student)

    def heads(self) -> tuple[int, ...]:
        """Where the heads end that are distilled."""
        number = self.experience.number + (self.stage == "balance") - (self.form == "facil")
        return tuple(self.data.experiences[: max(0, number)])

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        s = self.student_out(batch.x).logits
        terms = {"ce": cross_entropy(s[:, : self.experience.seen], batch.y)}
        if ends := self.heads():
            terms["kd"] = heads_loss(s, self.teacher_out(batch.x, self.past).logits, ends, self.temperature, self.form)
        yield ("balance" if self.stage == "balance" else "student"), terms
