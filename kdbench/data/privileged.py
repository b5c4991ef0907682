"""Vectors of which teachers see what students do not: the synthetic experiments of generalised distillation (Lopez-Paz
et al., ICLR 2016, arXiv:1511.03643, section 5; lopezpaz/distillation_privileged_information, code/synthetic.py)."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from kdbench.data.batch import PAIRED, DataSpec
from kdbench.data.datasets import Dataset, Split, Stream, channel_statistics, drawn_by
from kdbench.errors import UserError, nearest
from kdbench.settings import Count, DrawSeed

Vectors = NDArray[np.float64]
Drawn = tuple[Vectors, Vectors, NDArray[np.bool_]]
"""What students see, (n, d); what teachers see, (n, p); the class."""

RELEVANT = 3
"""How many features matter where most do not."""
LEVELS = 25.5
"""Grey levels to a standard deviation: 255 of them hold five either way."""


def clean_labels(alpha: Vectors, n: int, draw: np.random.RandomState) -> Drawn:
    """1. x* = <α, x>, of which y is a noisy sign: teachers see how far from the boundary a sample lies."""
    x, noise = draw.randn(n, alpha.size), draw.randn(n)
    distance = x @ alpha
    return x, distance[:, None], distance + noise > 0


def clean_features(alpha: Vectors, n: int, draw: np.random.RandomState) -> Drawn:
    """2. x = x* + ε: students see under noise what teachers see."""
    clean, noise = draw.randn(n, alpha.size), draw.randn(n, alpha.size)
    return clean + noise, clean, clean @ alpha > 0


def relevant_features(alpha: Vectors, n: int, draw: np.random.RandomState) -> Drawn:
    """3. x* are the three of the features that the class depends on, the same for all samples."""
    x = draw.randn(n, alpha.size)
    relevant = x[:, :RELEVANT]
    return x, relevant, relevant @ alpha[:RELEVANT] > 0


def relevant_per_set(alpha: Vectors, n: int, draw: np.random.RandomState) -> Drawn:
    """4. as the code has it: which features matter is drawn once for the training and once for the test samples."""
    x = draw.randn(n, alpha.size)
    return _relevant(x, np.tile(draw.permutation(alpha.size)[:RELEVANT], (n, 1)), alpha)


def relevant_per_sample(alpha: Vectors, n: int, draw: np.random.RandomState) -> Drawn:
    """4. as the text has it: which features matter is drawn for each sample."""
    x = draw.randn(n, alpha.size)
    return _relevant(x, np.stack([draw.permutation(alpha.size)[:RELEVANT] for _ in range(n)]), alpha)


def relevant_largest(alpha: Vectors, n: int, draw: np.random.RandomState) -> Drawn:
    """4. as a line of the code has it that is commented out: what matters are the three largest features of a sample.

    Only so is anything left for students to learn, and as much as was published.
    """
    x = draw.randn(n, alpha.size)
    return _relevant(x, np.argsort(-x, axis=1)[:, :RELEVANT], alpha)


def _relevant(x: Vectors, where: NDArray[np.int64], alpha: Vectors) -> Drawn:
    """The boundary lies at the median, so that classes are of one size."""
    relevant = np.take_along_axis(x, where, axis=1)
    height = relevant @ alpha[:RELEVANT]
    return x, relevant, height > np.median(height)


EXPERIMENTS: dict[str, Callable[[Vectors, int, np.random.RandomState], Drawn]] = {
    each.__name__: each
    for each in (
        clean_labels,
        clean_features,
        relevant_features,
        relevant_per_set,
        relevant_per_sample,
        relevant_largest,
    )
}


@dataclass(frozen=True)
class Privileged:
    """One of `EXPERIMENTS`: two classes, told apart by a hyperplane α ~ N(0, I) that is drawn with the samples.

    A vector is an image of one pixel with a channel for each feature, so that what normalises channels standardises
    features, by the training samples. As pixels are, features are rounded: to 1/25.5 of a standard deviation, and cut
    at five.

    Args:
        name: of the experiment.
        sees: what is learnt from: ``regular``, beside which teachers see the privileged; or ``privileged`` itself.
        n_train, n_test: how many samples.
        features: of a regular vector.
        seed: of all that is drawn; ``run``: each run draws its own.

    Raises:
        UserError: there is no such experiment.
    """

    name: str
    sees: Literal["regular", "privileged"] = "regular"
    n_train: Annotated[int, Field(ge=2)] = 200
    n_test: Count = 1000
    features: Annotated[int, Field(ge=RELEVANT)] = 50
    seed: DrawSeed = 0

    def __post_init__(self) -> None:
        if self.name not in EXPERIMENTS:
            raise UserError(f"there is no experiment '{self.name}': {nearest(self.name, list(EXPERIMENTS))}")

    def identity(self) -> dict[str, Any]:
        """See `kdbench.data.sources.Source`."""
        return {"_target_": f"{type(self).__module__}.{type(self).__qualname__}", **asdict(self)}

    def build(self) -> Dataset:
        """
        Raises:
            UserError: `seed` is that of a run, and this is none.
        """
        draw = np.random.RandomState(drawn_by(self.seed, "dataset.seed"))
        alpha = draw.randn(self.features)
        sets = {"train": self.n_train, "test": self.n_test}
        drawn = {split: EXPERIMENTS[self.name](alpha, n, draw) for split, n in sets.items()}
        regular = self._posed({split: (x, y) for split, (x, _, y) in drawn.items()})
        privileged = self._posed({split: (x, y) for split, (_, x, y) in drawn.items()})
        if self.sees == "privileged":
            return privileged
        shown = Stream(Split(privileged.train.images, privileged.train.labels, privileged.mean, privileged.std), True)
        return regular.posed(beside={PAIRED: shown}, paired=privileged)

    def _posed(self, drawn: dict[str, tuple[Vectors, NDArray[np.bool_]]]) -> Dataset:
        vectors = drawn["train"][0]
        middle, spread = vectors.mean(0), vectors.std(0)

        def split(vectors: Vectors, labels: NDArray[np.bool_]) -> Split:
            levels = np.rint(127.5 + LEVELS * (vectors - middle) / spread).clip(0, 255).astype(np.uint8)
            return Split(torch.from_numpy(levels[:, None, None]), torch.from_numpy(labels.astype(np.int64)))

        splits = {name: split(*each) for name, each in drawn.items()}
        mean, std = channel_statistics(splits["train"].images.numpy())  # type: ignore[union-attr]  # no files
        # of what is drawn, not of one draw: runs that draw their own are comparable
        settings = {key: value for key, value in asdict(self).items() if key not in ("seed", "sees")}
        return Dataset(
            train=splits["train"],
            val=None,
            test=splits["test"],
            classes=("below", "above"),
            mean=mean,
            std=std,
            pad=0,
            flip=False,
            content_hash=hashlib.sha256(repr(sorted(settings.items())).encode()).hexdigest(),
            spec=DataSpec(self.name, (vectors.shape[1], 1, 1), 2, self.n_train, self.n_test),
        ).posed()
