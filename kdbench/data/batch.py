"""What a training step and a network's builder need to know about data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from kdbench.errors import UserError

AGAIN, PAIRED = "again", "paired"
"""Streams of the batch's own samples: another view of each, and each in the modality that teachers see."""
PARTS = ("x", "y", "index", "view")


@dataclass(frozen=True)
class Share:
    """The part of each batch that a process trains on: the `rank`-th of `size` parts, whose lengths differ by one at
    most."""

    rank: int = 0
    size: int = 1

    def of(self, rows: Tensor) -> Tensor:
        """(B, ...) to (b, ...)."""
        return rows.tensor_split(self.size)[self.rank]


WHOLE = Share()


class Beside(Mapping[str, "Batch"]):
    """The streams beside a batch: each is cut when it is first asked for, once for all who hold the batch.

    Attributes:
        own: how many images each of those streams shows that have an order of their own; the samples of all others are
            the batch's.
        cut: the streams that were cut so far.
    """

    def __init__(self, cuts: Mapping[str, Callable[[], Batch]], own: Mapping[str, int] | None = None) -> None:
        self._cuts = dict(cuts)
        self.own: Mapping[str, int] = dict(own or {})
        self.cut: dict[str, Batch] = {}
        self._versions: dict[str, int] = {}

    @classmethod
    def of(cls, streams: Mapping[str, Batch]) -> Beside:
        """Of batches that are there already; those not called `AGAIN` or `PAIRED` have an order of their own."""
        own = {name: len(batch) for name, batch in streams.items() if name not in (AGAIN, PAIRED)}
        return cls({name: partial(streams.__getitem__, name) for name in streams}, own)

    def __getitem__(self, name: str) -> Batch:
        if name not in self.cut:
            self.cut[name] = self._cuts[name]()
            self._versions[name] = self.cut[name].x._version
        return self.cut[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._cuts)

    def __len__(self) -> int:
        return len(self._cuts)

    def changed(self) -> str | None:
        """A stream that somebody changed in place since it was cut, which all share, or None."""
        return next((name for name, batch in self.cut.items() if batch.x._version != self._versions[name]), None)

    def each(self, change: Callable[[Batch], Batch], names: AbstractSet[str] | None = None) -> Beside:
        """The streams, of `names` alone if they are given, with something done to each once it is asked for."""
        left = [name for name in self if names is None or name in names]
        cuts = {name: partial(lambda name: change(self[name]), name) for name in left}
        return Beside(cuts, {name: size for name, size in self.own.items() if name in left})


