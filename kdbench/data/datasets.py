"""From a configuration (``conf/dataset/*.yaml``) to the tensors that a cell trains and is judged on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any
from unicodedata import normalize

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from pydantic import ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError
from torch import Tensor

from kdbench.data.arrays import Arrays, canonical_order, classes_hash, holdout, load
from kdbench.data.batch import DataSpec
from kdbench.data.kinds import targets_of
from kdbench.errors import UserError
from kdbench.sparse import Sparse

Positive = Annotated[float, Field(gt=0)]


@dataclass(frozen=True)
class Split:
    """Images (N, H, W, C), uint8, and what is to be learnt of them: labels (N,), int64, or the targets of another task.

    Those are masks (N, H, W), int64; depth (N, H, W), float32; boxes (N, M, 5), float32; pictures (N, C, H, W), uint8:
    see `kdbench.data.kinds.targets_of`.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> Split:
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, eq=False)
class Dataset:
    """What a cell trains and is judged on.

    Samples stand in canonical order (by the digest of image and label), so a sample's index, and with it its views, its
    split and its place in packed results, does not depend on how the prepared files happen to be sorted.

    Attributes:
        val: the data's own validation split, or images held out of the training split; None when there are neither.
        classes: class names, by label.
        mean, std: per channel, of pixels scaled to 0..1.
        pad, flip: the augmentation (see `kdbench.data.views`).
        content_hash: of the whole prepared data set, whatever part of it is used.
        classes_hash: of all its class names, which are no part of its content; None where they are made up.
    """

    train: Split
    val: Split | None
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pad: int
    flip: bool
    content_hash: str
    spec: DataSpec
    classes_hash: str | None = None

    def first(self, n: int) -> Dataset:
        """The same with at most `n` samples of each split."""

        def cut(split: Split) -> Split:
            return Split(split.images[:n], split.labels[:n])

        train, val, test = cut(self.train), self.val and cut(self.val), cut(self.test)
        spec = replace(self.spec, n_train=len(train), n_val=len(val) if val else 0, n_test=len(test))
        return replace(self, train=train, val=val, test=test, spec=spec)


