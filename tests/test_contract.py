"""The contract's larger half: pools of teachers, chains of them, stages that begin, and what a kill must not change."""

from __future__ import annotations

import random
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL, Kdbench
from test_cli import one_sentence
from torch import nn

from kdbench.errors import UserError
from kdbench.method import Snapshot
from kdbench.plan import Experience, Stage, ends_of, experiences_of, plan_of
from kdbench.results.record import Record
from kdbench.teaching.recipe import TeacherConfig, recipe_of
from kdbench.teaching.teachers import Teachers

MINE = '''
import torch
import torch.nn.functional as F

from kdbench.losses import cross_entropy, kl
from kdbench.method import Method, Snapshot, Stage

SAID = []


class Average(Method):
    """The mean probability of all teachers, at T = 1."""

    leaf, paper, title, terms = "multi-teacher/ensemble-of-logits", "", "Average", ("kd",)
    needs = frozenset({"teachers"})

    def losses(self, s, t, batch):
        mean = torch.stack([F.softmax(each.logits, 1) for each in t.each]).mean(0)
        return {"kd": F.kl_div(F.log_softmax(s.logits, 1), mean, reduction="batchmean")}


class Union(Method):
    """Teachers of parts of the classes; each one's own part is matched."""

    leaf, paper, title, terms = "multi-teacher/unify-hierarchy", "", "Union", ("kd",)
    needs = frozenset({"teachers"})

    def losses(self, s, t, batch):
        parts = [kl(s.logits[:, list(spec.classes)], each.logits, 1.0) for spec, each in zip(self.teachers, t.each)]
        return {"kd": torch.stack(parts).mean()}


class Generations(Method):
    """Half of the time from scratch, then again from the start with the first half's student as teacher."""

    leaf, paper, title, terms = "teacher-free/born-again", "", "Generations", ("ce", "kd")
    needs = frozenset({"labels"})

    def build(self, student, teacher, data):
        self.past, self.untrained = Snapshot(self.student), Snapshot(self.student)

    def stages(self):
        return [Stage("first", 0.5), Stage("second", 0.5, self.born_again), Stage("end", 0.0, self.told)]

    def born_again(self):
        assert not self.training and torch.is_grad_enabled()
        self.noise = float(torch.rand(()))
        self.past.take(self.student)
        self.student.load_state_dict(self.untrained.net.state_dict())

    def told(self):
        SAID.append(("end", self.epoch))

    def losses(self, s, t, batch):
        raise NotImplementedError

    def turns(self, batch):
        s = self.student_out(batch.x)
        if self.stage == "first":
            yield "student", {"ce": cross_entropy(s.logits, batch.y), "kd": 0 * s.logits.mean()}
            return
        t = self.teacher_out(batch.x, self.past)
        yield "student", {"ce": cross_entropy(s.logits, batch.y), "kd": kl(s.logits, t.logits, 2.0)}


class Averaged(Method):
    """The average of the weights is deployed."""

    leaf, paper, title, terms, needs = "controls", "", "Averaged", ("ce",), frozenset({"labels"})

    def build(self, student, teacher, data):
        self.average = Snapshot(self.student)

    def losses(self, s, t, batch):
        return {"ce": cross_entropy(s.logits, batch.y)}

    def after_step(self, batch):
        self.average.follow(self.student, 0.9)

    def deployed(self):
        return self.average


class Centroids(torch.nn.Module):
    """Nearest class mean on the embedding."""

    def __init__(self, net, classes, width):
        super().__init__()
        self.net = net
        self.register_buffer("means", torch.zeros(classes, width))

    def forward(self, x):
        return -torch.cdist(self.net.tap(x, ("embed",))["embed"], self.means)


class Closed(Method):
    """No step at all: class means of the embeddings of an untrained network."""

    leaf, paper, title, terms, needs = "few-sample/layer-wise", "", "Closed", (), frozenset({"labels"})

    def build(self, student, teacher, data):
        self.means = Centroids(self.student, data.num_classes, student.shapes["embed"][0])

    def stages(self):
        return [Stage("estimate", 0.0, self.estimate)]

    @torch.no_grad()
    def estimate(self):
        batch = self.take(self.positions(), plain=True)
        embed = self.student.tap(batch.x, ("embed",))["embed"]
        for k in range(len(self.means.means)):
            self.means.means[k] = embed[batch.y == k].mean(0)

    def deployed(self):
        return self.means
'''


