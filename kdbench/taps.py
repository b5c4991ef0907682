"""Taps: the named activations of a network that methods ask for.

Every network of kdbench, whatever its source, offers the same names:

=======================  ====================================================================
``stem``                 output of the first convolution block, (B, C, H, W)
``stage1``..``stageN``   output of each resolution stage *after* its last ReLU, (B, C, H, W)
``pre1``..``preN``       the same activations *before* that ReLU, where the network has one
``embed``                pooled features, the input of the classifier, (B, D)
``logits``               class scores before the softmax, (B, K); of a dense network a map, (B, K, H, W)
``decoded``              what the head of a dense network reads, in the place of ``embed``, (B, D, H', W')
=======================  ====================================================================

Methods declare the taps they read as patterns: a name, ``stage*`` / ``pre*`` (all of them) or ``stage-1`` /
``pre-1`` (the deepest; ``-2`` the one before it).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from kdbench.errors import DoesNotFit

UNCUT = "only the zoo's image classifiers and policies can be cut behind a stage: choose a pair of these."


class Net(Protocol):
    """What kdbench asks of a network (any ``nn.Module`` with these two members)."""

    def __call__(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W)."""
        ...

    def tap(self, x: Tensor, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """The activations called `names` (all when None), from one forward pass; ``logits`` is always among them."""
        ...


@dataclass(frozen=True)
class Out:
    """The outputs of one forward pass: ``out.logits``, ``out.embed``, ``out["stage2"]``.

    Where several networks were asked these are the first one's, and `others` has the rest; `each` has all.
    """

    taps: Mapping[str, Tensor]
    others: tuple[Out, ...] = ()

    @property
    def each(self) -> tuple[Out, ...]:
        """One for each network that was asked."""
        return (self, *self.others)

    def __getitem__(self, name: str) -> Tensor:
        return self.taps[name]

    @property
    def logits(self) -> Tensor:
        return self.taps["logits"]

    @property
    def embed(self) -> Tensor:
        return self.taps["embed"]

    def detach(self) -> Out:
        return Out({k: v.detach() for k, v in self.taps.items()}, tuple(each.detach() for each in self.others))


@dataclass(frozen=True)
class Taps:
    """The tap patterns that a method reads on each side (``logits`` is always there)."""

    student: tuple[str, ...] = ()
    teacher: tuple[str, ...] = ()


@dataclass(frozen=True)
class Spec:
    """A network as methods see it: its name and the probed shape of every tap, without the batch axis.

    Attributes:
        net: the network itself, in float32, with the parameters and running statistics that it was trained to; of a
            teacher to read alone. For methods that prune, invert or rebuild it.
        classes: what each output means, as the student's classes; None where they are the student's, all in order.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    net: nn.Module | None = field(default=None, repr=False, compare=False)
    classes: tuple[int, ...] | None = None

    def channels(self, tap: str) -> int:
        return self.shapes[tap][0]

    def all(self, kind: str) -> tuple[str, ...]:
        """The taps ``kind1``..``kindN`` in order of depth; `kind` is ``stage`` or ``pre``."""
        found = [name for name in self.shapes if re.fullmatch(rf"{kind}\d+", name)]
        return tuple(sorted(found, key=lambda name: int(name[len(kind) :])))

    def resolve(self, patterns: Iterable[str]) -> tuple[str, ...]:
        """Tap names for tap patterns, in order and without repeats.

        Raises:
            DoesNotFit: the network has no such tap.
        """
        names: list[str] = []
        for pattern in patterns:
            match = re.fullmatch(r"(stage|pre)(\*|-\d+)", pattern)
            if match:
                every = self.all(match[1])
                depth = 0 if match[2] == "*" else int(match[2])
                found = every if depth == 0 else every[depth : len(every) + depth + 1]
            else:
                found = (pattern,) if pattern in self.shapes else ()
            if not found:
                raise DoesNotFit(
                    f"{self.name} has no tap '{pattern}' (it has {', '.join(self.shapes)}): choose another pair or tap."
                )
            names += [name for name in found if name not in names]
        return tuple(names)


def aligned(student: Spec, teacher: Spec, kind: str = "stage") -> list[tuple[str, str]]:
    """Pairs (student tap, teacher tap) of equal depth, counted from the deepest where the numbers of stages differ."""
    s, t = student.all(kind), teacher.all(kind)
    n = min(len(s), len(t))
    if n == 0:
        raise DoesNotFit(f"{student.name} and {teacher.name} share no '{kind}' taps: choose another pair.")
    return list(zip(s[-n:], t[-n:], strict=True))


@torch.no_grad()
def probe(name: str, net: nn.Module, shape: tuple[int, ...]) -> Spec:
    """Tap shapes of `net` on inputs of `shape`, by one forward pass that leaves no trace in the network."""
    training = net.training
    net.eval()
    like = next(net.parameters())
    taps = net.tap(torch.zeros(2, *shape, device=like.device, dtype=like.dtype))  # type: ignore[operator]
    net.train(training)
    shapes = {tap: tuple(value.shape[1:]) for tap, value in taps.items()}
    return Spec(name, shapes, getattr(net, "plain", net))  # a frozen teacher is more than its network
