"""Few-sample knowledge distillation (Li et al., CVPR 2020, arXiv:1812.01839)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from kdbench.data.batch import DataSpec
from kdbench.errors import DoesNotFit
from kdbench.losses import in_float32
from kdbench.method import Method, Stage
from kdbench.taps import Spec


@in_float32
def least_squares(student: Tensor, teacher: Tensor) -> Tensor:
    """argmin_Q Σ ‖Q s - t‖² over all samples and positions: the 1x1 convolution that best maps s to t.

    As in the authors' code it has no intercept.

    Args:
        student: output of the student's block, (B, C_s, H, W).
        teacher: that of the teacher's, the channels that the student kept, (B, C_t, H, W).

    Returns:
        (C_t, C_s).
    """
    s, t = (x.movedim(1, -1).flatten(0, -2).cpu() for x in (student, teacher))
    # where channels depend on one another only this driver has an answer, and only on the CPU
    return torch.linalg.lstsq(s, t, driver="gelsd").solution.T.to(student)


@torch.no_grad()
def absorb(conv: nn.Conv2d, q: Tensor) -> None:
    """Q ∘ conv as one convolution: W <- Q W and b <- Q b, in place."""
    conv.weight.copy_(torch.einsum("ij,jkhw->ikhw", q, conv.weight))
    if conv.bias is not None:
        conv.bias.copy_(q @ conv.bias)


def strongest(conv: nn.Conv2d, n: int) -> Tensor:
    """The `n` output channels whose filters have the largest L1 norms, in their order: (n,).

    The pruning of the authors' code (vggprune_pruning.py), after Li et al., ICLR 2017, arXiv:1608.08710.
    """
    return conv.weight.abs().sum((1, 2, 3)).topk(n).indices.sort().values


@dataclass(frozen=True)
class Chain:
    """A network whose convolutions follow one another, each with the batch norm behind it, up to one linear layer."""

    layers: tuple[tuple[nn.Conv2d, nn.BatchNorm2d | None], ...]
    head: nn.Linear

    @classmethod
    def of(cls, spec: Spec) -> Chain:
        """
        Raises:
            DoesNotFit: the network is no such chain.
        """
        assert spec.net is not None
        layers: list[tuple[nn.Conv2d, nn.BatchNorm2d | None]] = []
        heads: list[nn.Linear] = []
        chained = True
        for module in spec.net.modules():
            if isinstance(module, nn.Conv2d):
                before = layers[-1][0].out_channels if layers else module.in_channels
                chained &= module.groups == 1 and module.in_channels == before and not heads
                layers.append((module, None))
            elif isinstance(module, nn.BatchNorm2d):
                chained &= bool(layers) and layers[-1][1] is None
                layers[-1:] = [(conv, module) for conv, _ in layers[-1:]]
            elif isinstance(module, nn.Linear):
                heads.append(module)
        if not (chained and layers and len(heads) == 1 and heads[0].in_features == layers[-1][0].out_channels):
            raise DoesNotFit(
                f"{spec.name} is no chain of convolutions, which are pruned and repaired one after the other: choose a "
                "pair such as vgg8 and vgg8x0.25."
            )
        return cls(tuple(layers), heads[0])

    def narrows(self, other: Chain) -> bool:
        """Whether it is the other one with fewer channels."""
        return len(self.layers) == len(other.layers) and all(
            a.out_channels <= b.out_channels
            and a.kernel_size == b.kernel_size
            and (a.bias is None) == (b.bias is None)
            and (m is None) == (n is None)
            for (a, m), (b, n) in zip(self.layers, other.layers, strict=True)
        )


def narrowed(title: str, student: Spec, teacher: Spec) -> tuple[Chain, Chain]:
    """Both as chains.

    Raises:
        DoesNotFit: the student's is not the teacher's with fewer channels.
    """
    own, whole = Chain.of(student), Chain.of(teacher)
    if not own.narrows(whole):
        raise DoesNotFit(
            f"{title} prunes {teacher.name}, and {student.name} is no narrower version of it: choose a pair such as "
            "vgg8 and vgg8x0.25."
        )
    return own, whole


def transplant(own: Chain, whole: Chain, kept: Sequence[Tensor]) -> None:
    """Copy of a chain what is left of it when each convolution gives no other channels than those `kept`, in place."""
    seen = torch.arange(own.layers[0][0].in_channels)
    for (conv, norm), (source, from_norm), chosen in zip(own.layers, whole.layers, kept, strict=True):
        filters = {name: value[chosen] for name, value in source.state_dict().items()}
        conv.load_state_dict(filters | {"weight": filters["weight"][:, seen]})
        if norm is not None and from_norm is not None:
            values = from_norm.state_dict().items()
            norm.load_state_dict({name: value[chosen] if value.dim() else value for name, value in values})
        seen = chosen
    head = whole.head.state_dict()
    own.head.load_state_dict(head | {"weight": head["weight"][:, seen]})


class FSKD(Method):
    """The student is the teacher without its weakest channels, repaired layer by layer in closed form.

    1. Every convolution keeps its `strongest` channels, as many as the student's has; its weights, its batch norm and
       the last layer are copied from the teacher.
    2. Layer by layer, from the first: Q = `least_squares`(student's output, teacher's kept channels), which the
       convolution absorbs. So each layer is fitted to what its repaired predecessors give it.

    There are no epochs, no optimiser and no labels. Outputs are those of convolutions, before the batch norm: that is
    affine in each channel, and so does not change which Q is best.

    Args:
        images: training images that are looked at, at most.
    """

    leaf = "few-sample/layer-wise"
    paper = "li2018few"
    title = "FSKD"
    needs = frozenset({"teacher"})
    terms = ()
    survey: ClassVar = {
        "data": "some 500 unlabelled images",
        "objective": "least squares of every block's output",
    }

    def __init__(self, images: Annotated[int, Field(ge=2)] = 500, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.images = images

    def build(self, student: Spec, teacher: Spec | None, data: DataSpec) -> None:
        assert teacher is not None
        self.own, self.whole = narrowed(self.title, student, teacher)
        self.net = (teacher.net,)  # a tuple hides the teacher's weights from nn.Module

    def stages(self) -> Sequence[Stage]:
        return (Stage("prune", 0, self.prune), Stage("estimate", 0, self.estimate))

    def prune(self) -> None:
        layers = zip(self.own.layers, self.whole.layers, strict=True)
        transplant(self.own, self.whole, [strongest(source, conv.out_channels) for (conv, _), (source, _) in layers])

    @torch.no_grad()
    def estimate(self) -> None:
        index = self.positions()
        index = index[torch.randperm(len(index), generator=self.rng)[: self.images].to(index.device)]
        x = self.take(index, plain=True).x
        for (conv, _), (source, _) in zip(self.own.layers, self.whole.layers, strict=True):
            kept = strongest(source, conv.out_channels)
            s = output_of(conv, lambda: self.student(x))
            self.forwards["student"] += len(x)
            t = output_of(source, lambda: self.teacher_out(x, self.net[0]))
            absorb(conv, least_squares(s, t[:, kept]))


def output_of(layer: nn.Module, forward: Callable[[], object]) -> Tensor:
    """What a layer gives while `forward` runs the network that it is in."""
    return passing(layer, forward)[1]


def passing(layer: nn.Module, forward: Callable[[], object]) -> tuple[Tensor, Tensor]:
    """What a layer is given, and what it gives, while `forward` runs the network that it is in."""
    seen: list[tuple[Tensor, Tensor]] = []
    hook = layer.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    forward()
    hook.remove()
    return seen[-1]