@pytest.fixture
def mine(kd: Kdbench) -> Kdbench:
    """The bench with these methods, found by their path alone."""
    write_methods(kd.root)
    return kd


def write_methods(root: Path) -> None:
    (root / "mine.py").write_text(MINE)
    (root / "conf" / "method").mkdir(parents=True)
    for name in ("Average", "Union", "Generations", "Averaged", "Closed"):
        text = f"# @package method.{name.lower()}\n_target_: mine.{name}\n"
        (root / "conf" / "method" / f"{name.lower()}.yaml").write_text(text)


def run(kd: Kdbench, *args: str) -> Any:
    return kd.run("--config-dir", "conf", *args)


def numbers(record: Record) -> tuple[Any, ...]:
    return record.curves, record.metrics, record.correct, record.teacher, record.others, record.cost.images_seen


# ---- the plan ---------------------------------------------------------------------------------------------------


def test_a_plan_divides_epochs_among_experiences_and_stages() -> None:
    stages = (Stage("train", 0.8), Stage("bias", 0.2), Stage("keep", 0.0))
    plan = plan_of([(each, stages) for each in experiences_of((4, 7, 10))], 30)
    assert [(e.experience.old, e.experience.seen) for e in plan[::3]] == [(0, 4), (4, 7), (7, 10)]
    spans = [(e.stage.name, e.start, e.length, e.closes) for e in plan]
    assert spans[:3] == [("train", 0, 8, False), ("bias", 8, 2, False), ("keep", 10, 0, True)]
    assert spans[6:] == [("train", 20, 8, False), ("bias", 28, 2, False), ("keep", 30, 0, True)]
    assert sum(e.length for e in plan) == 30


def test_a_stage_of_no_share_in_front_belongs_to_what_follows() -> None:
    plan = plan_of([(Experience(0, 0, 10), (Stage("make", 0.0), Stage("distil")))], 3)
    assert [(e.start, e.length, e.closes) for e in plan] == [(0, 0, False), (0, 3, False)]


@pytest.mark.parametrize("epochs", range(5, 40))
@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_experiences_have_nearly_equal_shares(epochs: int, parts: int) -> None:
    ends = ends_of(epochs, parts)
    lengths = np.diff((0, *ends))
    assert ends[-1] == epochs
    assert max(lengths) - min(lengths) <= 1


def test_too_few_epochs_and_negative_shares_are_refused() -> None:
    halves = (Stage("a", 0.5), Stage("b", 0.5))
    with pytest.raises(UserError, match="a method of 2 stages needs at least as many epochs, not 1"):
        plan_of([(Experience(0, 0, 10), halves)], 1)
    with pytest.raises(UserError, match="2 experiences share 3 epochs, and experience 1, of 2 stages, has 1 of them"):
        plan_of([(each, halves) for each in experiences_of((5, 10))], 3)
    with pytest.raises(UserError, match="from 0 on"):
        plan_of([(Experience(0, 0, 10), (Stage("a", -0.5), Stage("b", 1.5)))], 3)


# ---- snapshots --------------------------------------------------------------------------------------------------


def test_a_snapshot_is_frozen_and_follows() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    past = Snapshot(net)
    before = {name: value.clone() for name, value in past.net.state_dict().items()}
    net.train()(torch.randn(8, 3))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)
    assert all(torch.equal(value, before[name]) for name, value in past.net.state_dict().items())
    past.train()
    assert not any(module.training for module in past.modules())
    assert not any(parameter.requires_grad for parameter in past.parameters())
    past.follow(net, 0.75)
    now, theirs = past.net.state_dict(), net.state_dict()
    for name, value in before.items():
        want = theirs[name] if "num_batches" in name else 0.75 * value + 0.25 * theirs[name]
        assert torch.allclose(now[name], want, atol=1e-7), name
    past.take(net)
    assert all(torch.equal(value, theirs[name]) for name, value in past.net.state_dict().items())


# ---- teachers of all kinds --------------------------------------------------------------------------------------


