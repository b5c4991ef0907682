"""Scenarios: how a data set is posed as a problem.

A scenario is a pure function from a `Dataset` to a `Dataset`, made of its settings, which are part of the data set's
identity. Methods never see it, only what it offers. It may change, by `Dataset.posed`:

* which samples are trained on, which labels are known, and which are right (`train`);
* which *streams* stand beside a batch (`beside`): ``batch["unlabelled"]``, another domain, what teachers see;
* how often an epoch shows each sample (`laps`);
* in which *experiences*, one after the other, data arrive, and how many samples may be kept for later (``memory``);
* how a network is judged: the test split, and the task with its settings.

One of your own is one class in any file::

    @dataclass(frozen=True)
    class EveryOther:
        first: Annotated[int, Field(ge=0)] = 0

        def __call__(self, data: Dataset) -> Dataset:
            return data.posed(train=data.train[slice(self.first, None, 2)])

and ``dataset.scenario={_target_: my.file.EveryOther, first: 1}``, or a YAML under ``conf/scenario`` of a folder of your
own. What it draws at random it draws from `kdbench.draws`, without a seed: all seeds have the same data. A setting that
comes later, with a default that means what was done before, is named in ``ADDED`` (see `kdbench.sparse`).

Teachers learn from the cells' data as they are posed, unless their recipe says otherwise: with
``teacher.dataset.scenario=null`` from the data as they were, with ``teacher.dataset.scenario.part=clean`` from a part.

Episodes and attacks are judged by meters (`kdbench.tasks`), which a scenario only names. Video needs no scenario but
`Paired`, for students that see fewer frames; detection and translation none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from kdbench.data.arrays import canonical_order, load, paired
from kdbench.data.batch import PAIRED
from kdbench.data.datasets import Dataset, Origin, Split, Stream, channel_statistics, drawn_by, rank_in_class
from kdbench.data.pixels import Degrade, Noise, degraded, fitted, noise
from kdbench.draws import random_bits
from kdbench.errors import UserError
from kdbench.paths import data_root
from kdbench.settings import Count, DrawSeed, Positive, Share

UNLABELLED = "unlabelled"

SEED = "dataset.scenario.seed"

Natural = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class NoisyLabels:
    """Wrong training labels, but for a small part that somebody looked through (Li et al., ICCV 2017,
    arXiv:1703.02391). Test and validation labels are right.

    Attributes:
        rate: how many of the other labels are wrong, of each class.
        clean: how many labels were looked through, of each class: the first in canonical order.
        part: what is trained on: ``all``; ``clean``, as the paper's teacher is; or ``noisy``.
        noise: ``symmetric``: any other class instead, each as likely; ``pair``: always the next one, so that a label
            stands for two things (Han et al., NeurIPS 2018, arXiv:1804.06872). The paper's noise is that of image
            search, where a label stands for several things: ``pair`` is the nearer to it.
    """

    rate: Share = 0.4
    clean: Share = 0.1
    part: Literal["all", "clean", "noisy"] = "all"
    noise: Literal["symmetric", "pair"] = "symmetric"

    def __call__(self, data: Dataset) -> Dataset:
        labels = _labels(data, "NoisyLabels")
        classes = len(data.classes)
        known = rank_in_class(labels) < np.rint(self.clean * np.bincount(labels, minlength=classes))[labels]
        which, other = (random_bits(0, 0, stream, torch.arange(len(labels))).numpy() for stream in (0, 1))
        # the place of each sample among those of its class that nobody looked through, at random
        shuffled = np.argsort(which, kind="stable")
        shuffled = shuffled[~known[shuffled]]
        place = np.full(len(labels), len(labels))
        place[shuffled] = rank_in_class(labels[shuffled])
        wrong = place < np.rint(self.rate * np.bincount(labels[~known], minlength=classes))[labels]
        step = 1 + other % (classes - 1) if self.noise == "symmetric" else 1
        given = torch.from_numpy(np.where(wrong, (labels + step) % classes, labels))
        kept = {"all": np.full(len(labels), True), "clean": known, "noisy": ~known}[self.part]
        if not kept.any():
            raise UserError(
                f"dataset.scenario.part={self.part} leaves none of the {len(labels)} training images with "
                f"dataset.scenario.clean={self.clean}: change one of them."
            )
        return data.posed(train=replace(data.train, labels=given)[torch.from_numpy(np.flatnonzero(kept))])


@dataclass(frozen=True)
class SemiSupervised:
    """Few labelled images, and a stream ``unlabelled`` of all the others.

    Attributes:
        labelled: how many have a label, in all: of each class as many, the first in canonical order.
        per_batch: how many unlabelled images stand beside each batch.
        laps: how often an epoch shows each labelled image, each time in another view.
    """

    labelled: Count
    per_batch: Count = 64
    laps: Count = 1

    def __call__(self, data: Dataset) -> Dataset:
        labels = _labels(data, "SemiSupervised")
        classes, n = len(data.classes), len(labels)
        if not classes <= self.labelled < n:
            raise UserError(
                f"dataset.scenario.labelled={self.labelled}, but {data.spec.name} has {n} training images in {classes} "
                "classes: leave one at least without a label, and have one at least of each class with it."
            )
        in_turn = np.lexsort((labels, rank_in_class(labels)))
        known = torch.from_numpy(np.sort(in_turn[: self.labelled]))
        rest = torch.from_numpy(np.sort(in_turn[self.labelled :]))
        stream = Stream(_unlabelled(data.train[rest]), per_batch=self.per_batch)
        return data.posed(
            train=data.train[known], beside={**data.beside, UNLABELLED: stream}, laps=data.laps * self.laps
        )


@dataclass(frozen=True)
class ClassIncremental:
    """Classes that arrive a few at a time, numbered in the order of arrival: that of ``dataset.classes``, or by a seed.

    Attributes:
        tasks: how many times classes arrive.
        first: how many arrive the first time; None for as many as ever after.
        memory: how many samples of past tasks may be kept, in all.
        told: whether a network is told with which classes each test sample arrived, and chooses among these alone:
            task-incremental, as the first works had it (van de Ven and Tolias 2019, arXiv:1904.07734).
        seed: of a random order, that of NumPy's ``RandomState(seed).permutation``: 1993 is iCaRL's; ``run`` for the
            seed of the run.
    """

    tasks: Annotated[int, Field(ge=2)]
    first: Count | None = None
    memory: Natural = 2000
    told: bool = False
    seed: DrawSeed | None = None

    ADDED: ClassVar = frozenset({"told", "seed"})

    def __call__(self, data: Dataset) -> Dataset:
        _labels(data, "ClassIncremental")
        data = _reordered(data, self.seed)
        labels = data.train.labels
        classes = len(data.classes)
        first = self.first if self.first is not None else classes // self.tasks
        later, rest = divmod(classes - first, self.tasks - 1)
        if rest or later < 1 or (self.first is None and later != first):
            whole = f"dataset.scenario.tasks={self.tasks}"
            told = whole if self.first is None else f"{whole} with {self.first} in the first"
            raise UserError(
                f"{told} cannot divide the {classes} classes of {data.spec.name} into equal parts: choose another "
                "number, or another dataset.scenario.first."
            )
        ends = [first + later * k for k in range(self.tasks)]
        arriving = tuple(
            torch.nonzero((labels >= start) & (labels < end))[:, 0]
            for start, end in zip([0, *ends], ends, strict=False)
        )
        spec: dict[str, Any] = {"task": "class-incremental", "memory": self.memory}
        return data.posed(spec | ({"settings": {"told": True}} if self.told else {}), experiences=arriving)


@dataclass(frozen=True)
class DomainIncremental:
    """The same classes in one domain after the other, of which a network is never told (van de Ven and Tolias 2019).

    Attributes:
        tasks: how many domains arrive.
        domains: ``classes``: each is of as many classes of the data set, and a network says which of its domain's it
            sees, as the first or the second of two digits (Hsu et al. 2018, arXiv:1810.12488). ``pixels``: each is the
            whole data set with its pixels in another random order, but for the first, which is as it was (Goodfellow
            et al. 2013, arXiv:1312.6211).
        memory: how many samples of past domains may be kept, in all.
        seed: of the order of classes, see `ClassIncremental`; of those of pixels, where None means 0.
    """

    tasks: Annotated[int, Field(ge=2)]
    domains: Literal["classes", "pixels"] = "classes"
    memory: Natural = 0
    seed: DrawSeed | None = None

    def __call__(self, data: Dataset) -> Dataset:
        _labels(data, "DomainIncremental")
        found = self._of_pixels(data) if self.domains == "pixels" else self._of_classes(data)
        return found.posed({"task": "domain-incremental", "memory": self.memory})

    def _of_classes(self, data: Dataset) -> Dataset:
        each, rest = divmod(len(data.classes), self.tasks)
        if rest or each < 2:
            raise UserError(
                f"dataset.scenario.tasks={self.tasks} cannot divide the {len(data.classes)} classes of "
                f"{data.spec.name} into equal parts of two or more: choose another number."
            )
        data = _reordered(data, self.seed)
        changed: dict[str, Split] = {}
        sizes: dict[str, tuple[int, ...]] = {}
        for name, split in _splits(data).items():
            domain = split.labels // each
            in_turn = torch.argsort(domain, stable=True)
            changed[name] = replace(split, labels=split.labels % each)[in_turn]
            sizes[name] = tuple(domain.bincount(minlength=self.tasks).tolist())
        return _in_domains(data, changed, sizes, tuple("/".join(data.classes[k::each]) for k in range(each)))

    def _of_pixels(self, data: Dataset) -> Dataset:
        if data.pad or data.flip or data.affine:
            raise UserError(
                "images whose pixels stand in another order cannot be moved or mirrored: set dataset.pad=0, "
                "dataset.flip=false and dataset.affine=null, or dataset.scenario.domains=classes."
            )
        _, height, width, channels = data.train.pixels.shape
        seed = drawn_by(self.seed, SEED) if self.seed is not None else 0
        draws = np.random.RandomState(seed)
        orders = [np.arange(height * width), *(draws.permutation(height * width) for _ in range(self.tasks - 1))]

        def shown(split: Split) -> Split:
            flat = split.pixels.reshape(-1, height * width, channels)
            images = torch.cat([flat[:, torch.from_numpy(order)] for order in orders])
            return replace(
                split, images=images.view(-1, height, width, channels), labels=split.labels.repeat(self.tasks)
            )

        changed = {name: shown(split) for name, split in _splits(data).items()}
        sizes = {name: (len(split),) * self.tasks for name, split in _splits(data).items()}
        return _in_domains(data, changed, sizes, data.classes)


@dataclass(frozen=True)
class FewShot:
    """Base classes to train on, and new ones that are told apart by a few examples of each, in episodes.

    Attributes:
        base: how many classes are trained on, the first of ``dataset.classes``; None where the data's own training and
            test images are of other classes: those of the training images.
        way, shot, query: of an episode: how many classes, examples of each, and images of each to be told apart.
        episodes: how many.
    """

    base: Annotated[int, Field(ge=2)] | None = None
    way: Annotated[int, Field(ge=2)] = 5
    shot: Count = 1
    query: Count = 15
    episodes: Count = 1000

    def __call__(self, data: Dataset) -> Dataset:
        labels = torch.from_numpy(_labels(data, "FewShot"))
        if data.val is not None:
            raise UserError("few-shot data have no validation split, whose classes were seen: leave dataset.val at 0.")
        old = torch.arange(self.base) if self.base is not None else labels.unique()
        new = torch.tensor([k for k in range(len(data.classes)) if k not in old.tolist()])
        if len(new) < self.way:
            raise UserError(
                f"an episode of dataset.scenario.way={self.way} classes needs as many new ones, and of the "
                f"{len(data.classes)} of {data.spec.name} {len(new)} are new: choose a lower way, or with "
                "dataset.scenario.base how many classes are trained on."
            )
        pool = Split(torch.cat([data.train.pixels, data.test.pixels]), torch.cat([data.train.labels, data.test.labels]))
        judged = _relabelled(pool, new)
        fewest = int(judged.labels.bincount(minlength=len(new)).min())
        if fewest < self.shot + self.query:
            raise UserError(
                f"an episode needs {self.shot} + {self.query} images (dataset.scenario.shot and .query) of each class, "
                f"and a new class of {data.spec.name} has {fewest}: lower one of them."
            )
        return data.posed(
            {"task": "few-shot", "settings": _settings(self, "way", "shot", "query", "episodes")},
            train=_relabelled(data.train, old),
            test=judged,
            classes=tuple(data.classes[k] for k in old.tolist()),
        )


@dataclass(frozen=True)
class Robust:
    """The data as they are; a network is judged by images that an attack has changed (PGD, Madry et al., ICLR 2018).

    Attributes:
        eps: how far a pixel may be changed, in grey levels of 255.
        steps: of the attack.
        step: their size, in grey levels of 255.
    """

    eps: Positive = 8.0
    steps: Count = 20
    step: Positive = 2.0

    def __call__(self, data: Dataset) -> Dataset:
        _labels(data, "Robust")
        return data.posed({"task": "robust", "settings": _settings(self, "eps", "steps", "step")})


@dataclass(frozen=True)
class Paired:
    """Students see the images in one modality, teachers in another: one of `degrade`, `dataset`, `file` and `frames`.

    Attributes:
        degrade: students see the images without colour (``grey``), ``coarse`` or with ``noise`` (Su and Maji, BMVC
            2016, arXiv:1604.00433), or their ``lightness`` or ``colour`` alone (L, or a and b, of L*a*b*: Tian et al.,
            ICLR 2020, arXiv:1910.10699); see `kdbench.data.pixels.degraded`.
        teachers: teachers see them so, not as they are.
        amount: the side of coarse pixels, or the standard deviation of noise in grey levels.
        dataset: teachers see the image of another data set that belongs to each (MNIST's, of MNIST-M).
        file: students see what lies beside the images as ``SPLIT_FILE.npy`` (``depth``: Gupta et al., CVPR 2016,
            arXiv:1507.00448), (N, H, W) or (N, H, W, C); what is not uint8 is scaled, 0 to the training split's largest
            value.
        frames: students see so many frames of a clip, evenly spread.
    """

    degrade: Degrade | None = None
    amount: Positive | None = None
    dataset: str | None = None
    file: str | None = None
    frames: Count | None = None
    teachers: Literal["grey", "lightness", "colour"] | None = None

    ADDED: ClassVar = frozenset({"teachers"})

    def __post_init__(self) -> None:
        chosen = [key for key in ("degrade", "dataset", "file", "frames") if getattr(self, key) is not None]
        if len(chosen) != 1:
            raise UserError(
                f"dataset.scenario pairs by {' and '.join(chosen) or 'nothing'}: set one of degrade, dataset, file and "
                "frames."
            )
        if (self.amount is not None) != (self.degrade in ("coarse", "noise")):
            raise UserError(
                f"dataset.scenario.amount={self.amount} with degrade={self.degrade}: give an amount to 'coarse' and to "
                "'noise', and to nothing else."
            )
        if self.teachers and (not self.degrade or self.teachers == self.degrade):
            raise UserError(
                f"dataset.scenario.teachers={self.teachers} with degrade={self.degrade}: teachers see another part of "
                "an image than students; set degrade to that of students."
            )

    def __call__(self, data: Dataset) -> Dataset:
        teacher = data
        if self.teachers:
            seen = {name: degraded(split.pixels, self.teachers, 0) for name, split in _splits(data).items()}
            teacher = _looking_at(data, seen)
        if self.dataset is not None:
            teacher = _counterpart(data, self.dataset)
            student = data.posed(content_hash=_folded(data, teacher.content_hash))
        elif self.file is not None:
            images, digest = _beside(data, self.file)
            student = _looking_at(data, images).posed(content_hash=_folded(data, digest))
        else:
            student = _looking_at(data, {name: self._worse(data, split) for name, split in _splits(data).items()})
        stream = Stream(replace(teacher.train, mean=teacher.mean, std=teacher.std), follow=True)
        return student.posed(beside={**student.beside, PAIRED: stream}, paired=teacher)

    def _worse(self, data: Dataset, split: Split) -> Tensor:
        if self.degrade is not None:
            return degraded(split.pixels, self.degrade, self.amount or 0)
        assert self.frames is not None
        there = _origin(data).arrays.frames
        if not self.frames < there:
            raise UserError(
                f"dataset.scenario.frames={self.frames} of the {there} that {data.spec.name} shows: choose fewer, and "
                "of clips."
            )
        middles = [there * (2 * k + 1) // (2 * self.frames) for k in range(self.frames)]
        n, height, width, channels = split.pixels.shape
        clips = split.pixels.view(n, height, width, there, channels // there)
        return clips[..., middles, :].reshape(n, height, width, -1)


@dataclass(frozen=True)
class Target:
    """The data to learn from, and another domain to be judged in: its training images are the stream ``unlabelled``,
    its test split is the test split (French et al., ICLR 2018, arXiv:1706.05208).

    Classes are the same where their names are; the target's others are left out. Where one domain is grey and the other
    is not, the grey one is repeated in each channel. Each domain is normalised by its own statistics, and the
    validation split stays the source's.

    Attributes:
        dataset: the prepared data set of the target domain.
        size: side of the images of both domains; None for the source's.
        per_batch: how many target images stand beside each batch.
    """

    dataset: str
    size: Count | None = None
    per_batch: Count = 64

    def __call__(self, data: Dataset) -> Dataset:
        _labels(data, "Target")
        other = load(self.dataset, _origin(data).root)
        if other.content_hash == data.content_hash:
            raise UserError(f"dataset.scenario.dataset={self.dataset} is the source itself: name another data set.")
        absent = [name for name in data.classes if name not in other.classes]
        if absent:
            raise UserError(
                f"the target {self.dataset} has no class '{absent[0]}' (it has {', '.join(other.classes)}): choose the "
                "classes that both have with dataset.classes, or another target."
            )
        height, width, channels = data.train.pixels.shape[1:]
        size = (height, width) if self.size is None else (self.size, self.size)
        if data.pad > min(size):
            raise UserError(f"dataset.pad={data.pad} moves images of {size[0]}x{size[1]} out of sight: lower it.")
        most = max(channels, other.train_images.shape[3])
        mean, std = (
            values * (most // len(values)) for values in _checked(channel_statistics(other.train_images), self.dataset)
        )
        chosen = torch.tensor([other.classes.index(name) for name in data.classes])

        def target(split: str) -> Split:
            index = canonical_order(other.digests[split])
            images, labels = (torch.from_numpy(values[index]) for values in other.split(split))
            found = _relabelled(Split(images, labels, mean, std), chosen)
            if not len(found):
                raise UserError(f"the target {self.dataset} has no {split} images of these classes: choose others.")
            return replace(found, images=fitted(found.pixels, size, most))

        source = {name: fitted(split.pixels, size, most) for name, split in _splits(data).items() if name != "test"}
        return data.posed(
            train=replace(data.train, images=source["train"]),
            val=data.val and replace(data.val, images=source["val"]),
            test=target("test"),
            mean=data.mean * (most // channels),
            std=data.std * (most // channels),
            beside={**data.beside, UNLABELLED: Stream(_unlabelled(target("train")), per_batch=self.per_batch)},
            content_hash=_folded(data, other.content_hash),
        )


@dataclass(frozen=True)
class Transfer:
    """A student trains on the images of another data set, or on noise, without a label: on another *transfer set* than
    its teacher. It is judged as ever. These are the controls of data-free distillation, whose images should teach more
    than any that are at hand (Lopes et al., 2017, arXiv:1710.07535; Fang et al., 2019, arXiv:1912.11006).

    There are as many images as the data set has training images, so that an epoch has as many steps: of a larger set
    the first in canonical order, a smaller one again and again. They have the size and the channels of the data set
    (luma, where it is grey), and are normalised by its statistics, which are part of how its teacher is used.

    Attributes:
        dataset: the prepared data set that they are of.
        noise: of what distribution they are instead: ``uniform`` over grey levels, or ``gaussian`` with mean and
            standard deviation of each channel of the data set.
    """

    dataset: str | None = None
    noise: Noise | None = None

    def __post_init__(self) -> None:
        if (self.dataset is None) == (self.noise is None):
            said = "neither" if self.dataset is None else "both"
            raise UserError(f"dataset.scenario says {said} of dataset and noise: set one of them.")

    def __call__(self, data: Dataset) -> Dataset:
        _labels(data, "Transfer")
        n, height, width, channels = data.train.pixels.shape
        if self.dataset is None:
            assert self.noise is not None
            images = noise((n, height, width, channels), self.noise, data.mean, data.std)
            digest = sha256(images.numpy().tobytes()).hexdigest()
        else:
            other = load(self.dataset, data.origin.root if data.origin else None)
            if other.content_hash == data.content_hash:
                raise UserError(f"dataset.scenario.dataset={self.dataset} is the data set itself: name another.")
            index = np.resize(canonical_order(other.digests["train"]), n)
            images = fitted(torch.from_numpy(other.train_images[index]), (height, width), channels)
            digest = other.content_hash
        train = _unlabelled(replace(data.train, images=images))
        return data.posed({"labelled": False}, train=train, content_hash=_folded(data, digest))


@dataclass(frozen=True)
class SomeClasses:
    """A student trains on images of some classes alone, and is judged on all: a transfer set that lacks what its
    teacher knows (Hinton et al. 2015, arXiv:1503.02531, section 3).

    Attributes:
        classes: which, by their places in the data set's.
    """

    classes: list[Natural]

    def __call__(self, data: Dataset) -> Dataset:
        labels = _labels(data, "SomeClasses")
        if not self.classes or not set(self.classes) < set(range(len(data.classes))):
            raise UserError(
                f"dataset.scenario.classes={self.classes} does not choose some of the {len(data.classes)} "
                f"classes of {data.spec.name}: name one or more, but not all."
            )
        return data.posed(train=data.train[torch.from_numpy(np.flatnonzero(np.isin(labels, self.classes)))])


def _labels(data: Dataset, scenario: str) -> NDArray[np.int64]:
    """The classes of the training samples.

    Raises:
        UserError: the targets are no classes.
    """
    labels = data.train.labels
    if labels.ndim != 1 or labels.is_floating_point():
        raise UserError(
            f"the scenario {scenario} asks for a class of each image, and the task of {data.spec.name} is "
            f"{data.spec.task}: choose another data set, or scenario=null."
        )
    return labels.numpy()


def _reordered(data: Dataset, seed: int | str | None) -> Dataset:
    """The data with their classes numbered in a random order; as they are without a seed."""
    if seed is None:
        return data
    order = np.random.RandomState(drawn_by(seed, SEED)).permutation(len(data.classes))
    changed = {name: _relabelled(split, torch.from_numpy(order)) for name, split in _splits(data).items()}
    return data.posed(None, **changed, classes=tuple(data.classes[k] for k in order))


def _in_domains(
    data: Dataset, splits: Mapping[str, Split], sizes: Mapping[str, tuple[int, ...]], classes: tuple[str, ...]
) -> Dataset:
    """The splits, whose samples stand domain by domain, so many of each; what lies beside the data is left behind."""
    arriving = torch.arange(len(splits["train"])).split(list(sizes["train"]))
    arrivals = {name: each for name, each in sizes.items() if name != "train"}
    return data.posed(None, **splits, experiences=arriving, arrivals=arrivals, classes=classes, origin=None)


def _splits(data: Dataset) -> dict[str, Split]:
    found = {"train": data.train, "val": data.val, "test": data.test}
    return {name: split for name, split in found.items() if split is not None}


def _settings(scenario: object, *names: str) -> dict[str, object]:
    return {name: getattr(scenario, name) for name in names}


def _unlabelled(split: Split) -> Split:
    return replace(split, labels=torch.full_like(split.labels, -1))


def _relabelled(split: Split, classes: Tensor) -> Split:
    """The samples of these classes, labelled 0.. in this order."""
    place = torch.full((int(max(split.labels.max(), classes.max())) + 1,), -1)
    place[classes] = torch.arange(len(classes))
    labels = place[split.labels]
    kept = torch.nonzero(labels >= 0)[:, 0]
    return replace(split, labels=labels)[kept]


def _origin(data: Dataset) -> Origin:
    if data.origin is None:
        raise UserError(f"{data.spec.name} was not prepared, so nothing lies beside it: choose a prepared data set.")
    return data.origin


def _folded(data: Dataset, other: str) -> str:
    """A content hash of the data and of something else."""
    return sha256(f"{data.content_hash} {other}\n".encode()).hexdigest()


def _checked(
    statistics: tuple[tuple[float, ...], tuple[float, ...]], name: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if min(statistics[1]) == 0:
        raise UserError(f"a channel of {name} is constant, so nothing is to be seen in it: choose other data.")
    return statistics


def _looking_at(data: Dataset, images: Mapping[str, Tensor]) -> Dataset:
    """The data with other images of the same samples, normalised by the statistics of the training images."""
    mean, std = _checked(channel_statistics(images["train"].numpy()), data.spec.name)
    return data.posed(None, **_showing(data, images), mean=mean, std=std)


def _counterpart(data: Dataset, name: str) -> Dataset:
    """The images of another data set that belong to the samples, with its statistics."""
    origin = _origin(data)
    other = load(name, origin.root)
    pairs = paired(origin.arrays, other)
    images = {}
    for split in _splits(data):
        file, index = origin.index[split]
        images[split] = torch.from_numpy(other.split(file)[0][pairs[file][index]])
    mean, std = _checked(channel_statistics(other.train_images), name)
    changed = _showing(data, images)
    return data.posed({"name": name}, **changed, mean=mean, std=std, content_hash=other.content_hash)


def _showing(data: Dataset, images: Mapping[str, Tensor]) -> dict[str, Split]:
    """The splits with other images of the same samples."""
    return {name: replace(split, images=images[name]) for name, split in _splits(data).items()}


def _beside(data: Dataset, name: str) -> tuple[dict[str, Tensor], str]:
    """What lies as ``SPLIT_NAME.npy`` beside the samples, as images, and a hash of it."""
    origin = _origin(data)
    folder = origin.arrays.folder
    found, total = {}, sha256()
    for split in _splits(data):
        file, index = origin.index[split]
        path = (folder or data_root(origin.root) / data.spec.name) / f"{file}_{name}.npy"
        try:
            whole = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{path} cannot be read ({error}): have it there, or name another dataset.scenario.file."
            ) from None
        n = len(origin.arrays.split(file)[1])
        if whole.ndim not in (3, 4) or len(whole) != n or whole.dtype.kind not in "uif":
            raise UserError(
                f"{path} holds {whole.dtype} {whole.shape}, not a map (H, W) or (H, W, C) of each of the {n} samples: "
                "mend it, or name another dataset.scenario.file."
            )
        maps = np.ascontiguousarray(whole[index])
        total.update(f"{split} {maps.dtype.str} {maps.shape}\n".encode() + maps.tobytes())
        found[split] = maps if maps.ndim == 4 else maps[..., None]
    largest = max(float(found["train"].max()), 1e-9)
    scaled = {
        split: maps if maps.dtype == np.uint8 else np.rint(maps.clip(0, largest) * (255 / largest)).astype(np.uint8)
        for split, maps in found.items()
    }
    return {split: torch.from_numpy(maps) for split, maps in scaled.items()}, total.hexdigest()
