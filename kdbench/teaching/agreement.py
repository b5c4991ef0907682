"""Whether a teacher is what its card says, and whether students are fed what it says."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdbench.compute.device import device_name, tf32
from kdbench.compute.route import Route
from kdbench.data.datasets import Dataset
from kdbench.data.module import ArrayData, eval_batch
from kdbench.errors import UserError
from kdbench.measures import TOP1
from kdbench.results.record import Agreement
from kdbench.tasks import task_for
from kdbench.teaching.frozen import FrozenTeacher
from kdbench.teaching.teachers import Teacher

COMPARED = 1000
"""The first test images, on which a record says how far a fast teacher agrees with its float32 self."""


ROUNDING = {"here": 1e-5, "elsewhere": 1e-3, "low precision": 3e-2}
"""By how much of its largest logit rounding may move a logit of an image: in float32 on the same device and version of
torch (another order of sums), on another or on a GPU, and where the card was measured in TF32 or 16 bits."""


PLAIN = Route(fast=False, compiled=False, teacher_dtype=torch.float32, cached=False)


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
    """What it says of the whole test set, by the very calls and under the autocast of the cells.

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
        with tf32(False), torch.autocast(device.type, enabled=False):
            want = frozen.plain(x)
        with tf32(precision == "tf32"), torch.autocast(device.type, dtype=mixed, enabled=mixed is not None):
            got = frozen.tap(x, ())["logits"].float()
        first, second = want.topk(2).values.unbind(1)
        classes, fed = want.argmax(1), got.argmax(1)
        scale = want.abs().amax(1).clamp(min=torch.finfo(want.dtype).tiny)
        parts.append((classes == y, fed == y, classes != fed, (got - want).abs().amax(1), (first - second) / scale))
    return Measured(*(torch.cat(column).cpu() for column in zip(*parts, strict=True)))


def check_card(teacher: Teacher, data: Dataset, measured: Measured, device: torch.device) -> None:
    """Raises `UserError` if the network does not have the accuracy of its card on the test images of its own data.

    The numbers of right answers may differ by `tolerance` of those images that rounding can turn: without a fast route,
    on the device of the card, that is none but exact ties.
    """
    card = teacher.card
    if card.recipe.get("protocol", {}).get("precision", "32-true") != "32-true":
        rounding = ROUNDING["low precision"]
    else:
        same = (card.device, card.torch, "cpu") == (device_name(device), torch.__version__, device.type)
        rounding = ROUNDING["here" if same else "elsewhere"]
    n, right = measured.n, int(measured.right.sum())
    if abs(right - card.accuracy * n / 100) > tolerance(measured.near(rounding)) + 1e-6 * n:
        raise UserError(
            f"the teacher {card.name} gets {100 * right / n:.2f} % of the {n} test images of {data.spec.name} right, "
            f"but its card says {card.accuracy:.2f} %: card or weights were edited, or belong to other data, pixels or "
            f"class names; delete {teacher.weights} and its .json to {card.again}."
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


def same_test(a: Dataset, b: Dataset) -> bool:
    """Whether both have the same test images: no setting but the classes and the scenario chooses among them, and none
    but the crops changes them."""
    alike = a.content_hash == b.content_hash and sorted(a.classes) == sorted(b.classes)
    shown = [data.crops and data.crops.of_test for data in (a, b)]
    return alike and len(a.test) == len(b.test) and shown[0] == shown[1]


def percent(right: Tensor) -> float:
    return 100 * right.double().mean().item()


class Fed(nn.Module):
    """A frozen teacher as students are fed what it says, for a meter."""

    def __init__(self, frozen: FrozenTeacher) -> None:
        super().__init__()
        self.tap = frozen.tap

    def forward(self, x: Tensor) -> Tensor:
        return self.tap(x, ())["logits"].float()


@torch.no_grad()
@tf32(False)
def judged(net: nn.Module, dataset: Dataset, device: torch.device) -> float:
    """What the meter of the data's task says of a network: its primary measure on the test set.

    Where that sums up a course of training, which a teacher has behind it, its measure of the present: ``top1``.
    """
    spec = dataset.spec
    task = task_for(spec)
    meter = task.meter(spec).to(device)
    meter.experience = max(len(spec.experiences) - 1, 0)
    meter.begin()
    rows = eval_batch(dataset)
    data = ArrayData(dataset, batch_size=1, seed=0, epochs=len(spec.experiences) or 1, eval_batch_size=rows)
    for batch in data.test_dataloader():
        meter.update(net, batch.to(device))
    values = meter.compute()
    return float(values[TOP1.name if task.cumulative else task.primary.name])


def measured_by_bits(dataset: Dataset) -> bool:
    """Whether the data's measure is the mean of right and wrong answers, of which it is known what rounding can do."""
    return task_for(dataset.spec).primary == TOP1


def check_value(teacher: Teacher, value: float) -> None:
    """Raises `UserError` if a measure other than top-1 is not what the card says, beyond rounding."""
    card = teacher.card
    if abs(value - card.accuracy) > _slack(card.accuracy):
        raise UserError(
            f"the teacher {card.name} reaches {card.measure.sentence(value)}, but its card says "
            f"{card.measure.text(card.accuracy)}: card or weights were edited, or belong to other data; delete "
            f"{teacher.weights} and its .json to {card.again}."
        )


def check_value_as_fed(name: str, value: float, fed: float) -> None:
    """Raises `UserError` if students are fed something else than the float32 network says, beyond rounding."""
    if abs(value - fed) > _slack(value):
        raise UserError(
            f"the teacher {name} reaches {fed:.4g} as it would be fed to students, and {value:.4g} in float32: low "
            "precision spoils it; set engine.route=plain and protocol.precision=32-true."
        )


def _slack(value: float) -> float:
    """By how much rounding may move a measure that is no mean of bits: maps, returns, attacks."""
    return ROUNDING["low precision"] * max(abs(value), 1e-3)