def test_a_pool_of_teachers_beside_one(mine: Kdbench) -> None:
    result = run(mine, "method=[kd,average]", "teachers=[{seed: 1},{seed: 2}]")
    assert result.code == 0, result
    record = mine.record("average")
    assert record.teacher
    assert [record.teacher.name, *(each.name for each in record.others)] == ["resnet20"] * 3
    assert len({record.teacher.sha256, *(each.sha256 for each in record.others)}) == 3
    assert record.cost.teacher_forwards == 3 * record.cost.images_seen
    assert [each["seed"] for each in record.config["teachers"]] == [1, 2]
    # KD has one teacher, and is the KD of every other grid
    assert "teachers" not in mine.record("kd").config
    assert run(mine, "method=[kd]").out.splitlines()[-1].startswith("0 trained, 1 already done")


def test_one_teacher_is_a_pool_of_one(mine: Kdbench) -> None:
    """The mean of one distribution is that distribution: the same student as by KD without labels at T = 1."""
    assert run(mine, "method=[average,kd]", "method.kd.temperature=1", "method.kd.weights={ce: 0.0, kd: 1.0}").code == 0
    average, kd = mine.record("average"), mine.record("kd")
    assert average.curves["loss/kd"] == pytest.approx(kd.curves["loss/kd"], rel=1e-4)


def test_teachers_of_parts_of_the_classes(mine: Kdbench) -> None:
    parts = ("teacher.dataset={classes: [0,1,2,3,4]}", "teachers=[{dataset: {classes: [9,8,7,6,5]}}]")
    result = run(mine, "method=[kd,union]", "protocol.epochs=6", *parts)
    assert result.code == 0
    assert len(result.messages) == 1
    assert result.messages[0].startswith("left out: kd")
    assert "knows 5 of the 10 classes" in result.messages[0]
    record = mine.record("union")
    first, *_, last = record.curves["loss/kd"]
    assert first is not None
    assert last is not None
    assert last < first
    # each was measured on the images of its own classes
    assert record.teacher
    assert record.teacher.as_fed == record.teacher.accuracy
    both = run(mine, "method=[union]", parts[0], "teachers=[{dataset: {classes: [4,5,6,7]}}]")
    one_sentence(both, "know 8 of the 10 classes", "add teachers")


def test_teachers_that_know_what_the_student_does_not(mine: Kdbench) -> None:
    common = ("method=[union]", "dataset.classes=[0,1,2,3,4,5]")
    result = run(mine, *common, "teacher.dataset={classes: [0,1,2]}", "teachers=[{dataset: {classes: [3,4,9]}}]")
    one_sentence(result, "knows '9', which the student does not learn")


def test_an_assistant_has_a_teacher_of_its_own(mine: Kdbench) -> None:
    chain = ("teacher=assistant", "teacher.teacher.name=resnet32", "pair=resnet20-resnet8x0.25")
    result = run(mine, "method=[kd]", *chain)
    assert result.code == 0, result
    recipe = mine.record("kd").config["teacher"]
    assert (recipe["name"], recipe["teacher"]["name"], recipe["method"]["_target_"]) == (
        "resnet20",
        "resnet32",
        "methods.logits.kd.KD",
    )
    trained = [line for line in result.out.splitlines() if line.startswith("training teacher")]
    assert ["resnet20" in line for line in trained] == [True, False] or len(trained) == 2
    cards = {each.card.name for each in Teachers(mine.results, mine.cache).all() if each.card}
    assert {"resnet20", "resnet32"} <= cards
    # trained once, by its own record, like any cell
    records = list((mine.cache / "teachers" / "records").glob("teacher-resnet32-resnet20-*.json"))
    assert len(records) == 1
    assert "0 trained, 1 already done" in run(mine, "method=[kd]", *chain).out


