"""Bad input to what scenarios, tasks and several teachers added: one sentence with the mend, before anything trains."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Kdbench
from test_cli import one_sentence

DIGITS = ("protocol.epochs=2", "dataset.per_class=20")
INCREMENTAL = (*DIGITS, "scenario=class_incremental")
EPISODES = (*DIGITS, "method=[scratch]", "scenario=few_shot")
PAIRED = (*DIGITS, "method=[kd]", "scenario=paired")
DENSE = ("dataset=folder", "dataset.name=masks", "protocol.epochs=1", "pair=fpn-resnet20-fpn-resnet8")
GAME = ("dataset=CartPole-v1", "pair=mlp-64-mlp-8", "protocol.epochs=1", "dataset.steps=64", "dataset.episodes=2")
POOL = (*DIGITS, "method=[uhc]")
ANY = (*DIGITS, "method=[kd]")
OF_3_AND_9 = ("teachers=[{dataset: {classes: [3,9]}}]",)
GREY = ("dataset.scenario.degrade=grey", "dataset.scenario.amount=null")
COARSE = ("dataset.scenario.degrade=coarse", "dataset.scenario.amount=2")
CROSS = (
    "dataset=digits_m",
    "dataset.scenario.degrade=null",
    "dataset.scenario.amount=null",
    "dataset.scenario.dataset=digits",
)

CASES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "a stream that is not offered": (
        (*DIGITS, "method=[mean_teacher]"),
        ("MeanTeacher needs 'unlabelled'", "digits offers no stream", "as scenario=semi_supervised"),
    ),
    "classes that cannot be divided": (
        (*INCREMENTAL, "method=[replay]", "dataset.scenario.tasks=3"),
        ("tasks=3 cannot divide the 10 classes of digits", "choose another number"),
    ),
    "fewer epochs than experiences": (
        (*INCREMENTAL, "method=[replay]", "dataset.scenario.tasks=5"),
        ("5 experiences share 2 epochs", "raise protocol.epochs"),
    ),
    "too few classes for an episode": (
        (*EPISODES, "dataset.scenario.base=7"),
        ("dataset.scenario.way=5", "3 are new", "choose a lower way"),
    ),
    "too few samples for an episode": (
        (*EPISODES, "dataset.scenario.base=5", "dataset.scenario.shot=500"),
        ("500 + 15 images", "has 68", "lower one of them"),
    ),
    "teachers that do not cover the union": (
        (*POOL, "teacher.dataset={classes: [0,1,2]}", "teachers=[{dataset: {classes: [3,4]}}]"),
        ("know 5 of the 10 classes", "add teachers"),
    ),
    "a class unknown to the student": (
        (*POOL, "dataset.classes=[0,1,2,3]", "teacher.dataset={classes: [0,1,2]}", *OF_3_AND_9),
        ("knows '9', which the student does not learn", "choose its classes among the student's"),
    ),
    "one teacher of some classes": (
        (*ANY, "teacher.dataset={classes: [0,1,2]}"),
        ("does not learn the classes '3', '4'", "as null does"),
    ),
    "a teacher that looks at noise": (
        PAIRED,
        ("learns from what students see of digits", "teacher.dataset.scenario=null"),
    ),
    "a teacher that looks at coarse pixels": ((*PAIRED, *COARSE), ("learns from what students see of digits",)),
    "a teacher that looks at noise, and would be shown none": (
        (*ANY, "teacher.dataset.scenario={_target_: kdbench.data.scenarios.Paired, degrade: noise, amount: 32.0}"),
        ("learns from what students see of digits",),
    ),
    "a teacher of the other domain": (
        (*PAIRED, *CROSS, "teacher.dataset.scenario=null"),
        ("learns from what students see of digits_m", "what teachers see (digits)", "{name: digits, scenario: null}"),
    ),
    "a teacher of grey images": (
        ("method=[kd]", "dataset=shapes_masks", *DENSE[2:], "scenario=paired", *GREY),
        ("learns from what students see of shapes_masks",),
    ),
    "memory exceeded": (
        (*INCREMENTAL, "method=[icarl]", "dataset.scenario.tasks=2", "dataset.scenario.memory=3"),
        ("memory for 3", "raise dataset.scenario.memory"),
    ),
    "an unknown scenario": ((*ANY, "scenario=class_incremantal"), ("did you mean class_incremental",)),
    "an unknown key": (
        (*ANY, "scenario=class_incremental", "+dataset.scenario.taks=3"),
        ("unknown key 'dataset.scenario.taks' of ClassIncremental", "did you mean tasks?"),
    ),
    "a scenario on an environment": (
        (*GAME, "method=[actor_critic]", "scenario=robust"),
        ("Environment makes its own", "set scenario=null"),
    ),
    "a scenario of classes on depth": (
        ("dataset=shapes_depth", "method=[depth_proxy]", "pair=fpn-resnet20-fpn-resnet8", "scenario=robust"),
        ("Robust asks for a class of each image", "scenario=null"),
    ),
    "masks of another size": (
        ("method=[cwd]", *DENSE, "dataset.name=odd"),
        ("odd/train_masks.npy is of 16x12, but its images are 16x16", "kdbench data prepare folder"),
    ),
    "a method on another task": (
        (*DIGITS, "method=[cwd]"),
        ("CWD does not support the task 'classification', only segmentation",),
    ),
    "a method of classes on masks": (("method=[dkd]", *DENSE), ("DKD does not support the task 'segmentation'",)),
    "a classifier on masks": (
        ("method=[cwd]", *DENSE[:3]),
        ("resnet8x0.25 is no network for segmentation", "choose from fpn-resnet8"),
    ),
    "a network for masks on classes": (
        (*ANY, "pair=fpn-resnet20-fpn-resnet8"),
        ("fpn-resnet8 is no network for classification", "choose from resnet20"),
    ),
    "a classifier that plays": (
        ("method=[actor_critic]", "dataset=CartPole-v1"),
        ("resnet8x0.25 is no network for policy", "choose from mlp-8"),
    ),
    "data of no task": (
        ("method=[scratch]", "dataset=shapes_boxes"),
        ("shapes_boxes: there is no task 'detection' here", "choose from"),
    ),
    "teachers that are no mappings": ((*ANY, "teachers=[1]"), ("teachers.0=1",)),
    "teachers that are no list": ((*ANY, "teachers={seed: 1}"), ("teachers={seed: 1} is no value",)),
    "a teacher of a method by name": ((*ANY, "teachers=[{method: kd}]"), ("teachers[0]: method='kd'",)),
    "a teacher of nothing": (
        (*ANY, "teacher.method=${method.kd}"),
        ("KD needs a teacher of its own", "teacher=assistant teacher.teacher.name=NETWORK"),
    ),
    "a teacher that cannot be trained so": (
        (*GAME, "method=[policy_distillation]"),
        ("Scratch does not support the task 'policy'",),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_sentence_before_anything_trains(kd: Kdbench, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command, words = CASES[case]
    monkeypatch.setenv("KDBENCH_DATA", str(kd.root))
    if "dataset=folder" in command:
        folders(kd.root)
    result = kd("run", *command)
    one_sentence(result, *words)
    assert "training " not in result.out
    assert not kd.records()


def folders(root: Path) -> None:
    rng = np.random.default_rng(0)
    for name, size in (("masks", (16, 16)), ("odd", (16, 12))):
        (root / name).mkdir()
        for split in ("train", "test"):
            np.save(root / name / f"{split}_images.npy", rng.integers(0, 256, (8, 16, 16, 1), dtype=np.uint8))
            np.save(root / name / f"{split}_masks.npy", rng.integers(0, 2, (8, *size), dtype=np.uint8))
        (root / name / "meta.json").write_text(json.dumps({"classes": ["a", "b"], "source": "random"}))


def test_an_extra_that_is_not_installed(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    one_sentence(kd("run", *GAME, "method=[actor_critic]"), "not installed", "pip install 'kdbench[rl]'")


@pytest.mark.parametrize(
    ("hook", "line", "word"),
    [
        ("__init__", "self.data = 3", "data"),
        ("__init__", "self.start = 0.5", "start"),
        ("__init__", "self.student = None", "student"),
        ("__init__", "self.epoch = 7", "epoch"),
        ("build", "self.data = data.mean", "data"),
        ("build", "self.take = torch.nn.Linear(2, 2)", "take"),
        ("build", "self.keep = self.student", "keep"),
        ("build", "self.rng = torch.Generator()", "rng"),
        ("build", "self.forwards = 0", "forwards"),
        ("build", "self.student = torch.nn.Sequential(self.student)", "student"),
    ],
)
def test_words_of_the_contract_are_not_a_methods_own(kd: Kdbench, hook: str, line: str, word: str) -> None:
    arguments = {"__init__": "self, **kwargs", "build": "self, student, teacher, data"}[hook]
    more = "super().__init__(**kwargs)" if hook == "__init__" else "pass"
    (kd.root / "mine.py").write_text(
        "import torch\n\nfrom methods.controls.scratch import Scratch\n\n\nclass Mine(Scratch):\n"
        f"    def {hook}({arguments}):\n        {more}\n        {line}\n"
    )
    (kd.root / "conf" / "method").mkdir(parents=True)
    (kd.root / "conf" / "method" / "mine.yaml").write_text("# @package method.mine\n_target_: mine.Mine\n")
    result = kd.run("--config-dir", "conf", "method=[mine]")
    one_sentence(result, f"Mine sets self.{word}", "choose another name")
    assert not kd.records()
