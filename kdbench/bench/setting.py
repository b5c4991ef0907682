"""What is measured: networks, methods, images, device."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import nn

from kdbench import models
from kdbench.construct import construct
from kdbench.data.arrays import folder_of
from kdbench.data.batch import DataSpec
from kdbench.data.datasets import Dataset, DatasetConfig, Split
from kdbench.data.prepare import STREAMED, prepare
from kdbench.engine.seeding import seeded
from kdbench.errors import UserError, nearest
from kdbench.method import Method
from kdbench.paths import conf_dir
from kdbench.protocol import Protocol
from kdbench.registry import Entry, methods

RANDOM_IMAGES = 20_000
SEED = 0
WORKERS = 2
"""Processes that read images, as many for the engine as for the reference loop."""
HOOKS = ("stages", "batch", "teach", "players", "turns", "after_step")
"""What a method may not override to be measured: the reference loop plays one turn of one player."""


@dataclass(frozen=True)
class Setting:
    """Names alone, so that another process can be told; everything else follows from them and from the machine.

    Attributes:
        cohort: names of methods, one student each.
        single: the method that is measured alone.
        smallest, smallest_method: student and method for the cost of the loop.
        images: where a folder of large images is prepared, which are streamed; empty: those of `data`, in memory.
        size: height and width to which these are cropped, in pixels; None: as their configuration has it.
    """

    pair: str
    teacher: str
    student: str
    cohort: tuple[str, ...]
    single: str
    smallest: str
    smallest_method: str
    data: str
    images: str = ""
    size: int | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Setting:
        fields = json.loads(text)
        return cls(**{**fields, "cohort": tuple(fields["cohort"])})

    @cached_property
    def entries(self) -> Mapping[str, Entry]:
        return {entry.name: entry for entry in methods()}

    @cached_property
    def device(self) -> torch.device:
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")

    @property
    def trainer(self) -> Mapping[str, Any]:
        """Lightning's settings for `device`."""
        chosen = [self.device.index] if self.device.type == "cuda" else 1
        return {"accelerator": self.device.type, "devices": chosen}

    @cached_property
    def prepared(self) -> bool:
        """Whether the data set lies ready; else images are random, which costs a step exactly as much."""
        return folder_of(self.data, self.images).is_dir()

    @cached_property
    def dataset(self) -> Dataset:
        found: Any = OmegaConf.load(conf_dir() / "dataset" / f"{self.data}.yaml")
        if self.images:
            found.root, found.views.size = self.images, self.size or found.views.size
            return replace(DatasetConfig.of(found).build(), workers=WORKERS)
        config = DatasetConfig.of(found)
        return config.build() if self.prepared else _random(config)

    @property
    def data_note(self) -> str:
        n = self.dataset.spec.n_train
        if self.images:
            return f"{n} large images, read by {WORKERS} processes and cropped to {self.dataset.spec.shape[1]}"
        return f"{self.data}, {n} images" if self.prepared else f"{n} random images in the shape of {self.data}"

    def protocol(self, precision: str = "32-true") -> Protocol:
        """crd240 in all that a step depends on."""
        return Protocol.of({"epochs": 1, "precision": precision})

    def network(self, name: str) -> nn.Module:
        """With random weights, for teachers too: what a step costs does not depend on them."""
        spec = self.dataset.spec
        with seeded(SEED, "bench", name):
            return models.create(name, spec.shape, spec.num_classes)

    def method(self, name: str, protocol: Protocol, teacher: nn.Module | None, student: str | None = None) -> Method:
        """A method bound to a fresh student (by default the pair's) and to `teacher` if it needs one."""
        entry, student = self.entries[name], student or self.student
        method = construct(name, entry.cls, entry.settings, protocol)
        with seeded(SEED, "bench adapters", name):
            method.bind(self.network(student), teacher, self.dataset.spec, names=(student, self.teacher), seed=SEED)
        return method

    def taught(self, name: str) -> bool:
        return "teacher" in self.entries[name].cls.needs

    @property
    def batches(self) -> int:
        """Full batches in an epoch."""
        return self.dataset.spec.n_train // self.protocol().batch_size


@contextmanager
def prepared(images: Path | None) -> Iterator[str]:
    """Where a folder of images is prepared for streaming, for as long as it is measured; nowhere for None.

    Raises:
        UserError: it is no such folder.
    """
    if images is None:
        yield ""
        return
    with TemporaryDirectory(prefix="kdbench-bench-") as folder:
        prepare("folder", folder, images, name=STREAMED, stream=True)
        yield folder


def make_setting(
    pair: str | None, cohort: Sequence[str] | None, images: str = "", size: int | None = None
) -> tuple[Setting, Mapping[str, Any]]:
    """A checked setting, by default that of ``conf/bench.yaml``, and the whole of that file.

    Args:
        images: where large images are prepared, as of `prepared`; `size` is what they are cropped to.

    Raises:
        UserError: unknown pair or method, a method that the reference loop cannot play, or none.
    """
    defaults: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / "bench.yaml"))
    usual = defaults["streamed"] if images else defaults
    pair = usual["pair"] if pair is None else pair
    cohort = tuple(usual["methods"] if cohort is None else cohort)
    pairs = [path.stem for path in sorted((conf_dir() / "pair").glob("*.yaml"))]
    if pair not in pairs:
        raise UserError(f"there is no pair '{pair}': {nearest(pair, pairs)}")
    networks: Any = OmegaConf.load(conf_dir() / "pair" / f"{pair}.yaml")
    if not cohort:
        raise UserError("no method was chosen: name one or more, as in --methods scratch,kd.")
    setting = Setting(
        pair=pair,
        teacher=networks.teacher,
        student=networks.student,
        cohort=tuple(dict.fromkeys(cohort)),
        single=defaults["single"],
        smallest=defaults["smallest"],
        smallest_method=defaults["smallest_method"],
        data=STREAMED if images else defaults["dataset"],
        images=images,
        size=size,
    )
    for name in setting.cohort:
        if name not in setting.entries:
            raise UserError(f"there is no method '{name}': {nearest(name, list(setting.entries))}")
        cls = setting.entries[name].cls
        own = [hook for hook in HOOKS if getattr(cls, hook) is not getattr(Method, hook)]
        if own:
            raise UserError(
                f"method '{name}' plays its own {' and '.join(own)}, which the plain reference loop cannot follow: "
                "leave it out of --methods."
            )
    return setting, defaults


def _random(config: DatasetConfig) -> Dataset:
    shape, classes = (32, 32, 3), 100
    generator = torch.Generator().manual_seed(SEED)

    def split(n: int) -> Split:
        images = torch.randint(256, (n, *shape), dtype=torch.uint8, generator=generator)
        return Split(images, torch.randint(classes, (n,), generator=generator))

    height, width, channels = shape
    sizes = RANDOM_IMAGES, 100
    return Dataset(
        train=split(sizes[0]),
        val=None,
        test=split(sizes[1]),
        classes=tuple(map(str, range(classes))),
        mean=config.mean or (0.5,) * channels,
        std=config.std or (0.25,) * channels,
        pad=config.pad,
        flip=config.flip,
        content_hash="random",
        spec=DataSpec(config.name, (channels, height, width), classes, *sizes),
    )
