"""Knowledge transfer graph for deep collaborative learning (Minami et al., ACCV 2020, arXiv:1909.04286)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from kdbench.data.batch import Batch, DataSpec
from kdbench.errors import UserError
from kdbench.losses import cross_entropy, in_float32, kl
from kdbench.method import Method, Player, Ramp
from kdbench.settings import Temperature
from kdbench.taps import Spec

Gate = Literal["through", "cutoff", "linear", "correct"]
GATES: Sequence[Sequence[Gate]] = (
    ["through", "linear", "correct"],
    ["correct", "through", "linear"],
    ["linear", "correct", "linear"],
)
"""Not the paper's, which searches them: every gate but cutoff, and a third node that labels teach late."""


@in_float32
def transfer_loss(own: Tensor, source: Tensor, y: Tensor, gate: Gate, time: float, temperature: float = 1.0) -> Tensor:
    """Gate of T² · KL( softmax(source / T) || softmax(own / T) ), of logits (B, K) and labels (B,).

    Summed over classes, averaged over the whole batch; the source is a constant. The gate lets it ``through``, cuts it
    off, lets it through by the share `time` of training that is over (``linear``), or of those samples alone that the
    source gets right (``correct``).
    """
    if gate == "cutoff":
        return own.new_zeros(())
    target = source.detach()
    if gate == "correct":  # whose own prediction is the target, has no loss and no gradient
        target = torch.where((target.argmax(1) == y)[:, None], target, own.detach())
    return kl(own, target, temperature) * (time if gate == "linear" else 1.0)


class TransferGraph(Method):
    """Networks are nodes of a graph, with a gate on every edge, that from the labels included; the first is deployed.

    L_k = gate_kk( CE(y, z_k) ) + Σ_{j≠k} gate_jk( T² · KL( z_j || z_k ) ),  see `transfer_loss`

    and all nodes step on predictions of the same moment. A label is never wrong, so ``correct`` lets it through.

    Args:
        gates: for each node a row: from each node to it, and in its own place from the labels.
        temperature: T.
    """

    leaf = "online/individual-students"
    paper = "minami2019knowledge"
    title = "Knowledge transfer graph"
    needs = frozenset({"labels", "peers"})
    terms = ("label", "transfer")
    survey: ClassVar = {
        "type": "individual students",
        "students": "2 or more, nodes of a graph",
        "targets": "other nodes' predictions, through gates",
        "loss": "CE + KL",
        "adaptation": "gates: through, cut-off, linear, correct",
    }

    def __init__(self, gates: Sequence[Sequence[Gate]] = GATES, temperature: Temperature = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if len(gates) < 2 or any(len(row) != len(gates) for row in gates):
            raise UserError(
                f"{type(self).__name__}: gates need n rows of n for n nodes, two or more: mend method.gates."
            )
        for k, row in enumerate(gates):
            if set(row) == {"cutoff"}:
                raise UserError(f"{type(self).__name__}: node {k} learns nothing: open a gate in row {k} of gates.")
        self.gates, self.temperature = gates, temperature

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.nodes = nn.ModuleList([self.student, *(self.spawn(k) for k in range(1, len(self.gates)))])

    def players(self) -> Sequence[Player]:
        return [Player(f"node{k}", list(node.parameters())) for k, node in enumerate(self.nodes)]

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        time = Ramp(0.0, 1.0).at(self.epoch, self.protocol.epochs)
        logits = [self.student_out(batch.x, node).logits for node in self.nodes]
        label = {"through": 1.0, "cutoff": 0.0, "linear": time, "correct": 1.0}
        for k, (z, row) in enumerate(zip(logits, self.gates, strict=True)):
            transfers = [
                transfer_loss(z, source, batch.y, gate, time, self.temperature)
                for j, (source, gate) in enumerate(zip(logits, row, strict=True))
                if j != k
            ]
            yield (
                f"node{k}",
                {"label": label[row[k]] * cross_entropy(z, batch.y), "transfer": torch.stack(transfers).sum()},
            )
