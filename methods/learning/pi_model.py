"""Π-model (Laine and Aila, ICLR 2017, arXiv:1610.02242)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import in_float32
from kdbench.method import Method
from kdbench.taps import Out
from methods.learning.consistency import everything, everything_again, labelled_share, masked_ce


@in_float32
def two_pass_loss(a: Tensor, b: Tensor) -> Tensor:
    """Mean over N·K of ( softmax(a) - softmax(b) )², for logits (N, K) of two views; gradients reach both.

    The second term of algorithm 1, without w(t).
    """
    return (a.softmax(1) - b.softmax(1)).square().mean()


class PiModel(Method):
    """The student says the same of two views of an image, whether it has a label or not.

    L = (1 / N) · Σ CE(y, s) of labelled images + w · (M / N) · `two_pass_loss`(s, s')

    where M of the N images of a batch have a label: so w weighs a labelled image against any other, whatever their
    numbers. The paper takes M / N of the data set, from which its batches are drawn uniformly.
    """

    leaf = "learning/semi-self-supervised"
    paper = "laine2016temporal"
    title = "Π-model"
    needs = frozenset({"labels", "unlabelled"})
    terms: tuple[str, ...] = ("ce", "consistency")
    survey: ClassVar = {
        "supervision": "semi-supervised",
        "labelled_data": "a part",
        "consistency": "MSE of softmax between two views",
    }

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        s, again = self.student_out(everything(batch)), self.student_out(everything_again(batch))
        yield "student", self.losses(s, again, batch)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        """Of two passes of the student."""
        consistency = labelled_share(batch) * two_pass_loss(s.logits, t.logits)
        return {"ce": masked_ce(s.logits, batch.y), "consistency": consistency}