def test_recipes_without_chains_are_what_they_were(tmp_path: Path) -> None:
    scratch = {"_target_": "methods.controls.scratch.Scratch"}
    from kdbench.protocol import Protocol

    known = partial(Teachers(tmp_path, tmp_path).of_hash, dataset=None)
    recipe = recipe_of(TeacherConfig(method=scratch), {"name": "digits"}, Protocol(), known=known, pair="resnet20")
    assert set(recipe) == {"name", "method", "dataset", "protocol", "seed"}
    own = TeacherConfig(method=scratch, epochs=7, protocol={"batch_size": 5})
    changed = recipe_of(own, {"name": "digits"}, Protocol(), known=known, pair="resnet20")
    assert changed == {**recipe, "protocol": {**recipe["protocol"], "epochs": 7, "batch_size": 5}}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (("teacher=assistant",), "teacher.teacher.name"),
        (("teacher.method=${method.kd}",), "needs a teacher of its own"),
        (("teacher.teacher={method: {_target_: methods.controls.scratch.Scratch}, name: vgg8}",), "needs no teacher"),
        (("teacher.protocol={epoks: 3}",), "teacher.protocol: "),
        (("teacher.protocol={optimizer: {_target_: torch.optim.Adam, lr: 0.1, momentum: 1.0}}",), "momentum"),
        (("teachers=[{sed: 1}]",), "teachers[0] has an unknown setting 'sed'"),
        (("teachers=[{seed: -1}]",), "teachers[0]"),
        (("teachers=[{dataset: {clases: 3}}]",), "teachers[0].dataset.clases"),
        (("teachers=3",), "teachers"),
    ],
)
def test_wrong_teachers_are_one_sentence(mine: Kdbench, settings: tuple[str, ...], sentence: str) -> None:
    one_sentence(run(mine, "method=[kd]", *settings), sentence)


# ---- plans that begin, and methods that take --------------------------------------------------------------------


def test_a_method_without_epochs(mine: Kdbench) -> None:
    """It is judged once, alone as in company; what it took counts as seen, and nothing else."""
    assert run(mine, "method=[closed]", "paths.results=alone").code == 0
    assert run(mine, "method=[closed,scratch]", "protocol.eval_every=1").code == 0
    (alone,) = Kdbench(mine.root, mine.cache, mine._capfd).records() and [mine.record("closed")]
    assert alone.cost.images_seen == 200
    assert alone.metrics
    assert alone.metrics.last > 30
    assert [value is None for value in alone.curves["test/top1"]] == [True, False]
    from kdbench.results.store import Store

    (single,) = Store(mine.root / "alone").load()
    assert numbers(single) == numbers(alone)


STAGED = ("method=[generations,averaged,kd]", "protocol.epochs=6", "checkpoint_seconds=0")


@pytest.mark.slow  # `test_every_method` interrupts every method so, in one process
def test_killed_after_a_checkpoint_has_moved(alone: Kdbench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each kill comes after a fresh checkpoint: what was begun is neither done again nor forgotten."""
    kd = alone
    write_methods(kd.root)
    assert run(kd, *STAGED).code == 0
    expected = {name: numbers(kd.record(name)) for name in ("generations", "averaged", "kd")}
    import mine as module

    assert module.SAID == [("end", 5)]
    import shutil

    shutil.rmtree(kd.results / "records")
    rng, kills = random.Random(0), 0
    command = ["run", "--config-dir", "conf", *SMALL, *STAGED]
    for _ in range(30):
        marks = kd.checkpoints()
        process = kd.spawn(*command, PYTHONPATH=f"{kd.root}")
        try:
            while process.poll() is None:
                now = kd.checkpoints()
                if now and now != marks and kills < 6:
                    process.wait(timeout=0.05 * rng.random())
                    process.kill()
                    kills += 1
                    break
        except subprocess.TimeoutExpired:
            process.kill()
            kills += 1
        _, err = process.communicate()
        if process.returncode == 0:
            break
    assert process.returncode == 0, err
    assert kills >= 3
    assert {name: numbers(kd.record(name)) for name in expected} == expected


def test_taking_and_keeping_has_limits(mine: Kdbench) -> None:
    (mine.root / "greedy.py").write_text(
        "from methods.controls.scratch import Scratch\n\n"
        "class Greedy(Scratch):\n"
        "    def after_step(self, batch):\n"
        "        self.keep(batch.index)\n"
    )
    (mine.root / "conf" / "method" / "greedy.yaml").write_text(
        "# @package method.greedy\n_target_: greedy.Greedy\nweights: {ce: 1.0}\n"
    )
    one_sentence(run(mine, "method=[greedy]"), "keeps 64 samples, and there is memory for 0")
