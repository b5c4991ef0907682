"""A trained teacher as a cohort shares it: measured as it is fed, frozen, on a route, with the cache of its words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdbench.compute.device import device_name
from kdbench.compute.route import Route, instruction_set
from kdbench.data.datasets import Dataset
from kdbench.data.module import ArrayData
from kdbench.errors import UserError
from kdbench.paths import cache_dir
from kdbench.protocol import Protocol
from kdbench.results.record import Agreement, TeacherInfo
from kdbench.taps import probe
from kdbench.teaching.adapter import Adapter
from kdbench.teaching.frozen import CACHED, FrozenTeacher
from kdbench.teaching.teachers import Teacher
from kdbench.teaching.view_cache import ViewCache

COMPARED = 1000
"""The first test images, on which a record says how far a fast teacher agrees with its float32 self."""
ROUNDING = {"here": 1e-5, "elsewhere": 1e-3, "low precision": 3e-2}
"""By how much of its largest logit rounding may move a logit of an image: in float32 on the same device and version of
torch (another order of sums), on another or on a GPU (TF32), and where the card was measured in 16 bits."""


@dataclass
class Taught:
    """A teacher, and how the cells of one data set and protocol share it."""

    info: TeacherInfo
    frozen: FrozenTeacher
    route: Route
    cache: ViewCache | None
    known: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Measured:
    """What a teacher says of n test images, as the float32 network and as it is fed to students, one value each.

    Attributes:
        right: the float32 network is right, bool (n,).
        fed_right: it is right as it is fed.
        turned: the two give different classes.
        apart: the largest difference of any logit.
        margin: of the float32 network's two largest logits, in units of its largest absolute one.
    """

    right: Tensor
    fed_right: Tensor
    turned: Tensor
    apart: Tensor
    margin: Tensor

    @property
    def n(self) -> int:
        return len(self.right)

    def near(self, rounding: float) -> int:
        """How many images rounding of that relative size may give another class: both logits can move."""
        return int((self.margin <= 2 * rounding).sum())

    def agreement(self) -> Agreement:
        """On the first test images."""
        apart, turned = self.apart[:COMPARED], self.turned[:COMPARED]
        same = len(turned) - int(turned.sum())
        return Agreement(max_abs_logit=float(apart.max()), top1_percent=100.0 * same / len(turned), images=len(turned))


def tolerance(turned: int) -> float:
    """By how many right answers two measures may differ if rounding gives `turned` images another class.

    Rounding takes no side: each of these images is one right answer more, one less, or none, so that the difference has
    a standard deviation of at most √turned. Four of them; and never more than all.
    """
    return min(turned, 4 * math.sqrt(turned))


@torch.no_grad()
def measure(frozen: FrozenTeacher, dataset: Dataset, precision: str, known: tuple[int, ...] | None = None) -> Measured:
    """Of the whole test set, by the very calls and under the autocast of the cells.

    Args:
        known: which classes its logits are, if it knows but some: then on the images of these alone.
    """
    device = next(frozen.parameters()).device
    mixed = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    parts: list[tuple[Tensor, ...]] = []
    for batch in ArrayData(dataset, batch_size=1, seed=0, eval_batch_size=100).test_dataloader():
        x, y = batch.x.to(device), batch.y.to(device)
        if known is not None:
            place = torch.full((dataset.spec.num_classes,), -1, device=device)
            place[list(known)] = torch.arange(len(known), device=device)
            x, y = x[place[y] >= 0], place[y][place[y] >= 0]
            if not len(y):
                continue
        with torch.autocast(device.type, enabled=False):
            want = frozen.plain(x)
        with torch.autocast(device.type, dtype=mixed, enabled=mixed is not None):
            got = frozen.tap(x, ())["logits"].float()
        first, second = want.topk(2).values.unbind(1)
        classes, fed = want.argmax(1), got.argmax(1)
        scale = want.abs().amax(1).clamp(min=torch.finfo(want.dtype).tiny)
        parts.append((classes == y, fed == y, classes != fed, (got - want).abs().amax(1), (first - second) / scale))
    return Measured(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))


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
    card, dataset = teacher.card, dataset.for_teacher
    shape = dataset.spec.shape
    adapter = Adapter.between(card.name, learned, dataset, partial=partial)
    net = teacher.load(learned)
    # no batch is larger than the data, whatever the protocol says
    frozen = FrozenTeacher(adapter.wrap(net), shape, route, min(protocol.batch_size, dataset.spec.n_train)).to(device)
    measured = measure(frozen, dataset, protocol.precision, adapter.known)
    if _same_test(learned, dataset):
        accuracy, own = card.accuracy, measured
    else:
        accuracy = _percent(measured.right)
        own = measure(FrozenTeacher(net, shape, _PLAIN, protocol.batch_size).to(device), learned, "32-true")
    check_card(teacher, learned, own, device)
    check_as_fed(card.name, measured, dataset)
    cache = None
    if route.cached:
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
        if isinstance(classes := identity.get("classes"), list) and any(isinstance(name, str) for name in classes):
            key["classes"] = dataset.classes_hash  # which images these names choose
        if adapter != Adapter(known=adapter.known):
            key["adapter"] = {name: value for name, value in asdict(adapter).items() if name != "known"}
        cache = _cache_or_none(key, frozen, dataset, protocol.epochs, card.name, say)
        if cache is None:
            frozen.failed = frozen.failed or "its views are not cached"
        else:
            frozen.cache = Forgiving(cache, card.name, say)
    info = TeacherInfo(
        name=card.name,
        sha256=card.sha256,
        accuracy=accuracy,
        as_fed=_percent(measured.fed_right),
        agreement=measured.agreement() if route.fast else None,
    )
    return Taught(info, frozen, route, cache, adapter.known)


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


_PLAIN = Route(fast=False, compiled=False, teacher_dtype=torch.float32, cached=False)


def check_card(teacher: Teacher, data: Dataset, measured: Measured, device: torch.device) -> None:
    """Raises `UserError` if the network does not have the accuracy of its card on the test images of its own data.

    The numbers of right answers may differ by `tolerance` of those images that rounding can turn: without a fast route,
    on the device of the card, that is none but exact ties.
    """
    card = teacher.card
    if card.recipe["protocol"].get("precision", "32-true") != "32-true":
        rounding = ROUNDING["low precision"]
    else:
        same = (card.device, card.torch, "cpu") == (device_name(device), torch.__version__, device.type)
        rounding = ROUNDING["here" if same else "elsewhere"]
    n, right = measured.n, int(measured.right.sum())
    if abs(right - card.accuracy * n / 100) > tolerance(measured.near(rounding)) + 1e-6 * n:
        raise UserError(
            f"the teacher {card.name} gets {100 * right / n:.2f} % of the {n} test images of {data.spec.name} right, "
            f"but its card says {card.accuracy:.2f} %: card or weights were edited, or belong to other data, pixels or "
            f"class names; delete {teacher.weights} and its .json to train it again."
        )


def check_as_fed(name: str, measured: Measured, data: Dataset) -> None:
    """Raises `UserError` if what students are fed is worse than the float32 network beyond rounding."""
    right, fed = int(measured.right.sum()), int(measured.fed_right.sum())
    if abs(right - fed) > tolerance(int(measured.turned.sum())):
        raise UserError(
            f"the teacher {name} gets {100 * fed / measured.n:.2f} % of the {measured.n} test images of "
            f"{data.spec.name} right as it would be fed to students, and {100 * right / measured.n:.2f} % in float32: "
            "low precision spoils it; set engine.route=plain and protocol.precision=32-true."
        )


def _same_test(a: Dataset, b: Dataset) -> bool:
    """Whether both have the same test images: no setting but the classes chooses among them."""
    return a.content_hash == b.content_hash and sorted(a.classes) == sorted(b.classes)


def _percent(right: Tensor) -> float:
    return 100 * right.double().mean().item()


def open_cache(root: Path, key: Mapping[str, Any], frozen: FrozenTeacher, dataset: Dataset) -> ViewCache:
    """The view cache of `key` under `root`, with a place for every view of the training images."""
    shapes = probe("teacher", frozen.plain, dataset.spec.shape).shapes
    return ViewCache.open(
        root,
        key,
        samples=dataset.spec.n_train,
        pad=dataset.pad,
        flip=dataset.flip,
        widths={name: shapes[name][0] for name in sorted(CACHED)},
        dtype=frozen.dtype,
    )
