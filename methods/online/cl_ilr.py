"""Collaborative learning for deep neural networks (Song & Chai, NeurIPS 2018, arXiv:1805.11761)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from kdbench.data.batch import Batch, DataSpec
from kdbench.losses import cross_entropy, in_float32, kl
from kdbench.method import Method
from kdbench.settings import Temperature
from kdbench.taps import Out, Spec, Taps
from methods.online.peers import means_of_others
from methods.online.trunk import branches


@in_float32
def consensus_loss(heads: Sequence[Tensor], temperature: float = 2.0) -> Tensor:
    """Σ_h T² · KL( softmax(mean_{j≠h} z_j / T) || softmax(z_h / T) ), of logits (B, K); targets are constants.

    Summed over classes and heads, averaged over the batch: the paper's soft loss is a cross entropy,
    which differs from it by the entropy of a constant.
    """
    targets = means_of_others(heads)
    return torch.stack([kl(z, target.detach(), temperature) for z, target in zip(heads, targets, strict=True)]).sum()


def rescale(shared: Iterable[Tensor], heads: int) -> list[RemovableHandle]:
    """From now on gradients of what so many heads share are divided by their number, until the handles are removed.

    That is the paper's backpropagation rescaling: where heads part stands I(x) = x with dI/dx = 1 / heads, and the
    gradient of what lies in front of it is linear in that of x.
    """
    return [tensor.register_hook(lambda gradient: gradient / heads) for tensor in shared]


class CLILR(Method):
    """2^f heads of one network, which parts in two at each of its last f stages, learn from one another's mean.

    L = Σ_h [ β · CE(y, z_h) + (1 - β) · T² · KL( mean_{j≠h} z_j || z_h ) ]

    with the weights of ``ce`` (β) and ``consensus`` (1 - β), and gradients divided where heads part, see `rescale`: the
    sum over heads would flood what they share. The student is the path of the first head and is deployed; the others
    are as its end, freshly initialised. The passes through them alone do not count as forward passes.

    Args:
        forks: f; 1 is the paper's multi-head pattern with two heads, more are hierarchical sharing.
        temperature: T.
    """

    leaf = "online/shared-blocks"
    paper = "song2018collaborative"
    title = "CL-ILR"
    needs = frozenset({"labels", "peers"})
    terms = ("ce", "consensus")
    survey: ClassVar = {
        "type": "shared blocks",
        "students": "4 heads",
        "targets": "mean of the other heads' logits",
        "loss": "CE + KL",
        "adaptation": "gradients of shared blocks rescaled",
    }

    def __init__(
        self, forks: Annotated[int, Field(ge=1, le=6)] = 2, temperature: Temperature = 2.0, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.forks, self.temperature = forks, temperature
        self.taps = Taps(student=tuple(f"stage-{depth}" for depth in range(forks + 1, 1, -1)))

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        self.cuts = student.resolve(self.taps.student)
        number = iter(range(1, 2**self.forks))
        nets, self.fronts = [self.student], []
        for cut in self.cuts:  # behind each, every network so far parts from an end of its own
            ends = branches(lambda _: self.spawn(next(number)), cut, len(nets))
            self.fronts += [_in_front_of(cut, net) for net in nets]
            nets += ends
        self.ends = nn.ModuleList(nets[1:])

    def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
        ends, outs = iter(self.ends), [s]
        for depth, cut in enumerate(self.cuts, start=1):
            parted = [next(ends).tap(out[cut], self.cuts[depth:]) for out in outs]  # type: ignore[operator]
            outs += map(Out, parted)
        heads = [out.logits for out in outs]
        return {
            "ce": torch.stack([cross_entropy(z, batch.y) for z in heads]).sum(),
            "consensus": consensus_loss(heads, self.temperature),
        }

    def turns(self, batch: Batch) -> Iterator[tuple[str, dict[str, Tensor]]]:
        handles = [handle for front in self.fronts for handle in rescale(front, heads=2)]
        try:
            yield from super().turns(batch)
        finally:  # the student may go on without heads
            for handle in handles:
                handle.remove()


def _in_front_of(cut: str, net: nn.Module) -> list[nn.Parameter]:
    """The parameters of a network that do not stand behind a tap."""
    behind = {id(parameter) for parameter in net.tail(cut).parameters()}  # type: ignore[operator]
    return [parameter for parameter in net.parameters() if id(parameter) not in behind]
