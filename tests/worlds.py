"""The smallest networks and data of every task, for tests that enumerate methods: built from what a method declares."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from kdbench import models
from kdbench.data.batch import AGAIN, Batch, DataSpec
from kdbench.engine.seeding import seeded
from kdbench.method import Method

BATCH, CLASSES = 8, 6
SPEC = DataSpec(
    "fake",
    (1, 8, 8),
    CLASSES,
    n_train=2 * BATCH,
    n_test=BATCH,
    mean=(0.5,),
    std=(0.2,),
    streams=(AGAIN, "unlabelled"),
    beside={"unlabelled": 2 * BATCH},
)


@dataclass(frozen=True)
class World:
    """A pair and the data that it is tried on; `zoo` is the kind of the networks' output."""

    student: str
    teacher: str
    spec: DataSpec
    zoo: str = "classification"

    @property
    def experiences(self) -> int:
        return max(1, len(self.spec.experiences))


MAPS = replace(SPEC, shape=(1, 16, 16))
"""Pyramids end at an eighth of the size."""
STUDENT, TEACHER = "resnet8x0.25", "resnet8x0.5"
IMAGES = World(STUDENT, TEACHER, SPEC)
WORLDS = {
    "classification": IMAGES,
    "class-incremental": World(
        STUDENT,
        TEACHER,
        replace(SPEC, task="class-incremental", n_train=4 * BATCH, experiences=(3, 6), memory=2 * CLASSES),
    ),
    "domain-incremental": World(
        STUDENT,
        TEACHER,
        replace(
            SPEC,
            task="domain-incremental",
            n_train=4 * BATCH,
            n_test=2 * BATCH,
            experiences=(CLASSES, CLASSES),
            arrivals={"test": (BATCH, BATCH)},
            memory=4 * CLASSES,
        ),
    ),
    "segmentation": World("fpn-resnet8", "fpn-resnet20", replace(MAPS, task="segmentation"), "segmentation"),
    "depth": World("fpn-resnet8", "fpn-resnet20", replace(MAPS, task="depth", num_classes=1), "depth"),
    "policy": World(
        "mlp-8",
        "mlp-16",
        DataSpec(
            "CartPole-v1", (4,), 2, n_train=2 * BATCH, n_test=2, task="policy", settings={"environment": "CartPole-v1"}
        ),
        "policy",
    ),
    "gaussian-policy": World(
        "mlp-8",
        "mlp-16",
        DataSpec(
            "Pendulum-v1",
            (3,),
            2,
            n_train=2 * BATCH,
            n_test=2,
            task="gaussian-policy",
            settings={"environment": "Pendulum-v1"},
        ),
        "policy",
    ),
}
CHAIN = World("vgg8x0.25", "vgg8", SPEC)
"""For methods that prune."""


def network(name: str, *key: object, world: World = IMAGES) -> nn.Module:
    with seeded(name, *key):
        net = models.create(name, world.spec.shape, world.spec.num_classes, world.zoo)
    if name == world.teacher and world.zoo != "depth":  # as a trained one it holds opinions
        net.head.weight.data *= 100  # type: ignore[union-attr,operator]
    if name == world.teacher and world == CHAIN:  # and has moved away from how it began
        for parameter in (parameter for parameter in net.parameters() if parameter.dim() == 1):
            nn.init.uniform_(parameter, 0.1, 1)
    return net


def teachers(needs: Collection[str], world: World = IMAGES) -> list[nn.Module]:
    """One, two or none, as a method needs."""
    seeds = ("teacher", "other") if "teachers" in needs else ("teacher",) if "teacher" in needs else ()
    return [network(world.teacher, seed, world=world) for seed in seeds]


