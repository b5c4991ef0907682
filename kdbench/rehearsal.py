"""What can be known of a training before it costs time: its smallest batch, its labels, and its first turns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.data.batch import AGAIN, PAIRED, Batch, DataSpec
from kdbench.errors import DoesNotFit, UserError
from kdbench.taps import Spec

if TYPE_CHECKING:
    from kdbench.method import Method

SHOWN = 4
"""Images of a rehearsal with labels."""


def check_last_batch(method: Method, data: DataSpec) -> None:
    """Play the last batch of an epoch, if it is of one image, on a copy of a bound method.

    Batch normalisation cannot normalise a single value, nor can a network that drops axes of length one be fed so. What
    fails with two images, too, has other reasons, and is left to training.

    Raises:
        UserError: training would fail at the end of its first epoch.
    """
    size = method.protocol.batch_size
    shown = next((n for n in map(data.epoch_size, range(len(data.experiences) or 1)) if n % size == 1), None)
    if shown is None or method.protocol.drop_last:
        return
    failed = _play(method, data, 1)
    if failed is not None and _play(method, data, 2) is None:
        known = "more than 1 value per channel" in str(failed)
        why = "batch normalisation has one value per channel" if known else f"{type(failed).__name__}: {failed}"
        raise UserError(
            f"the last batch of {shown} images in batches of {size} has one, and training fails on it ({why}): "
            "leave it out (protocol.drop_last=true), or take another protocol.batch_size."
        )


def check_shares(method: Method, data: DataSpec) -> None:
    """Play a batch on a copy of a bound method whose labels are shares of two classes, as those of mixed images are.

    A method may read them if each of its terms is then that of the one label and that of the other, weighted by the
    shares, as a cross-entropy is. Anything else that is made of a label, as a mask of the class or a set of samples of
    one class, would mean nothing, and mostly be silent about it.

    What fails with whole labels, too, has other reasons, and is left to training.

    Raises:
        DoesNotFit: a term is not, or fails.
    """
    if "labels" not in method.needs:
        return
    label = torch.arange(SHOWN) % data.num_classes
    pure, share = (label, (label + 1) % data.num_classes), 0.25
    one, other = (F.one_hot(y, data.num_classes).float() for y in pure)
    try:
        first, second = (_terms(method, data, labels) for labels in pure)
    except Exception:
        return
    try:
        mixed = _terms(method, data, share * one + (1 - share) * other)
        alike = all(
            torch.allclose(share * a + (1 - share) * b, c, rtol=1e-3, atol=1e-5)
            for a, b, c in zip(first, second, mixed, strict=True)
        )
    except Exception:  # of whatever was done to labels that are no class indices
        alike = False
    if not alike:
        raise DoesNotFit(
            f"{type(method).__name__} asks more of a label than a cross-entropy does, and images that are mixed have "
            "two: set dataset.mix=null, or choose a method that needs no labels (`kdbench methods` says what each "
            "needs)."
        )


def _terms(method: Method, data: DataSpec, labels: Tensor) -> list[Tensor]:
    """The terms of all turns on random images, (n, ...), with given labels, always the same images and random
    numbers."""
    like = next(method.student.parameters())
    index = torch.arange(len(labels), device=like.device)
    x = torch.randn(len(labels), *data.shape, generator=torch.Generator().manual_seed(0)).to(like)
    batch = Batch(x, labels.to(like.device), index, index.new_zeros(len(labels), 3))
    return [value.detach() for terms in _played(method, data, lambda _: batch) for value in terms.values()]


def _play(method: Method, data: DataSpec, n: int) -> Exception | None:
    """What goes wrong with a batch of `n` images in any stage, or None; networks and random numbers are not touched."""
    try:
        like = next(method.student.parameters())
        for _ in _played(method, data, lambda label: _blank(data, n, like, label)):
            pass
    except Exception as error:
        return error
    return None


def _played(method: Method, data: DataSpec, batch: Callable[[int], Batch]) -> Iterator[Mapping[str, Tensor]]:
    """The terms of all turns that a copy of a bound method plays, in every stage.

    Args:
        batch: is told a label that arrives with the stage's experience.
    """
    outside = [thing for thing in (*method._teachers, method._trainer) if thing is not None]
    with torch.random.fork_rng(devices=[]):
        trial = copy.deepcopy(method, {id(thing): thing for thing in outside})
        trial._teachers = tuple(_Mute(spec) for spec in method.teachers)
        trial.samples = _Blank(data, next(trial.student.parameters()), trial.experience.old)
        for position in (position for position, entry in enumerate(trial._plan) if entry.length):
            trial._position = position
            for _, terms in trial.turns(trial.batch(batch(trial.experience.old).seen_by(trial.needs))):
                yield terms


def _blank(data: DataSpec, n: int, like: Tensor, label: int) -> Batch:
    """A batch of `n` blank images of one class, and beside it all that the data offer.

    Streams with an order of their own show two images, as they are not cut short with an epoch.
    """

    def blank(n: int, **beside: Batch) -> Batch:
        index = torch.zeros(n, dtype=torch.long, device=like.device)
        x = torch.zeros(n, *data.shape).to(like)
        return Batch(x, torch.full_like(index, label), index, index.new_zeros(n, 3), beside)

    own = set(data.streams) - {AGAIN, PAIRED}
    return blank(n, **{AGAIN: blank(n)}, **{name: blank(2, **{AGAIN: blank(2)}) for name in own})


class _Blank:
    """Stands for the training samples: as many blank images as are taken."""

    def __init__(self, data: DataSpec, like: Tensor, label: int) -> None:
        self._data, self._like, self._label = data, like, label

    def positions(self, experience: int) -> Tensor:
        return torch.arange(self._data.n_train, device=self._like.device)

    def take(self, index: Tensor, epoch: int, *, plain: bool) -> Batch:
        return _blank(self._data, len(index), self._like, self._label)


class _Mute(nn.Module):
    """Stands for a teacher: taps of the right shapes, at no cost; each follows from the one before, with slope zero."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), *self.spec.shapes["logits"])

    def tap(self, x: Tensor, names: Collection[str] | None = None) -> dict[str, Tensor]:
        taps: dict[str, Tensor] = {}
        before = x
        for name, shape in self.spec.shapes.items():
            nothing = 0 * before.flatten(1).sum(1)
            taps[name] = before = x.new_zeros(len(x), *shape) + nothing.view(-1, *[1] * len(shape))
        return taps if names is None else {name: taps[name] for name in (*names, "logits")}