class DatasetConfig(Sparse):
    """The fields of ``conf/dataset/*.yaml``, explained in ``conf/dataset/cifar100.yaml``."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: StrictStr
    mean: tuple[float, ...] | None = None
    std: tuple[Positive, ...] | None = None
    pad: StrictInt = Field(default=0, ge=0)
    flip: StrictBool = False
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    val: StrictInt = Field(default=0, ge=0)
    classes: StrictInt | tuple[StrictInt | StrictStr, ...] | None = None
    per_class: StrictInt | None = Field(default=None, ge=1)
    root: StrictStr | None = None

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> DatasetConfig:
        """From a mapping or an OmegaConf node.

        Raises:
            UserError: an unknown key or a bad value.
        """
        plain = OmegaConf.to_container(fields, resolve=True) if OmegaConf.is_config(fields) else dict(fields)
        try:
            return cls.model_validate(plain)
        except ValidationError as error:
            first = error.errors()[0]
            key = f"dataset.{first['loc'][0]}" if first["loc"] else "dataset"
            if first["type"] == "extra_forbidden":
                raise UserError(f"unknown key '{key}': choose from {', '.join(cls.model_fields)}.") from error
            raise UserError(f"bad value {first['input']!r} for '{key}' ({first['msg']}): mend it.") from error

    def build(self) -> Dataset:
        """Load, check and cut to size.

        The order of the cuts: `classes`, then `val` (the last of each class in canonical order), then `per_class` (the
        first of each class). Where samples are of no class, `val` takes the last of all. Data that have a validation
        split bring it along. Statistics that are not given are those of the whole prepared training split, so that
        every cut of a data set, and a teacher trained on all of it, sees equal pixels.

        Raises:
            UserError: the data are missing or corrupt, or a field does not fit them.
        """
        arrays = load(self.name, self.root, self.sha256)
        channels = arrays.train_images.shape[3]
        mean, std = self._statistics(arrays)
        if not arrays.kind.classes and (self.classes is not None or self.per_class is not None):
            key = "per_class" if self.classes is None else "classes"
            raise UserError(f"the images of {self.name} are of no class ({arrays.task}): leave dataset.{key} at null.")
        chosen = self._chosen(arrays.classes) if arrays.kind.classes else list(range(len(arrays.classes)))

        def ordered(split: str) -> NDArray[np.int64]:
            index = canonical_order(arrays.digests[split])
            if arrays.kind.classes:
                index = index[np.isin(arrays.split(split)[1][index], chosen)]
            if not len(index):
                raise UserError(
                    f"the classes chosen from {self.name} have no {split} images: choose others with dataset.classes."
                )
            return index

        train, test = ordered("train"), ordered("test")
        if "val" in arrays.splits:
            if self.val:
                raise UserError(f"{self.name} has a validation split of its own: leave dataset.val at 0.")
            val = ordered("val")
        else:
            labels = arrays.train_labels[train] if arrays.kind.classes else np.zeros(len(train), dtype=np.int64)
            held = holdout(labels, self.val)
            train, val = train[~held], train[held]
        if self.per_class is not None:
            train = train[_rank_in_class(arrays.train_labels[train]) < self.per_class]

        relabel = np.full(len(arrays.classes), -1, dtype=np.int64)
        relabel[chosen] = np.arange(len(chosen))

        def cut(split: str, index: NDArray[np.int64]) -> Split:
            images, labels = arrays.split(split)
            targets = (
                relabel[labels[index]] if arrays.kind.classes else targets_of(arrays.task, labels[index], arrays.ignore)
            )
            return Split(torch.from_numpy(images[index]), torch.from_numpy(targets))

        height, width = arrays.train_images.shape[1:3]
        if self.pad > (side := min(height, width)):
            raise UserError(
                f"dataset.pad={self.pad} moves images of {height}x{width} out of sight: choose at most {side}."
            )
        sizes = len(train), len(test), len(val)
        return Dataset(
            train=cut("train", train),
            val=cut("val" if "val" in arrays.splits else "train", val) if len(val) else None,
            test=cut("test", test),
            classes=tuple(arrays.classes[k] for k in chosen),
            mean=mean,
            std=std,
            pad=self.pad,
            flip=self.flip,
            content_hash=arrays.content_hash,
            spec=DataSpec(
                self.name,
                (channels, height, width),
                len(chosen) if arrays.kind.classes else arrays.outputs,
                *sizes,
                task=arrays.task,
                settings={"frames": arrays.frames} if arrays.task == "video" else {},
            ),
            classes_hash=classes_hash(arrays.classes),
        )

    def _statistics(self, arrays: Arrays) -> tuple[tuple[float, ...], tuple[float, ...]]:
        channels = arrays.train_images.shape[3]
        mean, std = self.mean, self.std
        if mean is None or std is None:
            computed = channel_statistics(arrays.train_images)
            mean = computed[0] if mean is None else mean
            std = computed[1] if std is None else std
        for key, values in (("mean", mean), ("std", std)):
            if len(values) != channels:
                raise UserError(
                    f"dataset.{key} has {len(values)} values for the {channels} channels of {self.name}: mend it."
                )
        if min(std) == 0:
            raise UserError(f"a channel of {self.name} is constant, so its std is 0: give dataset.std yourself.")
        return mean, std

    def _chosen(self, names: tuple[str, ...]) -> list[int]:
        """The old index of each new label."""
        if self.classes is None:
            return list(range(len(names)))
        if isinstance(self.classes, int):
            chosen = list(range(min(self.classes, len(names) + 1)))  # one too many is as wrong as a billion
        else:
            wanted = [normalize("NFC", c) if isinstance(c, str) else c for c in self.classes]
            unknown = [c for c in wanted if isinstance(c, str) and c not in names]
            if unknown:
                raise UserError(
                    f"{self.name} has no class '{unknown[0]}' (it has {', '.join(names)}): mend dataset.classes."
                )
            chosen = [names.index(c) if isinstance(c, str) else c for c in wanted]
        if len(chosen) < 2 or len(set(chosen)) != len(chosen) or not set(chosen) <= set(range(len(names))):
            raise UserError(
                f"dataset.classes={self.classes} does not choose two or more different classes out of the {len(names)} "
                f"of {self.name}: mend it."
            )
        return chosen


def channel_statistics(images: NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and population standard deviation of the pixels of (N, H, W, C) per channel, on the scale 0..1."""
    channels = images.shape[3]
    counts = np.zeros((channels, 256), dtype=np.int64)
    for start in range(0, len(images), 1000):
        for c in range(channels):
            counts[c] += np.bincount(images[start : start + 1000, ..., c].reshape(-1), minlength=256)
    levels = np.arange(256) / 255
    share = counts / counts.sum(axis=1, keepdims=True)
    mean = share @ levels
    std = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(axis=1))
    return tuple(mean.tolist()), tuple(std.tolist())


def _rank_in_class(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each sample, how many earlier ones share its label."""
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = np.arange(len(members))
    return rank
