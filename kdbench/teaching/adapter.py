"""A teacher that learned from other pixels or classes than its student, put right at its two ends, or refused."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdbench.data.datasets import Dataset
from kdbench.errors import UserError
from kdbench.teaching.teachers import same_numbers
from kdbench.text import some


@dataclass(frozen=True)
class Adapter:
    """What stands between a student's data and a teacher; nothing at all where both learn from the same.

    Attributes:
        scale, shift: per channel; the teacher sees ``x * scale + shift``. None where pixels are normalised alike.
        classes: for each class of the student the teacher's logit. None where they are the same in the same order, or
            where the teacher knows but a part of them.
        known: for each of the teacher's logits the student's class, where it knows but a part of them; else None.
    """

    scale: tuple[float, ...] | None = None
    shift: tuple[float, ...] | None = None
    classes: tuple[int, ...] | None = None
    known: tuple[int, ...] | None = None

    @classmethod
    def between(cls, name: str, teacher: Dataset, student: Dataset, *, partial: bool = False) -> Adapter:
        """For the teacher `name` that learns from one data set and teaches on another.

        With x_s = (p - m_s) / d_s of a pixel p, what the teacher learns from is x_t = (p - m_t) / d_t
        = x_s · d_s / d_t + (m_s - m_t) / d_t. Classes are the same where their names are.

        Args:
            student: whose `Dataset.for_teacher` is what the teacher is shown.
            partial: it may know but some of the classes, as one of several teachers.

        Raises:
            UserError: it cannot know what it is shown: another modality than it learned from, images of another shape,
                or classes that it never saw.
        """
        shown = student.for_teacher
        paired = teacher.paired or (student.paired and _alike(teacher, student))
        if paired and not _alike(teacher, shown):
            raise UserError(
                f"the teacher {name} learns from what students see of {teacher.spec.name}, and would be shown what "
                f"teachers see ({shown.spec.name}): give it a world of its own, as teacher.dataset.scenario=null does "
                f"(for a pair of two data sets, teacher.dataset={{name: {shown.spec.name}, scenario: null}}; of what "
                "is drawn, as dataset=clean_labels, teacher.dataset.sees=privileged)."
            )
        student = shown
        theirs, ours = teacher.spec, student.spec
        if theirs.shape != ours.shape:
            raise UserError(
                f"the teacher {name} learns from images of {_size(theirs.shape)} ({theirs.name}) and would be shown "
                f"{_size(ours.shape)} ({ours.name}): prepare both data sets at one size, or drop teacher.dataset.name."
            )
        unknown = [known for known in student.classes if known not in teacher.classes]
        known = None
        if unknown and partial:
            foreign = [name for name in teacher.classes if name not in student.classes]
            if foreign:
                raise UserError(
                    f"the teacher {name} knows {_some(foreign)}, which the student does not learn, but not "
                    f"{_some(unknown)}: choose its classes among the student's with teachers=[{{dataset: {{classes: "
                    "[...]}}]."
                )
            known = tuple(student.classes.index(name) for name in teacher.classes)
        elif unknown:
            raise UserError(
                f"the teacher {name} does not learn the class{'es' if len(unknown) > 1 else ''} {_some(unknown)} of "
                f"the student, only {_some(teacher.classes)}: have teacher.dataset.classes hold all of the student's, "
                "as null does."
            )
        scale = shift = classes = None
        if not _alike(teacher, student):
            scale = tuple(s / t for s, t in zip(student.std, teacher.std, strict=True))
            shift = tuple((s - t) / d for s, t, d in zip(student.mean, teacher.mean, teacher.std, strict=True))
        if teacher.classes != student.classes and known is None:
            classes = tuple(teacher.classes.index(known) for known in student.classes)
        return cls(scale, shift, classes, known)

    def wrap(self, net: nn.Module) -> nn.Module:
        """The network as the student's data need it; itself where they agree."""
        return net if self == Adapter(known=self.known) else Adapted(net, self)


class Rescale(nn.Module):
    """``x * scale + shift`` per channel, computed in float32 whatever the dtype of x."""

    scale: Tensor
    shift: Tensor

    def __init__(self, scale: Sequence[float], shift: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale)[:, None, None])
        self.register_buffer("shift", torch.tensor(shift)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return (x.float() * self.scale + self.shift).to(x.dtype)


class Adapted(nn.Module):
    """A network behind an `Adapter`: its feature taps are its own, its logits the student's classes."""

    classes: Tensor | None

    def __init__(self, net: nn.Module, adapter: Adapter) -> None:
        super().__init__()
        self.net = net
        self.pixels: nn.Module = nn.Identity()
        if adapter.scale is not None and adapter.shift is not None:
            self.pixels = Rescale(adapter.scale, adapter.shift)
        self.register_buffer("classes", None if adapter.classes is None else torch.tensor(adapter.classes))

    def forward(self, x: Tensor) -> Tensor:
        return self._read(self.net(self.pixels(x)))

    def tap(self, x: Tensor, names: Collection[str] | None = None) -> dict[str, Tensor]:
        taps: dict[str, Tensor] = self.net.tap(self.pixels(x), names)  # type: ignore[operator]
        return {**taps, "logits": self._read(taps["logits"])}

    def _read(self, logits: Tensor) -> Tensor:
        return logits if self.classes is None else logits.index_select(1, self.classes)


def _alike(a: Dataset, b: Dataset) -> bool:
    """Whether pixels are normalised alike, and so of one modality."""
    return same_numbers(a.mean, b.mean) and same_numbers(a.std, b.std)


def _size(shape: tuple[int, ...]) -> str:
    if len(shape) != 3:
        return f"{shape[0]} numbers"
    channels, height, width = shape
    return f"{height}x{width} in {channels} channel{'s' if channels > 1 else ''}"


def _some(names: Sequence[str]) -> str:
    return some([f"'{name}'" for name in names], 5)