def check_turn(who: str, player: str, players: Collection[str], terms: Any, declared: Collection[str]) -> None:
    """Compare a player's first turn with what was declared.

    Args:
        who: the method's class.
        terms: what was yielded.

    Raises:
        UserError: an unknown player or term, or what no gradient can be taken of.
    """
    if player not in players:
        raise UserError(f"{who}: a turn of '{player}', but its players are {', '.join(players)}: mend its turns.")
    if not isinstance(terms, Mapping) or not terms:
        raise UserError(f"{who}: its losses are {terms!r}: return terms by name, as in {{'ce': loss}}.")
    for term, value in terms.items():
        if term not in declared:
            raise UserError(
                f"{who}: its losses return '{term}', but its terms are {', '.join(declared)}: give it one of these "
                "names, or declare it."
            )
        if not isinstance(value, Tensor) or value.dim() or not value.is_floating_point():
            kind = f"of shape {tuple(value.shape)} and {value.dtype}" if isinstance(value, Tensor) else repr(value)
            raise UserError(f"{who}: the loss term '{term}' is {kind}, not a scalar tensor: return its mean.")
    if not any(value.requires_grad for value in terms.values()):
        raise UserError(
            f"{who}: the loss of its {player} ({', '.join(terms)}) has no gradient: compute it from what student_out "
            "returned, without detach, no_grad or argmax."
        )


def check_terms(who: str, declared: Iterable[str], returned: Iterable[Collection[str]]) -> None:
    """Raises `UserError` if a declared term was not among those of any turn."""
    for term in sorted(set(declared).difference(*returned)):
        raise UserError(f"{who}: its losses never return '{term}', one of its terms: return it, or do not declare it.")
