"""Knowledge distillation based on transformed teacher matching (Zheng & Yang, ICLR 2024, arXiv:2402.11148)."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method
from kdbench.settings import Positive
from kdbench.taps import Out


@in_float32
def ttm_loss(student: Tensor, teacher: Tensor, exponent: float, weighted: bool = False) -> Tensor:
    """u · KL( q^γ / U || softmax(s) ) of logits (B, K), q = softmax(t), U = Σ_k q_k^γ; the student has no temperature.

    Summed over classes, averaged over the batch, without a factor T². The power transform of q is softmax(γ · t), a
    temperature of 1 / γ for the teacher alone.

    Args:
        exponent: γ.
        weighted: u = U, so that samples count the more the smoother their teacher is (WTTM); else u = 1.
    """
    log_p, log_q = student.log_softmax(1), teacher.log_softmax(1) * exponent
    log_u = log_q.logsumexp(1, keepdim=True)
    log_q = log_q - log_u
    divergence = (log_q.exp() * (log_q - log_p)).sum(1)
    return (divergence * log_u.squeeze(1).exp() if weighted else divergence).mean()


class TTM(Method):
    """L = CE(y, s) + β · `ttm_loss`: KD in which only the teacher is softened, which regularises the student.

    Args:
        exponent: γ of the power transform of the teacher's probabilities, an inverse temperature.
        weighted: WTTM, with a weight for each sample.
    """

    leaf = "logits/softened-labels"
    paper = "zheng2024knowledge"
    title = "TTM"
    extension = True
    terms = ("ce", "ttm")
    survey: ClassVar = {
        "description": "softened probabilities, of the teacher alone",
        "objective": "CE(y, s) + β u KL(t/T, s)",
    }

    def __init__(self, exponent: Positive = 0.1, weighted: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.exponent, self.weighted = exponent, weighted

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {
            "ce": cross_entropy(s.logits, batch.y),
            "ttm": ttm_loss(s.logits, t.logits, self.exponent, self.weighted),
        }
