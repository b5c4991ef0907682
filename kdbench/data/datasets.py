"""From a configuration (``conf/dataset/*.yaml``) to the tensors that a cell trains and is judged on."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal, Protocol
from unicodedata import normalize

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import OmegaConf
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError, field_validator
from torch import Tensor

from kdbench.data.arrays import Arrays, canonical_order, classes_hash, holdout
from kdbench.data.batch import AGAIN, DataSpec
from kdbench.data.crops import Crops
from kdbench.data.kinds import targets_of
from kdbench.data.manifest import ImageFiles, Manifest, find
from kdbench.data.mix import Mix
from kdbench.data.pixels import fitted
from kdbench.data.randaugment import RandAugment
from kdbench.data.workers import Workers
from kdbench.errors import UserError
from kdbench.settings import DrawSeed, Positive
from kdbench.sparse import Sparse
from kdbench.targets import first_line, settings_of

Share = Annotated[float, Field(ge=0, lt=1)]


def drawn_by(seed: int | str, where: str) -> int:
    """The seed of what data draw.

    Raises:
        UserError: it is the one of a run, and this is none.
    """
    if isinstance(seed, str):
        raise UserError(f"{where}={seed} has each run draw its own data, and here is no run: give a number.")
    return seed


class Subset(Sparse):
    """Training samples as a publication counts them off: by their places in the prepared file.

    Attributes:
        n: how many.
        order: the ``first`` or the ``last`` of the file, or ``drawn``: the first of NumPy's
            ``RandomState(seed).permutation``, which is also what ``shuffle`` makes of the places.
        seed: ``run`` for the seed of the run, so that each run draws its own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    n: StrictInt = Field(ge=1)
    order: Literal["first", "last", "drawn"] = "first"
    seed: DrawSeed = 0

    def places(self, there: int) -> NDArray[np.int64]:
        """Which of `there` samples, (n,)."""
        if self.order == "drawn":
            return np.random.RandomState(drawn_by(self.seed, "dataset.subset.seed")).permutation(there)[: self.n]
        return np.arange(there)[: self.n] if self.order == "first" else np.arange(there)[-self.n :]


