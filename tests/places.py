"""The smallest places in which the bench can train each method: for tests that enumerate methods on its command line.

A method is assigned to the first place whose task and streams serve it; a new one stands in a place by existing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import TRAINED, Kdbench, Result
from test_grid import numbers
from worlds import QUICK

from kdbench.data.embedded import shapes
from kdbench.method import NEEDS
from kdbench.paths import conf_dir
from kdbench.registry import Entry, methods
from kdbench.results.record import Record, flatten, parse

ENTRIES: dict[str, Entry] = {entry.name: entry for entry in methods()}
SCENARIOS = {path.stem for path in (conf_dir() / "scenario").glob("*.yaml")}


@dataclass(frozen=True)
class Place:
    """Settings of a `kdbench run`, what they offer, and who is in this place beside those that stand nowhere else."""

    settings: str
    task: str = "classification"
    streams: frozenset[str] = frozenset({"again"})
    guests: tuple[str, ...] = ()

    def serves(self, entry: Entry) -> bool:
        return self.task in entry.cls.tasks and entry.cls.needs <= NEEDS | self.streams


DIGITS = "dataset=digits dataset.classes=[0,1,2,3,4,5] dataset.per_class=12 protocol.batch_size=16"
"""72 images in four full batches and half a one; 300 to be judged by."""
CLEAN = "teacher.dataset.scenario=null"
SCENES = "dataset=folder dataset.pad=2 protocol.batch_size=16 pair=fpn-resnet20-fpn-resnet8"
UNLABELLED = frozenset({"again", "unlabelled"})

PLACES = {
    "semi_supervised": Place(
        f"{DIGITS} scenario=semi_supervised dataset.scenario.labelled=14 dataset.scenario.per_batch=8 {CLEAN}"
        " dataset.scenario.laps=2 dataset.pad=1 pair=resnet8-resnet8x0.5 teachers=[{seed:1}]",
        streams=UNLABELLED,
    ),
    "pruned": Place(f"{DIGITS} pair=vgg8-vgg8x0.25", guests=("scratch", "kd")),
    "class_incremental": Place(
        f"{DIGITS} scenario=class_incremental dataset.scenario.tasks=2 dataset.scenario.memory=12 protocol.epochs=4",
        task="class-incremental",
    ),
    "domain_incremental": Place(
        f"{DIGITS} scenario=domain_incremental dataset.scenario.tasks=2 dataset.scenario.memory=12 protocol.epochs=4",
        task="domain-incremental",
        guests=("replay", "lwf", "rtf"),
    ),
    "masks": Place(f"{SCENES} dataset.name=tiny_masks", task="segmentation", guests=("scratch", "kd")),
    "depth": Place(f"{SCENES} dataset.name=tiny_depth", task="depth", guests=("scratch",)),
    "policy": Place(
        "dataset=CartPole-v1 dataset.steps=64 dataset.episodes=4 protocol.batch_size=32 pair=mlp-64-mlp-8"
        " teacher.method=${method.actor_critic}",
        task="policy",
    ),
    "gaussian_policy": Place(
        "dataset=Pendulum-v1 dataset.steps=64 dataset.episodes=2 protocol.batch_size=32 pair=mlp-64-mlp-8"
        " teacher.method=${method.gaussian_actor_critic}",
        task="gaussian-policy",
    ),
    "noisy_labels": Place(
        f"{DIGITS} scenario=noisy_labels dataset.scenario.clean=0.5 teacher.dataset.scenario.part=clean",
        guests=("scratch", "kd", "distilled_labels"),
    ),
    "few_shot": Place(
        f"{DIGITS} scenario=few_shot dataset.scenario.base=4 dataset.scenario.way=2 dataset.scenario.episodes=10"
        " teachers=[{seed:1}]",
        guests=("scratch", "kd", "ensemble_to_one"),
    ),
    "paired": Place(f"{DIGITS} scenario=paired {CLEAN}", guests=("scratch", "kd", "at", "crd", "supervision_transfer")),
    "robust": Place(
        f"{DIGITS} scenario=robust dataset.scenario.steps=2 {CLEAN}",
        guests=("scratch", "kd", "ard", "adversarial_training"),
    ),
    "target": Place(
        f"{DIGITS} scenario=target dataset.scenario.per_batch=8 {CLEAN}",
        streams=UNLABELLED,
        guests=("scratch", "kd", "self_ensembling", "mean_teacher"),
    ),
    "some_classes": Place(
        f"{DIGITS} scenario=some_classes dataset.scenario.classes=[3,5] {CLEAN}", guests=("kd_unlabelled", "scratch")
    ),
    "transfer": Place(f"{DIGITS} scenario=transfer {CLEAN}", guests=("kd_unlabelled", "logits_mse")),
}
ONLY = dict.fromkeys(("fskd", "cross_distillation", "finetuning"), "pruned")
"""What fits no other pair."""


def place_of(entry: Entry) -> str:
    """Where a method stands."""
    return ONLY.get(entry.name) or next(name for name, place in PLACES.items() if place.serves(entry))


def methods_in(place: str) -> list[str]:
    """All that stand there, and the guests; with ``--methods`` the ones that are meant, and company for them."""
    stand = [name for name, entry in ENTRIES.items() if place_of(entry) == place]
    there = [*stand, *(name for name in PLACES[place].guests if name not in stand)]
    if not TRAINED:
        return there
    meant = [name for name in there if name in TRAINED]
    if not meant:
        pytest.skip("none of --methods stands here")
    return [*[name for name in there if name not in meant][:1], *meant]


def settings_of(place: str, chosen: list[str]) -> tuple[str, ...]:
    """Of the command for some methods there: two epochs unless the place has others, and what takes long shortened."""
    quick = [f"method.{name}.{key}={value}" for name in chosen for key, value in flatten(QUICK.get(name, {})).items()]
    return ("~logger", "protocol.epochs=2", f"method=[{','.join(chosen)}]", *PLACES[place].settings.split(), *quick)


def run(kd: Kdbench, place: str, *more: str, chosen: list[str] | None = None) -> Result:
    """`kdbench run` of the methods of a place; `KDBENCH_DATA` must name a folder that holds `tiny_data`."""
    return kd("run", *settings_of(place, chosen or methods_in(place)), *more)


def records_in(kd: Kdbench, store: Path | str) -> dict[str, Record]:
    """By method, of a store below the working directory, or anywhere."""
    found = [parse(path.read_text()) for path in (kd.root / store / "records").glob("*.json")]
    return {record.cell.method: record for record in found}


def equal(kd: Kdbench, one: Path | str, two: Path | str) -> None:
    """Every cell has the same numbers in both stores."""
    a, b = records_in(kd, one), records_in(kd, two)
    assert a.keys() == b.keys()
    for name in a:
        assert numbers(a[name]) == numbers(b[name]), name


def tiny_data(root: Path) -> None:
    """Prepared folders of scenes, 40 to train on and 12 to test, 16x16 pixels."""
    for part, task in (("masks", "segmentation"), ("depth", "depth")):
        whole, folder = shapes(task), root / f"tiny_{part}"
        folder.mkdir(parents=True)
        for split, n in (("train", 40), ("test", 12)):
            images, targets = whole.split(split)
            np.save(folder / f"{split}_images.npy", images[:n, 8:24, 8:24])
            np.save(folder / f"{split}_{part}.npy", targets[:n, 8:24, 8:24])
        (folder / "meta.json").write_text(json.dumps({"classes": list(whole.classes), "source": "scenes of shapes"}))
