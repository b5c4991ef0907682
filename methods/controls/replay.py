"""Replay of exemplars: the control of incremental tables."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from kdbench.data.batch import Batch
from kdbench.losses import cross_entropy
from kdbench.taps import Out
from methods.learning.rehearsal import Mix, Rehearsal, first_of_each


class Replay(Rehearsal):
    """L = CE(y, s) over the classes seen so far, on new samples and kept ones; without memory this is fine-tuning.

    Where the same classes come again in another domain, the memory is divided among the classes of each.
    """

    leaf = "controls"
    paper = ""
    title = "Replay"
    control = "scratch"
    terms = ("ce",)
    tasks = frozenset({"class-incremental", "domain-incremental"})
    earlier: ClassVar = frozenset({"afd0bb08e422e21676d457df6905690a536c6cf503d4592f6cce76a493c17759"})

    def __init__(self, mix: Mix = "equal", **kwargs: Any) -> None:
        super().__init__(mix=mix, **kwargs)

    def keep_some(self) -> None:
        at_hand = torch.cat([self.kept, self.positions().cpu()])
        groups, seen, domains = self.labels(at_hand), self.experience.seen, 1
        if not self.experience.old:
            domains = self.experience.number + 1
            for k in range(domains):
                groups[torch.isin(at_hand, self.positions(k).cpu())] += k * seen
        self.keep(first_of_each(groups, at_hand, self.data.memory // (domains * seen)))

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        return {"ce": cross_entropy(s.logits[:, : self.experience.seen], batch.y)}