class Affine(Sparse):
    """How far training images are turned, moved and zoomed: uniformly up to so much either way, anew with each view.

    Attributes:
        rotate: degrees.
        shift: of the height, and of the width.
        zoom: of the factor 1, for the height and for the width by itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    shift: Share = 0.0
    zoom: Share = 0.0


PARTS: dict[str, type[BaseModel]] = {
    "subset": Subset,
    "affine": Affine,
    "views": Crops,
    "randaugment": RandAugment,
    "mix": Mix,
}
"""Settings of a data set that have settings of their own."""


@dataclass(frozen=True, eq=False)
class Split:
    """Samples and what is known of them.

    Attributes:
        images: uint8, (N, H, W, C); or the files that they are read from, batch by batch.
        labels: int64, (N,), -1 where they are not known; or the targets of another task: masks, int64, (N, H, W);
            depth, float32, (N, H, W); boxes, float32, (N, M, 5); pictures, uint8, (N, C, H, W). See
            `kdbench.data.kinds.targets_of`.
        mean, std: per channel, on the scale 0..1, where they are not the data set's: of another domain or modality.
    """

    images: Tensor | ImageFiles
    labels: Tensor
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> Split:
        """Some of the samples."""
        return replace(self, images=self.images[index], labels=self.labels[index])

    def to(self, device: torch.device) -> Split:
        images = self.images if isinstance(self.images, ImageFiles) else self.images.to(device)
        return replace(self, images=images, labels=self.labels.to(device))

    @property
    def pixels(self) -> Tensor:
        """All images, uint8, (N, H, W, C), for what needs them at once.

        Raises:
            UserError: they are streamed.
        """
        if isinstance(self.images, ImageFiles):
            raise UserError(
                f"the images of {self.images.folder} are streamed, and all of them are needed at once here: prepare "
                "them once more, without --stream and under another --name."
            )
        return self.images


@dataclass(frozen=True, eq=False)
class Stream:
    """Samples beside those of a batch; see `kdbench.data.views.Views`.

    Attributes:
        follow: the samples of the training split again, in the same views, from a split of as many: another modality.
            Else the stream has an order of its own.
        per_batch: how many images of a stream with an order of its own stand beside each batch.
        draw: its random numbers. The labelled batch has draw 0 and ``again`` draw 1; a stream with an order of its own
            has draw 2 or higher, and its ``again`` the next.
    """

    split: Split
    follow: bool = False
    per_batch: int = 0
    draw: int = 2


@dataclass(frozen=True, eq=False)
class Origin:
    """Where the samples of a data set come from, for scenarios that take more from there.

    Attributes:
        arrays: the prepared data set.
        index: for each split, the file's split that its samples stand in, and at which positions.
        root: the folder of prepared data sets, see `kdbench.paths.data_root`.
    """

    arrays: Arrays
    index: Mapping[str, tuple[str, NDArray[np.int64]]]
    root: str | None = None


@dataclass(frozen=True, eq=False)
class Dataset:
    """What a cell trains and is judged on.

    Samples stand in canonical order (by the digest of image and label), so a sample's index, and with it its views, its
    split and its place in packed results, does not depend on how the prepared files happen to be sorted.

    Attributes:
        val: the data's own validation split, or images held out of the training split; None when there are neither.
        classes: class names, by label.
        mean, std: per channel, of pixels scaled to 0..1.
        pad, flip, affine: the augmentation (see `kdbench.data.views`).
        content_hash: of the whole prepared data set, whatever part of it is used; and of what a scenario adds to it.
        classes_hash: of all its class names, which are no part of its content; None where they are made up.
        beside: streams by name.
        experiences: where training samples arrive in several parts, the positions of each, int64, ascending.
        arrivals: where these are domains, how many samples of ``test`` and ``val`` are of each, in order.
        laps: how often an epoch shows each training sample.
        paired: the same samples as teachers see them, where that is not as students do.
        origin: None where the samples are made up, or streamed.
        crops: how streamed images are shown; None where images lie in memory.
        workers: processes that read streamed images.
        mix: how training images are shown two at a time, see `kdbench.data.mix`.
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
    beside: Mapping[str, Stream] = field(default_factory=dict)
    experiences: tuple[Tensor, ...] = ()
    arrivals: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    laps: int = 1
    paired: Dataset | None = None
    origin: Origin | None = None
    affine: Affine | None = None
    crops: Crops | None = None
    workers: Workers = "auto"
    mix: Mix | None = None

    @property
    def for_teacher(self) -> Dataset:
        """The same samples as teachers see them: itself, unless a modality is paired."""
        return self.paired or self

    def posed(self, spec: Mapping[str, Any] | None = None, **changes: Any) -> Dataset:
        """The data with some fields changed; what `spec` says of splits, statistics and streams follows from them.

        Args:
            spec: what is changed of `spec` beside that: task, settings, memory.
        """
        data = replace(self, **changes)
        seen = tuple(int(data.train.labels[part].max()) + 1 for part in data.experiences)
        height, width, channels = data.train.images.shape[1:]
        known = {
            "shape": (channels, height, width),
            "n_train": len(data.train),
            "n_val": len(data.val) if data.val else 0,
            "n_test": len(data.test),
            "mean": data.mean,
            "std": data.std,
            "streams": () if data.mix else (AGAIN, *data.beside),
            "mixed": data.mix is not None,
            "beside": {name: len(stream.split) for name, stream in data.beside.items() if not stream.follow},
            "experiences": seen,
            "arrivals": data.arrivals,
            "shape_for_teacher": data.paired.spec.shape if data.paired else None,
            "per_epoch": tuple(data.laps * len(part) for part in data.experiences or (data.train,)),
        }
        if "classes" in changes:
            known["num_classes"] = len(data.classes)
        return replace(data, spec=replace(data.spec, **{**known, **(spec or {})}))

    def first(self, n: int) -> Dataset:
        """The same with at most `n` samples of each split: of each experience as many, and there of each class."""
        part = max(1, n // (len(self.experiences) or 1))
        arriving = [_in_turn(positions, self.train.labels) for positions in self.experiences]
        kept = torch.cat([positions[:part] for positions in arriving or (torch.arange(len(self.train)),)]).sort().values
        beside = {
            name: replace(stream, split=stream.split[kept if stream.follow else slice(n)])
            for name, stream in self.beside.items()
        }
        return self.posed(
            train=self.train[kept],
            val=self.val and self.val[self._first("val", n, part)],
            # episodes need many of each class
            test=self.test if self.spec.task == "few-shot" else self.test[self._first("test", n, part)],
            beside=beside,
            experiences=tuple(torch.isin(kept, positions).nonzero()[:, 0] for positions in self.experiences),
            arrivals={name: tuple(min(part, there) for there in sizes) for name, sizes in self.arrivals.items()},
            paired=self.paired and self.paired.first(n),
        )

    def _first(self, split: str, n: int, part: int) -> Tensor | slice:
        """The first `n` of a split to be judged by; where it has domains, the first `part` of each."""
        if not (sizes := self.arrivals.get(split)):
            return slice(n)
        domains = torch.arange(sum(sizes)).split(list(sizes))
        return torch.cat([domain[:part] for domain in domains])


def _in_turn(positions: Tensor, labels: Tensor) -> Tensor:
    """Positions of samples, the first of each class before the second of any."""
    ranks = rank_in_class(labels[positions].numpy())
    return positions[torch.from_numpy(np.argsort(ranks, kind="stable"))]


class Scenario(Protocol):
    """How a data set is posed as a problem: a pure function, made of the settings under ``dataset.scenario``."""

    def __call__(self, data: Dataset) -> Dataset: ...


class DatasetConfig(Sparse):
    """The fields of ``conf/dataset/*.yaml``, explained in ``conf/dataset/cifar100.yaml``, and ``conf/scenario/*.yaml``.

    A scenario is kept with all its settings, but for those that its class names in ``ADDED`` (see `Sparse`) and that
    have their default.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    ADDED = frozenset({"scenario", "subset", "size", "affine", "views", "mix"})

    name: StrictStr
    mean: tuple[float, ...] | None = None
    std: tuple[Positive, ...] | None = None
    pad: StrictInt = Field(default=0, ge=0)
    flip: StrictBool = False
    views: Crops | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    val: StrictInt = Field(default=0, ge=0)
    classes: StrictInt | tuple[StrictInt | StrictStr, ...] | None = None
    per_class: StrictInt | None = Field(default=None, ge=1)
    root: StrictStr | None = None
    scenario: Mapping[str, Any] | None = None
    subset: Subset | None = None
    size: StrictInt | None = Field(default=None, ge=1)
    affine: Affine | None = None
    mix: Mix | None = None

    @field_validator("scenario", mode="before")
    @classmethod
    def _with_defaults(cls, value: Any) -> Mapping[str, Any] | None:
        if value is None:
            return None
        scenario, settings = settings_of("dataset.scenario", value)
        later: Collection[str] = getattr(scenario, "ADDED", ())
        defaults = {name: p.default for name, p in inspect.signature(scenario).parameters.items()}
        kept = {key: each for key, each in settings.items() if key not in later or each != defaults[key]}
        return {"_target_": value["_target_"], **kept}

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
            part: type[BaseModel] = cls
            key = "dataset"
            for word in map(str, first["loc"]):
                key = f"{key}.{word}"
                if word not in PARTS or word not in part.model_fields:
                    break
                part = PARTS[word]
            if first["type"] == "extra_forbidden":
                raise UserError(f"unknown key '{key}': choose from {', '.join(part.model_fields)}.") from error
            raise UserError(f"bad value {first['input']!r} for '{key}' ({first['msg']}): mend it.") from error

    def identity(self) -> dict[str, Any]:
        """Its settings, without where it lies on this machine."""
        return self.model_dump(mode="json", exclude={"root"})

    def build(self) -> Dataset:
        """Load, check, cut to size and pose as the scenario says.

        The order of the cuts: `subset`, then `classes`, then `val` (the last of each class in canonical order), then
        `per_class` (the first of each class). Where samples are of no class, `val` takes the last of all. Data that
        have a validation split bring it along. Statistics that are not given are those of the whole prepared training
        split, so that every cut of a data set, and a teacher trained on all of it, sees equal pixels. Last of all
        images are brought to `size`. Of streamed images no file is opened.

        Raises:
            UserError: the data are missing or corrupt, or a field does not fit them.
        """
        arrays = find(self.name, self.root, self.sha256)
        if isinstance(arrays, Manifest):
            arrays = self._shown(arrays)
        elif self.views is not None:
            raise UserError(
                f"dataset.views says how streamed images are shown, and those of {self.name} lie in memory: leave it "
                "out, or prepare them with --stream."
            )
        channels = arrays.split("train")[0].shape[3]
        mean, std = self._statistics(arrays)
        if not arrays.kind.classes and (self.classes is not None or self.per_class is not None):
            key = "per_class" if self.classes is None else "classes"
            raise UserError(f"the images of {self.name} are of no class ({arrays.task}): leave dataset.{key} at null.")
        if arrays.task != "classification" and (self.size or self.affine):
            key = "size" if self.size else "affine"
            raise UserError(
                f"dataset.{key} is for labelled images, and {self.name} is for {arrays.task}: leave it at null."
            )
        self._check_mix(arrays)
        chosen = self._chosen(arrays.classes) if arrays.kind.classes else list(range(len(arrays.classes)))
        if self.subset and self.subset.n > (there := len(arrays.split("train")[1])):
            raise UserError(
                f"dataset.subset.n={self.subset.n} of the {there} training images of {self.name}: lower it."
            )

        def ordered(split: str) -> NDArray[np.int64]:
            index = canonical_order(arrays.digests[split])
            if split == "train" and self.subset:
                index = index[np.isin(index, self.subset.places(len(index)))]
            if arrays.kind.classes:
                index = index[np.isin(arrays.split(split)[1][index], chosen)]
            if not len(index):
                raise UserError(
                    f"the classes chosen from {self.name} have no {split} images: choose others with dataset.classes."
                )
            return index

        train_labels = arrays.split("train")[1]
        train, test = ordered("train"), ordered("test")
        if "val" in arrays.splits:
            if self.val:
                raise UserError(f"{self.name} has a validation split of its own: leave dataset.val at 0.")
            val = ordered("val")
        else:
            labels = train_labels[train] if arrays.kind.classes else np.zeros(len(train), dtype=np.int64)
            held = holdout(labels, self.val)
            train, val = train[~held], train[held]
        if self.per_class is not None:
            train = train[rank_in_class(train_labels[train]) < self.per_class]

        relabel = np.full(len(arrays.classes), -1, dtype=np.int64)
        relabel[chosen] = np.arange(len(chosen))

        def cut(split: str, index: NDArray[np.int64]) -> Split:
            images, labels = arrays.split(split)
            labels = labels[index]
            targets = relabel[labels] if arrays.kind.classes else targets_of(arrays.task, labels, arrays.ignore)
            some = images[index]
            pixels = some if isinstance(some, ImageFiles) else torch.from_numpy(some)
            if self.size and isinstance(pixels, Tensor):
                pixels = fitted(pixels, (self.size, self.size), channels)
            return Split(pixels, torch.from_numpy(targets))

        height, width = (self.size, self.size) if self.size else arrays.split("train")[0].shape[1:3]
        if self.pad > (side := min(height, width)):
            raise UserError(
                f"dataset.pad={self.pad} moves images of {height}x{width} out of sight: choose at most {side}."
            )
        sizes = len(train), len(test), len(val)
        held_in = "val" if "val" in arrays.splits else "train"
        data = Dataset(
            train=cut("train", train),
            val=cut(held_in, val) if len(val) else None,
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
            origin=None
            if isinstance(arrays, Manifest)
            else Origin(arrays, {"train": ("train", train), "val": (held_in, val), "test": ("test", test)}, self.root),
            affine=self.affine,
            crops=self.views,
            mix=self.mix,
        ).posed()
        return self._posed(data) if self.scenario else data

    def _check_mix(self, data: Arrays | Manifest) -> None:
        """Raises `UserError` if images are to be mixed whose labels or views know nothing of it."""
        if self.mix is None:
            return
        if data.task != "classification":
            raise UserError(
                f"dataset.mix is for labelled images, and {self.name} is for {data.task}: leave it at null."
            )
        if self.scenario is not None:
            raise UserError("scenarios have labels and streams of their own, which dataset.mix does not mix: drop one.")
        if self.views is not None and self.views.cycle:
            raise UserError(
                "dataset.views.cycle keeps what a teacher says of each view, and dataset.mix makes another image of it "
                "in each epoch: set one of them to null."
            )

    def _posed(self, data: Dataset) -> Dataset:
        assert self.scenario is not None
        cls, settings = settings_of("dataset.scenario", self.scenario)
        try:
            scenario: Scenario = cls(**settings)
            return scenario(data)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"the scenario {cls.__name__} cannot be had of {self.name} ({type(error).__name__}: "
                f"{first_line(error)}): mend dataset.scenario."
            ) from error

    def _shown(self, manifest: Manifest) -> Manifest:
        """Streamed images in the size in which they are shown.

        Raises:
            UserError: a setting is missing, or is of no use to them.
        """
        what = f"the images of {self.name} are streamed"
        if self.views is None:
            raise UserError(
                f"{what}: say in which size they are shown, as dataset=streamed dataset.views.size=224 does."
            )
        for key, value in (("pad", 0), ("size", None), ("affine", None)):
            if getattr(self, key) != value:
                null = "null" if value is None else value
                raise UserError(f"{what}, and cropped as dataset.views says: set dataset.{key}={null}.")
        if self.scenario is not None:
            raise UserError(
                f"{what}, and scenarios pose images that lie in memory: set scenario=null, or prepare the images once "
                "more, without --stream and under another --name."
            )
        for key, values in (("mean", self.mean), ("std", self.std)):
            if values is None:
                raise UserError(
                    f"{what}, so that dataset.{key} is not computed: give it, or take ImageNet's with dataset=streamed."
                )
        side = self.views.size
        return replace(manifest, files={name: replace(files, side=side) for name, files in manifest.files.items()})

    def _statistics(self, arrays: Arrays | Manifest) -> tuple[tuple[float, ...], tuple[float, ...]]:
        channels = arrays.split("train")[0].shape[3]
        mean, std = self.mean, self.std
        if isinstance(arrays, Arrays) and (mean is None or std is None):
            computed = channel_statistics(arrays.train_images)
            mean = computed[0] if mean is None else mean
            std = computed[1] if std is None else std
        assert mean is not None  # `_shown` has seen to that
        assert std is not None
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


def differing(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A data set's config with differences: of a scenario that names no class of its own, setting by setting."""
    own, scenario = changes.get("scenario"), config.get("scenario")
    if isinstance(own, Mapping) and isinstance(scenario, Mapping) and "_target_" not in own:
        changes = {**changes, "scenario": {**scenario, **own}}
    return {**config, **changes}


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


def rank_in_class(labels: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each sample, how many earlier ones share its label."""
    rank = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank[members] = np.arange(len(members))
    return rank
