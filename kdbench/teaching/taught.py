"""A trained teacher as a cohort shares it: measured as it is fed, frozen, on a route, with the cache of its words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.compute.device import device_name
from kdbench.compute.route import Route, instruction_set
from kdbench.data.crops import TURN
from kdbench.data.datasets import Dataset
from kdbench.errors import UserError
from kdbench.paths import cache_dir
from kdbench.protocol import Protocol
from kdbench.results.record import TeacherInfo
from kdbench.source import network_hash
from kdbench.taps import probe
from kdbench.teaching.adapter import Adapter
from kdbench.teaching.agreement import (
    PLAIN,
    Fed,
    check_as_fed,
    check_card,
    check_value,
    check_value_as_fed,
    judged,
    measure,
    measured_by_bits,
    percent,
    same_test,
)
from kdbench.teaching.frozen import CACHED, FrozenTeacher
from kdbench.teaching.teachers import Teacher
from kdbench.teaching.view_cache import ViewCache


@dataclass
class Taught:
    """A teacher, and how the cells of one data set and protocol share it."""

    info: TeacherInfo
    frozen: FrozenTeacher
    route: Route
    cache: ViewCache | None
    known: tuple[int, ...] | None = None


def share(
    teacher: Teacher,
    learned: Dataset,
    dataset: Dataset,
    identity: Mapping[str, Any],
    protocol: Protocol,
    route: Route,
    device: torch.device,
    say: Callable[[str], None],
    *,
    partial: bool = False,
) -> Taught:
    """The teacher of these cells on their route, after a look at whether it is what its card says.

    Args:
        learned: the data set that it was trained on.
        identity: of `dataset`: its config, as it stands in a cell's.
        partial: it may know but some of the classes.
        say: told if a damaged view cache is begun anew, cannot be written, or cannot be had.

    Raises:
        UserError: it does not fit the data, or says something else of the test images than its card.
    """
    adapter = Adapter.between(teacher.card.name, learned, dataset, partial=partial)
    card, dataset = teacher.card, dataset.for_teacher
    shape = dataset.spec.shape
    net = teacher.load(learned)
    # no batch is larger than the data, whatever the protocol says
    rows = -(-min(protocol.batch_size, dataset.spec.n_train) // route.devices)
    # on the device before a fast copy of it is made, which is tried there
    frozen = FrozenTeacher(adapter.wrap(net).to(device), shape, route, rows).to(device)
    found = _measured(teacher, net, frozen, learned, dataset, protocol, route, adapter, device)
    cache = None
    cycle = dataset.crops and dataset.crops.cycle
    if route.cached and dataset.mix:
        frozen.failed = frozen.failed or "images that are mixed are others in each epoch, and not cached"
    elif route.cached and dataset.crops and not cycle:
        frozen.failed = frozen.failed or "views of streamed images that do not come round again are not cached"
    elif route.cached and not _vectors(frozen, dataset):
        frozen.failed = frozen.failed or "its outputs are maps, and not cached"
    elif route.cached and not dataset.affine:  # whose views cannot be counted
        # all that can change a bit of what the teacher says
        key = {
            "teacher": card.sha256,
            "name": card.name,
            "data": dataset.content_hash,
            "dataset": dict(identity),
            "mean": dataset.mean,
            "std": dataset.std,
            "device": device_name(device),
            "instructions": instruction_set() if device.type == "cpu" else None,
            "torch": torch.__version__,
            "granularity": frozen.granularity,
        }
        if code := network_hash(card.name):
            key["code"] = code
        if protocol.precision == "tf32":
            key["precision"] = protocol.precision
        if isinstance(classes := identity.get("classes"), list) and any(isinstance(name, str) for name in classes):
            key["classes"] = dataset.classes_hash  # which images these names choose
        if adapter != Adapter(known=adapter.known):
            key["adapter"] = {name: value for name, value in asdict(adapter).items() if name != "known"}
        cache = _cache_or_none(key, frozen, dataset, protocol.epochs, card.name, say)
        if cache is None:
            frozen.failed = frozen.failed or "its views are not cached"
        else:
            forgiving = Forgiving(cache, card.name, say)
            frozen.cache = ComingRound(forgiving, cycle) if cycle else forgiving
    return Taught(found, frozen, route, cache, adapter.known)


def _measured(
    teacher: Teacher,
    net: nn.Module,
    frozen: FrozenTeacher,
    learned: Dataset,
    dataset: Dataset,
    protocol: Protocol,
    route: Route,
    adapter: Adapter,
    device: torch.device,
) -> TeacherInfo:
    """What the teacher reaches on the cells' test set, by their measure, itself and as it is fed.

    Raises:
        UserError: that, or what it reaches on its own test set, is not what it should be.
    """
    card, agreement = teacher.card, None
    bits, same = measured_by_bits(dataset), same_test(learned, dataset)
    if bits:
        measured = measure(frozen, dataset, protocol.precision, adapter.known)
        check_as_fed(card.name, measured, dataset)
        accuracy, fed = percent(measured.right), percent(measured.fed_right)
        agreement = measured.agreement() if route.fast else None
    else:
        accuracy, fed = judged(frozen.plain, dataset, device), judged(Fed(frozen), dataset, device)
        check_value_as_fed(card.name, accuracy, fed)
    if not measured_by_bits(learned):
        alike = same and learned.spec.task == dataset.spec.task
        check_value(teacher, accuracy if alike else judged(net, learned, device))
    elif bits and same:
        check_card(teacher, learned, measured, device)
        accuracy = card.accuracy
    else:
        own = FrozenTeacher(net, learned.spec.shape, PLAIN, protocol.batch_size).to(device)
        check_card(teacher, learned, measure(own, learned, "32-true"), device)
    origin = card.origin and card.origin.source
    return TeacherInfo(
        name=card.name, sha256=card.sha256, accuracy=accuracy, as_fed=fed, agreement=agreement, origin=origin
    )


def _vectors(frozen: FrozenTeacher, dataset: Dataset) -> bool:
    """Whether the network has what a view cache holds, and no maps there."""
    shapes = probe("teacher", frozen.plain, dataset.spec.shape).shapes
    return all(len(shapes.get(name, ())) == 1 for name in CACHED) and len(dataset.spec.shape) == 3


def _cache_or_none(
    key: Mapping[str, Any],
    frozen: FrozenTeacher,
    dataset: Dataset,
    epochs: int,
    name: str,
    say: Callable[[str], None],
) -> ViewCache | None:
    """A view cache saves time, no more: where none can be had, or none that can be written, that is told."""
    try:
        cache = open_cache(cache_dir() / "views", key, frozen, dataset)
    except UserError as error:
        say(f"{name} goes without a view cache: {error}")
        return None
    if cache.rebuilt:
        say(f"the view cache of {name} is begun anew: {cache.rebuilt}.")
    if cache.only_read:
        say(f"the view cache of {name} is only read: it cannot be written ({cache.only_read}).")
    try:
        cache.check_room(dataset.spec.n_train * epochs)
    except UserError as error:
        cache.only_read = "no room"
        say(f"the view cache of {name} is only read: {error}")
    return cache


class Forgiving:
    """A view cache that is only read as soon as it cannot be written: the teacher can always be asked again."""

    def __init__(self, cache: ViewCache, name: str, say: Callable[[str], None]) -> None:
        self._cache, self._name, self._say = cache, name, say
        self.lookup = cache.lookup

    def store(self, index: Tensor, view: Tensor, values: dict[str, Tensor]) -> None:
        try:
            self._cache.store(index, view, values)
        except UserError as error:
            self._cache.only_read = "it could not be written"
            self._say(f"the view cache of {self._name} is only read from now on: {error}")


class ComingRound:
    """The cache of streamed images whose views come round again: the ``turn`` of an image's view says which one it is,
    see `kdbench.data.crops.VIEW`."""

    def __init__(self, cache: Forgiving, cycle: int) -> None:
        self._cache, self._cycle = cache, cycle

    def lookup(self, index: Tensor, view: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return self._cache.lookup(*self._place(index, view))

    def store(self, index: Tensor, view: Tensor, values: dict[str, Tensor]) -> None:
        self._cache.store(*self._place(index, view), values)

    def _place(self, index: Tensor, view: Tensor) -> tuple[Tensor, Tensor]:
        """As if each view were an image of its own, never moved."""
        return index * self._cycle + view[:, TURN], view.new_zeros(len(view), 3)


def open_cache(root: Path, key: Mapping[str, Any], frozen: FrozenTeacher, dataset: Dataset) -> ViewCache:
    """The view cache of `key` under `root`, with a place for every view of the training images."""
    shapes = probe("teacher", frozen.plain, dataset.spec.shape).shapes
    cycle = dataset.crops and dataset.crops.cycle
    return ViewCache.open(
        root,
        key,
        samples=dataset.spec.n_train * (cycle or 1),
        pad=dataset.pad,
        flip=dataset.flip and not cycle,
        widths={name: shapes[name][0] for name in sorted(CACHED)},
        dtype=frozen.dtype,
    )
