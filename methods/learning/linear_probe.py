"""Features without labels, judged by a linear classifier: what self-supervised methods share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import cross_entropy
from kdbench.method import Method, Player, Snapshot, Stage
from kdbench.settings import Share
from kdbench.taps import Spec, Taps


class LinearProbe(Method):
    """Two stages, of which the first sees no label: the protocol of linear evaluation; a base of methods.

    Stage ``features``: the student without its last layer learns `features_terms`.
    Stage ``linear``: L = CE(y, W f), W the student's last layer, f its pooled features as they are then: fixed, and
    normalised by running statistics.

    Args:
        linear_share: share of the epochs in which the classifier is trained, within the protocol's budget.
    """

    taps = Taps(student=("embed",), teacher=("embed",))

    def __init__(self, linear_share: Share, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.linear_share = linear_share

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        if not isinstance(getattr(self.student, "head", None), nn.Linear):
            raise DoesNotFit(
                f"{self.title} is judged by a linear layer on fixed features, and {student.name} does not end in one: "
                "choose another pair."
            )
        self.fixed = Snapshot(self.student)

    @property
    def head(self) -> nn.Linear:
        head = self.student.head
        assert isinstance(head, nn.Linear)
        return head

    def stages(self) -> Sequence[Stage]:
        begin = Stage("linear", self.linear_share, lambda: self.fixed.take(self.student))
        return (Stage("features", 1 - self.linear_share), begin)

    def players(self) -> Sequence[Player]:
        last = list(self.head.parameters())
        if self.stage == "linear":
            return (Player("head", last),)
        inside = {id(parameter) for parameter in last}
        learning = (parameter for parameter in self.parameters() if parameter.requires_grad)
        return (Player("student", [parameter for parameter in learning if id(parameter) not in inside]),)

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        if self.stage == "features":
            yield "student", self.features_terms(batch)
        else:
            scores = self.head(self.teacher_out(batch.x, self.fixed).embed)
            yield "head", {"linear": cross_entropy(scores, batch.y)}

    @abstractmethod
    def features_terms(self, batch: Batch) -> dict[str, Tensor]:
        """Of images alone."""


class Queue(nn.Module):
    """The last K rows that entered, (K, D); at first random ones, of a length near one."""

    rows: Tensor
    place: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.randn(size, dim) / dim**0.5)
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def enter(self, rows: Tensor) -> None:
        """These (B, D) in the place of the oldest. Gradients must have been taken before, for it changes in place."""
        size = len(self.rows)
        steps = torch.arange(len(rows), device=rows.device)[-size:]
        self.rows[(self.place + steps) % size] = rows.detach()[-size:].to(self.rows)
        self.place.add_(len(rows)).remainder_(size)


def queue_size(wanted: int, data: DataSpec) -> int:
    """No longer than the training set, where that is known: an image would stand in it twice."""
    return min(wanted, data.n_train or wanted)
