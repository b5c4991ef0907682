"""A task, a scenario, a source of data and methods that lie in a file of somebody's own: nothing is registered."""

from __future__ import annotations

import pytest
from conftest import Kdbench

MINE = '''
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np
import torch

from kdbench.data.batch import DataSpec
from kdbench.data.datasets import Dataset, Split
from kdbench.measures import Measure
from kdbench.method import Method
from kdbench.tasks import Meter, Task
from kdbench.tasks.base import Scores


class Errors(Meter):
    """The mean absolute error, in dots."""

    def __init__(self):
        super().__init__()
        self.errors = Scores()

    def update(self, net, batch):
        self.errors.update((net(batch.x).squeeze(1).float() - batch.y).abs())

    def compute(self):
        return {"MAE": self.errors.rows().mean()}

    def examples(self):
        return self.errors.rows()


@dataclass(frozen=True)
class Counting(Task):
    name = "counting"
    primary = Measure("MAE", higher=False, unit="dots")

    def loss(self, output, target):
        return (output.squeeze(1) - target).abs().mean()

    def meter(self, data):
        return Errors()


@dataclass(frozen=True)
class Dots:
    """Dark images with a few bright pixels, to be counted."""

    name: str
    most: int = 8
    size: int = 120

    def identity(self):
        return {"_target_": "mine.Dots", "name": self.name, "most": self.most, "size": self.size}

    def build(self):
        rng = np.random.default_rng(0)
        count = rng.integers(1, self.most + 1, self.size)
        images = np.zeros((self.size, 64), dtype=np.uint8)
        for image, n in zip(images, count):
            image[rng.choice(64, n, replace=False)] = 255
        whole = Split(torch.from_numpy(images.reshape(-1, 8, 8, 1)), torch.from_numpy(count.astype(np.float32)))
        train, test = whole[: self.size // 2], whole[self.size // 2 :]
        return Dataset(
            train, None, test, (), (0.1,), (0.3,), 0, False,
            content_hash=sha256(images.tobytes()).hexdigest(),
            spec=DataSpec(self.name, (1, 8, 8), 1, len(train), len(test), task="mine.Counting"),
        ).posed()


@dataclass(frozen=True)
class Ordered:
    """Labels as numbers: a nine for an eight is a smaller error than a zero."""

    def __call__(self, data):
        whole = {"train": data.train, "test": data.test}
        splits = {name: replace(split, labels=split.labels.float()) for name, split in whole.items()}
        return data.posed({"task": "mine.Counting", "num_classes": 1}, **splits, classes_hash=None)


class Count(Method):
    """The supervised loss of the task."""

    leaf, paper, title, terms = "mine/counts", "", "Count", ("count",)
    needs, tasks = frozenset({"labels"}), frozenset({"counting"})

    def losses(self, s, t, batch):
        return {"count": self.task.loss(s.logits, batch.y)}


class Follow(Count):
    """The teacher's counts."""

    title, terms, needs = "Follow", ("teacher",), frozenset({"teacher"})

    def losses(self, s, t, batch):
        return {"teacher": (s.logits - t.logits).abs().mean()}
'''
OWN = ("--config-dir", "conf", "method=[count,follow]", "teacher.method=${method.count}")


@pytest.fixture
def mine(kd: Kdbench) -> Kdbench:
    (kd.root / "mine.py").write_text(MINE)
    for group, name, text in (
        ("method", "count", "# @package method.count\n_target_: mine.Count\n"),
        ("method", "follow", "# @package method.follow\n_target_: mine.Follow\n"),
        ("scenario", "ordered", "# @package dataset.scenario\n_target_: mine.Ordered\n"),
        ("dataset", "dots", "_target_: mine.Dots\nname: dots\nmost: 8\n"),
    ):
        (kd.root / "conf" / group).mkdir(parents=True, exist_ok=True)
        (kd.root / "conf" / group / f"{name}.yaml").write_text(text)
    return kd


@pytest.mark.parametrize("where", [("dataset=dots",), ("dataset=digits", "dataset.per_class=20", "scenario=ordered")])
def test_whatever_is_asked_of_networks_is_trained_measured_and_shown(mine: Kdbench, where: tuple[str, ...]) -> None:
    result = mine("run", *OWN, *where, "protocol.epochs=3", "protocol.optimizer.lr=0.01")
    assert result.code == 0, result
    for name in ("count", "follow"):
        record = mine.record(name)
        assert (record.measure.name, record.measure.higher, record.measure.unit) == ("MAE", False, "dots")
        assert record.metrics
        assert record.metrics.last == pytest.approx(float(record.examples.mean()), rel=1e-4)
        assert record.metrics.last < 5
        curve = [value for value in record.curves["test/MAE"] if value is not None]
        assert min(curve) == record.metrics.oracle
    taught = mine.record("follow").teacher
    assert taught
    assert taught.agreement is None or taught.agreement.top1_percent is None
    again = mine("run", *OWN, *where, "protocol.epochs=3", "protocol.optimizer.lr=0.01")
    assert "0 trained, 2 already done" in again.out
    assert mine("report").code == 0
    (table,) = mine.results.glob("tables/*resnet8x0.25-lite-*.md")
    assert "MAE" in table.read_text()


def test_others_are_left_out_by_one_sentence(mine: Kdbench) -> None:
    result = mine("run", "--config-dir", "conf", "method=[scratch,count]", "dataset=dots", "protocol.epochs=1")
    assert result.code == 0
    assert len(result.messages) == 1
    assert "Scratch does not support the task 'counting'" in result.messages[0]
