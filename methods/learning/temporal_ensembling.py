"""Temporal ensembling (Laine and Aila, ICLR 2017, arXiv:1610.02242)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import in_float32
from kdbench.method import Method
from kdbench.taps import Out, Spec
from methods.learning.consistency import everything, labelled_share, masked_ce

Decay = Annotated[float, Field(ge=0, lt=1)]


@in_float32
def ensemble_target_loss(student: Tensor, target: Tensor, known: Tensor | None = None) -> Tensor:
    """Mean over N·K of ( softmax(s) - z̃ )², for logits and probabilities (N, K); samples not `known` (N,) count as 0.

    The second term of algorithm 2, without w(t).
    """
    squares = (student.softmax(1) - target.detach()).square().mean(1)
    return (squares if known is None else squares * known).mean()


class Remembered(NamedTuple):
    """Of some samples: the target z̃ (N, K), zeros where there is none, and where there is one (N,)."""

    target: Tensor
    known: Tensor


class Ensemble(nn.Module):
    """Z <- α·Z + (1 - α)·z for each sample, once for each epoch that shows it, and z̃ = Z / (1 - α^k) after k of them.

    z is the last prediction of the epoch, and counts when the sample is met in a later one: so no target has seen the
    epoch in which it is used. Where every epoch shows every sample k is the number of epochs, as in algorithm 2; where
    it does not, z̃ is Z divided by its sum, as in the authors' code with ``max_unlabeled_per_epoch``.
    """

    sums: Tensor
    counts: Tensor
    latest: Tensor
    seen_in: Tensor

    def __init__(self, samples: int, classes: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("sums", torch.zeros(samples, classes))
        self.register_buffer("counts", torch.zeros(samples))
        self.register_buffer("latest", torch.zeros(samples, classes))
        self.register_buffer("seen_in", torch.full((samples,), -1))

    def recall(self, index: Tensor, epoch: int) -> Remembered:
        """What all epochs before this one say of the samples at `index` (N,)."""
        sums, counts = self._until(index, epoch)
        known = counts > 0
        bias = (1 - self.decay**counts).masked_fill(~known, 1)
        return Remembered(sums / bias[:, None], known)

    def remember(self, index: Tensor, predictions: Tensor, epoch: int) -> None:
        """Enter what this epoch says, probabilities (N, K)."""
        self.sums[index], self.counts[index] = self._until(index, epoch)
        self.latest[index] = predictions.to(self.latest)
        self.seen_in[index] = epoch

    def _until(self, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Z and k with the predictions of all epochs before this one."""
        sums, counts, seen_in = self.sums[index], self.counts[index], self.seen_in[index]
        due = (seen_in >= 0) & (seen_in < epoch)
        later = self.decay * sums + (1 - self.decay) * self.latest[index]
        return torch.where(due[:, None], later, sums), counts + due


class TemporalEnsembling(Method):
    """What the student said of an image in past epochs, averaged, teaches it; labelled images and all others.

    L = (1 / N) · Σ CE(y, s) of labelled images + w · (M / N) · `ensemble_target_loss`(s, z̃)

    where M of the N images of a batch have a label (see `methods.learning.pi_model.PiModel`), and z̃ is the `Ensemble`
    of the training passes' predictions. An image that no past epoch has shown has no target, as all of them in the
    first epoch, where the authors' code sets w to 0.

    Args:
        decay: α of the average.
    """

    leaf = "learning/semi-self-supervised"
    paper = "laine2016temporal"
    title = "Temporal ensembling"
    needs = frozenset({"labels", "unlabelled"})
    terms: tuple[str, ...] = ("ce", "consistency")
    survey: ClassVar = {
        "supervision": "semi-supervised",
        "labelled_data": "a part",
        "consistency": "MSE of softmax to the average of past epochs",
    }

    def __init__(self, decay: Decay = 0.6, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.decay = decay

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        unlabelled = data.beside.get("unlabelled", 0)
        if not data.n_train or not unlabelled:
            raise DoesNotFit(
                f"{self.title} remembers a prediction of every image, and these data do not say how many there are: "
                "give a datamodule whose `spec` does (n_train, beside), and batches with the positions of their images."
            )
        self.labelled = data.n_train
        self.ensemble = Ensemble(self.labelled + unlabelled, data.num_classes, self.decay)

    def places(self, batch: Batch) -> Tensor:
        """Of the images of `everything` in the ensemble, (N,)."""
        return torch.cat([batch.index, self.labelled + batch["unlabelled"].index])

    def teach(self, batch: Batch) -> Out:
        return Out(self.ensemble.recall(self.places(batch), self.epoch)._asdict())

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        s = self.student_out(everything(batch))
        self._said = s.logits.detach().float().softmax(1)
        yield "student", self.losses(s, self.teach(batch), batch)

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        consistency = labelled_share(batch) * ensemble_target_loss(s.logits, t["target"], t["known"])
        return {"ce": masked_ce(s.logits, batch.y), "consistency": consistency}

    def after_step(self, batch: Batch) -> None:
        self.ensemble.remember(self.places(batch), self._said, self.epoch)