def batches(n: int, *, seed: int = 0, world: World = IMAGES) -> list[Batch]:
    """`n` batches of each experience, with other views and unlabelled images beside them."""
    rng, beside = (torch.Generator().manual_seed(seed + offset) for offset in (0, 1000))
    found = []
    for i in range(n * world.experiences):
        batch = _batch(world, i, i // n, rng)
        if world.zoo == "classification":
            free, other = (_batch(world, i, i // n, beside) for _ in range(2))
            free = replace(free, y=torch.full_like(free.y, -1), beside={AGAIN: replace(other, y=free.y)})
            again = replace(batch, x=batch.x + 0.1 * torch.randn(batch.x.shape, generator=beside))
            batch = replace(batch, beside={AGAIN: again, "unlabelled": free})
        found.append(batch)
    return found


def _batch(world: World, i: int, experience: int, rng: torch.Generator) -> Batch:
    spec = world.spec
    x = torch.randn(BATCH, *spec.shape, generator=rng) if world.zoo != "policy" else torch.zeros(BATCH, 0, 1, 1)
    y = torch.randint(spec.num_classes, (BATCH,), generator=rng)
    if spec.experiences:
        old, seen = (0, *spec.experiences)[experience : experience + 2]
        y = old + y % (seen - old) if seen > old else y
    if world.zoo in ("segmentation", "depth"):
        y = torch.randint(max(spec.num_classes, 5), (BATCH, *spec.shape[1:]), generator=rng)
        y = y if world.zoo == "segmentation" else y.float()
    index = torch.arange(BATCH) + i * BATCH
    return Batch(x, y, index, torch.zeros(BATCH, 3, dtype=torch.long))


class Data(pl.LightningDataModule):
    """Ready-made batches, of each experience in its epochs; what a method asks of a data module by position, too."""

    def __init__(self, train: Sequence[Batch], val: Sequence[Batch] | None, world: World) -> None:
        super().__init__()
        self.train, self.val, self.spec, self.parts = list(train), val, world.spec, world.experiences

    def train_dataloader(self) -> Any:
        return Loader(self.part(self.trainer.current_epoch * self.parts // (self.trainer.max_epochs or 1)))  # type: ignore[union-attr]

    def val_dataloader(self) -> Any:
        return [] if self.val is None else Loader(self.val)

    def part(self, experience: int) -> list[Batch]:
        size = len(self.train) // self.parts
        return self.train[experience * size : (experience + 1) * size]

    def positions(self, experience: int) -> Tensor:
        return torch.cat([batch.index for batch in self.part(experience)]).unique()

    def take(self, index: Tensor, epoch: int, *, plain: bool) -> Batch:
        x, y, known = (torch.cat([getattr(batch, key) for batch in self.train]) for key in ("x", "y", "index"))
        place = torch.stack([(known == i).nonzero()[0, 0] for i in index]) if len(index) else index
        return Batch(x[place], y[place], index, torch.zeros(len(index), 3, dtype=torch.long))


class Loader:
    """Ready-made batches; Lightning would take a list for several loaders."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def world_of(cls: type[Method]) -> World:
    """The first of the worlds whose task a method serves."""
    return next(world for task, world in WORLDS.items() if task in cls.tasks)


QUICK: dict[str, dict[str, Any]] = {
    "cluster_labels": {"clusters": 4},
    "zskd": {"impressions": 24, "iterations": 2, "image_batch": 12},
    "snapshot_distillation": {"cycles": 2},
    "noisy_student": {"generations": 2},
    "deep_inversion": {"images": 16, "iterations": 2, "image_batch": 8},
    "stagewise": {"blocks": 1},
    "piekd": {"interval": 16, "passes": 1},
    "deep_inversion_plain": {"images": 16, "iterations": 2, "image_batch": 8},
    "cmi": {"images": 16, "rounds": 2, "iterations": 2, "image_batch": 8, "width": 8},
    "fast_dfkd": {"images": 16, "rounds": 2, "iterations": 2, "image_batch": 8, "warm_up": 1},
    "kegnet": {"share": 0.5},
    "zskd_uniform": {"impressions": 24, "iterations": 2, "image_batch": 12},
    "knowledge_within": {"images": 16, "iterations": 2, "image_batch": 8},
    "replayed": {"images": 16, "iterations": 2, "image_batch": 8},
    "replayed_all_layers": {"images": 16, "iterations": 2, "image_batch": 8},
    "cross_distillation": {"images": 12, "iterations": 6},
    "pseudo_examples": {"images": 16, "rounds": 2, "iterations": 2, "image_batch": 8},
}
"""What takes long by default, shortened."""
