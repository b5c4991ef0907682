"""DarkRank: cross sample similarities as ranks (Chen, Wang, Zhang, AAAI 2018, arXiv:1707.01220)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy, in_float32
from kdbench.method import Method
from kdbench.settings import Count, Positive
from kdbench.taps import Out, Taps
from methods.intermediate.crd import on_sphere
from methods.logits.distances import distances


@in_float32
def rank_loss(student: Tensor, teacher: Tensor, alpha: float = 3.0, beta: float = 3.0, length: int = 4) -> Tensor:
    """-log P(π | student), π: the order in which the teacher ranks each sample's nearest ones; the hard transfer.

    P(π) = Π_r exp(S_π(r)) / Σ_{q >= r} exp(S_π(q)),  S_ij = -α · ‖x_i - x_j‖^β  for the query i

    Summed over the ranks, averaged over the B queries. As in lenscloth/RKD, metric/loss.py, π has the `length` nearest
    alone (all others, where the batch has fewer), and the sample itself is taken for the nearest of all and left out.

    Args:
        student, teacher: embeddings, (B, D_s) and (B, D_t).
    """
    order = (-distances(teacher)).sort(dim=1, descending=True, stable=True).indices[:, 1 : length + 1]
    scores = -alpha * distances(student).gather(1, order).pow(beta)
    return (scores.flip(1).logcumsumexp(1).flip(1) - scores).sum(1).mean()


class DarkRank(Method):
    """L = CE(y, s) + λ · `rank_loss`(f_s / ‖f_s‖, f_t / ‖f_t‖) on the pooled features.

    CE stands where the paper has the losses of its task, the learning of a metric.

    Args:
        alpha, beta: α and β of the scores.
        length: how many samples are ranked for each.
    """

    leaf = "logits/strictness"
    paper = "chen2018darkrank"
    title = "DarkRank"
    extension = True
    taps = Taps(student=("embed",), teacher=("embed",))
    terms = ("ce", "rank")
    survey: ClassVar = {
        "description": "the order of the samples nearest to each",
        "objective": "CE(y, s) - λ log P(teacher's ranks | s)",
    }

    def __init__(
        self,
        alpha: Positive = 3.0,
        beta: Annotated[float, Field(ge=1)] = 3.0,
        length: Count = 4,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.alpha, self.beta, self.length = alpha, beta, length

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {
            "ce": cross_entropy(s.logits, batch.y),
            "rank": rank_loss(on_sphere(s.embed), on_sphere(t.embed), self.alpha, self.beta, self.length),
        }