@dataclass
class Batch:
    """One mini-batch, and in square brackets the streams beside it: ``batch["unlabelled"]``, ``batch["again"]``.

    Attributes:
        x: normalised images, float32, (B, C, H, W); (B, 0) for methods that must not see data.
        y: targets: class indices, int64, (B,); masks, int64, (B, H, W); depth, float32, (B, H, W). -1 where they are
            not known, or where the method does not declare that it needs labels. Where images are mixed, the shares of
            classes, float32, (B, K).
        index: position of each sample in the training set (of a stream with an order of its own: in its set), int64,
            (B,).
        view: the exact view of each sample as (dy, dx, flip), int64, (B, 3), or, where images are streamed, as
            `kdbench.data.crops.VIEW`, (B, 8); zeros where nothing was augmented.
        beside: the streams, see `Beside`; a mapping of batches that are there already will do.
    """

    x: Tensor
    y: Tensor
    index: Tensor
    view: Tensor
    beside: Mapping[str, Batch] = field(default_factory=lambda: Beside({}), repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.beside, Beside):
            self.beside = Beside.of(self.beside)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, name: str) -> Batch:
        """A stream beside the batch.

        Raises:
            UserError: the data do not offer it.
        """
        if name in self.beside:
            return self.beside[name]
        offered = ", ".join(self.beside) or "none"
        raise UserError(
            f"there is no stream '{name}' beside this batch (streams: {offered}): name it in the method's `needs`, and "
            "choose a scenario that offers it, as scenario=semi_supervised offers 'unlabelled'."
        )

    def __add__(self, other: Batch) -> Batch:
        """The samples of both, and beside them the streams of the first; of streams of the same samples, those of both.

        So teachers see the samples of both where a modality is paired.
        """
        streams = self._beside
        own, both = self.__getitem__, lambda name: self[name] + other[name]
        cuts = {name: partial(own if name in streams.own else both, name) for name in streams}
        x, y, index, view = (torch.cat([getattr(batch, key) for batch in (self, other)]) for key in PARTS)
        return Batch(x, y, index, view, Beside(cuts, streams.own))

    @classmethod
    def of(cls, batch: Batch | Sequence[Tensor]) -> Batch:
        """A batch of any loader that yields ``(x, y)`` or ``(x, y, index)`` as a `Batch`."""
        if isinstance(batch, Batch):
            return batch
        x, y, *rest = batch
        index = rest[0] if rest else torch.full((len(y),), -1, dtype=torch.int64, device=y.device)
        return cls(x, y, index, index.new_zeros(len(y), 3))

    @property
    def for_teacher(self) -> Batch:
        """The same samples as teachers see them: the batch itself, unless a modality is paired with it."""
        return self.beside.get(PAIRED, self)

    def seen_by(self, needs: AbstractSet[str]) -> Batch:
        """The batch as a method sees it that declares these `needs`: what is not declared is not there.

        Without ``labels`` all targets are -1, also in streams; with ``no_data`` images and targets have the shape
        (B, 0), and there are no streams. A stream with an order of its own is there where it is named. Nothing is
        copied.
        """
        if "no_data" in needs:
            return Batch(self.x.new_empty(len(self), 0), self.index.new_empty(len(self), 0), self.index, self.view)
        streams = self._beside
        hidden = streams.own.keys() - needs
        if "labels" in needs and not hidden:
            return self
        y = self.y if "labels" in needs else self.y.new_full((), -1).expand_as(self.y)
        beside = streams.each(lambda stream: stream.seen_by(needs), streams.keys() - hidden)
        return Batch(self.x, y, self.index, self.view, beside)

    def shown(self, needs: AbstractSet[str]) -> int:
        """How many images a method sees that declares these `needs`: the batch, and the declared streams that have an
        order of their own; streams of the same samples are not counted."""
        own = {} if "no_data" in needs else self._beside.own
        return len(self) + sum(size for name, size in own.items() if name in needs)

    def to(self, device: torch.device | str, **kwargs: Any) -> Batch:
        """The batch on another device, and its streams too, as they are asked for."""
        if self.x.device == torch.device(device):
            return self
        return self.each(lambda tensor: tensor.to(device, **kwargs))

    def each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The batch with each of its tensors changed, and those of its streams once they are asked for."""
        x, y, index, view = (change(getattr(self, key)) for key in PARTS)
        return Batch(x, y, index, view, self._beside.each(lambda stream: stream.each(change)))

    @property
    def _beside(self) -> Beside:
        assert isinstance(self.beside, Beside)
        return self.beside


@dataclass(frozen=True)
class DataSpec:
    """A data set as methods and networks see it.

    Attributes:
        shape: of an image, (C, H, W); of an observation, (n,).
        num_classes: how many classes there are: of samples, or where the task is dense, of pixels (1 for depth).
        n_train, n_test, n_val: sizes of the splits.
        task, settings: what is asked of a network, by name, and the settings of that.
        mean, std: per channel, of pixels scaled to 0..1; empty where they are not known.
        streams: names of what stands beside a batch of training.
        beside: of each stream with an order of its own, how many samples it has.
        experiences: where data arrive in parts, how many classes were seen at the end of each experience; empty where
            they come whole.
        arrivals: where an experience is a domain, how many samples of a split to be judged by are of each, in order;
            empty where classes tell it.
        memory: how many samples of past experiences a method may keep.
        shape_for_teacher: where teachers see another modality, the shape of that.
        labelled: whether anything is known of what the training samples show.
        per_epoch: how many samples an epoch of each experience shows (of one, where data come whole); empty where each
            training sample is shown once.
        mixed: whether training images are shown two at a time, so that labels are shares of classes.
    """

    name: str
    shape: tuple[int, ...]
    num_classes: int
    n_train: int
    n_test: int
    n_val: int = 0
    task: str = "classification"
    settings: Mapping[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    streams: tuple[str, ...] = ()
    experiences: tuple[int, ...] = ()
    arrivals: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    memory: int = 0
    per_epoch: tuple[int, ...] = ()
    shape_for_teacher: tuple[int, ...] | None = None
    beside: Mapping[str, int] = field(default_factory=dict)
    labelled: bool = True
    mixed: bool = False

    def epoch_size(self, experience: int = 0) -> int:
        """How many samples an epoch of an experience shows."""
        return self.per_epoch[experience] if self.per_epoch else self.n_train
