"""The plan of a training: experiences x stages, each with its epochs. All of it is data, known before training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kdbench.errors import UserError


@dataclass(frozen=True)
class Stage:
    """A part of training; schedule and optimisers start anew.

    Attributes:
        share: its fraction of the epochs of an experience. A stage of share 0 is nothing but its `begin`.
        begin: what happens when it starts, in eval mode, with gradients. Behind a stage that trains, a stage of share 0
            comes *before* the evaluation of that stage's last epoch: what is computed there, is judged there.
    """

    name: str
    share: float = 1.0
    begin: Callable[[], None] | None = None


@dataclass(frozen=True)
class Experience:
    """A part of the data that arrives at one time: classes 0..old-1 came before, it is of classes old..seen-1.

    Where data come whole there is one, with `old` 0 and `seen` the number of classes. So it is of each where the same
    classes come again in another domain.
    """

    number: int
    old: int
    seen: int

    @property
    def known(self) -> int:
        """Of how many classes whoever learned the experiences before knows something."""
        return self.old or (self.seen if self.number else 0)


@dataclass(frozen=True)
class Entry:
    """A stage of an experience, for the epochs `start` to ``start + length - 1``.

    Attributes:
        closes: it is begun behind the last batch of epoch ``start - 1``, before that epoch is evaluated.
    """

    experience: Experience
    stage: Stage
    start: int
    length: int
    closes: bool = False


def experiences_of(seen: Sequence[int]) -> tuple[Experience, ...]:
    """From the number of classes that are known in each."""
    return tuple(
        Experience(k, old if new > old else 0, new) for k, (old, new) in enumerate(zip((0, *seen), seen, strict=False))
    )


def ends_of(epochs: int, experiences: int) -> tuple[int, ...]:
    """The epoch behind each experience: equal shares, rounded."""
    return tuple(round(epochs * (k + 1) / experiences) for k in range(experiences))


def plan_of(stages: Sequence[tuple[Experience, Sequence[Stage]]], epochs: int) -> tuple[Entry, ...]:
    """Divide the epochs equally among experiences, and each part among its stages by their shares.

    Raises:
        UserError: too few epochs, or a share below 0.
    """
    entries: list[Entry] = []
    start = 0
    for (experience, parts), end in zip(stages, ends_of(epochs, len(stages)), strict=True):
        trained, least = False, sum(stage.share > 0 for stage in parts)
        if end - start < least and len(stages) > 1:
            raise UserError(
                f"{len(stages)} experiences share {epochs} epochs, and experience {experience.number}, of {least} "
                f"stage{'s' * (least > 1)}, has {end - start} of them: raise protocol.epochs."
            )
        for stage, (first, length) in zip(parts, allocate([stage.share for stage in parts], end - start), strict=True):
            entries.append(Entry(experience, stage, start + first, length, closes=trained and not length))
            trained = trained or length > 0
        start = end
    return tuple(entries)


def allocate(shares: Sequence[float], epochs: int) -> list[tuple[int, int]]:
    """(first epoch, number of epochs) of each stage.

    Every stage gets at least one epoch, the last the rest; those of share 0 get none.

    Raises:
        UserError: too few epochs, or a share below 0.
    """
    if any(share < 0 for share in shares):
        raise UserError(f"stages of the shares {', '.join(map(str, shares))}: give shares from 0 on.")
    left = sum(share > 0 for share in shares)
    if epochs < left:
        raise UserError(f"a method of {left} stages needs at least as many epochs, not {epochs}: raise epochs.")
    spans, start = [], 0
    for share in shares:
        left -= share > 0
        if not share:
            length = 0
        else:
            length = epochs - start if left == 0 else min(max(1, round(share * epochs)), epochs - start - left)
        spans.append((start, length))
        start += length
    return spans


__all__ = ["Entry", "Experience", "Stage", "allocate", "ends_of", "experiences_of", "plan_of"]
