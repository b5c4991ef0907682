"""What changes a number is part of a cell's identity, or refused; settings that nothing reads are errors."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from conftest import Kdbench
from test_cli import one_sentence

from kdbench.construct import check_optimizer
from kdbench.engine.job import INSTEAD, TrainerConfig
from kdbench.errors import UserError
from kdbench.protocol import Protocol

MINE = '''
"""A method of one's own."""
from kdbench.losses import cross_entropy, kl
from kdbench.method import Method


class Mine(Method):
    """CE + KL."""

    leaf, paper, title, terms = "logits/softened-labels", "me2026", "Mine", ("ce", "kd")

    def losses(self, s, t, batch):
        return {"ce": cross_entropy(s.logits, batch.y), "kd": FACTOR * kl(s.logits, t.logits, 4.0)}
'''
YAML = "# @package method.mine\n_target_: mine.Mine\nweights: {ce: 0.1, kd: 0.9}\n"


@pytest.fixture
def mine(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's method beside the command line; `edit` it as a new process would find it."""
    (kd.root / "conf" / "method").mkdir(parents=True)
    (kd.root / "conf" / "method" / "mine.yaml").write_text(YAML)
    path = kd.root / "mine.py"
    edit(path, MINE.replace("FACTOR", "1.0"))
    return path


def edit(path: Path, text: str) -> None:
    path.write_text(text)
    sys.modules.pop("mine", None)
    import linecache

    linecache.clearcache()


OWN = ("--config-dir", "conf", "method=mine")


def test_a_method_whose_code_changed_is_not_already_done(kd: Kdbench, mine: Path) -> None:
    first = kd.run(*OWN)
    assert first.code == 0, first.err
    curves = kd.record("mine").curves
    edit(
        mine, "# a comment\n" + MINE.replace("FACTOR", "1.0").replace('"""CE + KL."""', '"""The sum\n\n    of two."""')
    )
    assert "1 already done" in kd.run(*OWN).out
    edit(mine, MINE.replace("FACTOR", "0.0"))
    changed = kd.run(*OWN)
    assert changed.code == 1
    assert "other code of Mine" in changed.out
    assert "force=true" in changed.out
    assert kd.record("mine").curves == curves
    assert kd.run(*OWN, "force=true").code == 0
    assert kd.record("mine").curves != curves
    assert "1 already done" in kd.run(*OWN).out


def test_code_that_says_that_earlier_code_did_the_same_keeps_its_records(kd: Kdbench, mine: Path) -> None:
    edit(mine, MINE.replace("FACTOR", "1.0"))
    assert kd.run(*OWN).code == 0
    record = kd.record("mine")
    told = MINE.replace("FACTOR", "1.0 + 0.0").replace(
        "    def", f"    earlier = frozenset({{'{record.method.source}'}})\n\n    def", 1
    )
    edit(mine, told)
    assert "1 already done" in kd.run(*OWN).out
    assert "which did the same" in kd("show", record.cell.id).out
    edit(mine, told.replace("earlier = frozenset({'", "earlier = frozenset({'0"))
    assert "other code of Mine" in kd.run(*OWN).out


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            MINE.replace("leaf, paper, title, terms", "paper, title, terms").replace('"logits/softened-labels", ', ""),
            "leaf",
        ),
        (MINE.replace("logits/softened-labels", "logits/softend-labels"), "did you mean logits/softened-labels"),
        (MINE.replace('"Mine", ("ce"', '3, ("ce"'), "Mine.title = 3"),
        (MINE.replace("leaf, paper", "needs, leaf, paper").replace('= "logits', '= "teacher", "logits'), "Mine.needs"),
    ],
    ids=["no leaf", "leaf misspelt", "title no text", "needs a word"],
)
def test_declarations_are_checked_before_anything_is_trained(kd: Kdbench, mine: Path, text: str, told: str) -> None:
    edit(mine, text.replace("FACTOR", "1.0"))
    result = kd.run(*OWN)
    one_sentence(result)
    assert told in result.err
    assert not kd.results.exists()


@pytest.mark.parametrize("key", sorted(INSTEAD))
def test_settings_of_the_trainer_that_change_numbers_are_refused_with_what_to_do_instead(kd: Kdbench, key: str) -> None:
    result = kd.run("method=scratch", f"+trainer.{key}=1")
    one_sentence(result)
    assert INSTEAD[key] in result.err
    assert not kd.results.exists()


def test_the_rest_of_lightnings_trainer_is_refused_too() -> None:
    import inspect

    import pytorch_lightning as pl

    theirs = set(inspect.signature(pl.Trainer.__init__).parameters) - {"self"}
    assert set(TrainerConfig.model_fields) <= theirs
    assert set(INSTEAD) <= theirs
    assert not set(INSTEAD) & set(TrainerConfig.model_fields)


@pytest.mark.parametrize(
    "setting",
    [
        "+foo=1",
        "+pair.foo=1",
        "++paths.foo=1",
        "+teacher.epoch=5",
        "+teacher.checkpoint=none.pth",
        "+cohort.foo=1",
        "+engine.foo=1",
        "+protocol.foo=1",
        "+protocol.schedule.foo=1",
        "+protocol.optimizer.foo=1",
        "+dataset.foo=1",
        "+trainer.plugins=[]",
        "+method.scratch.foo=1",
        "protocol.epochs=true",
        "protocol.lr_for={a: true}",
        "checkpoint_seconds=true",
        "trainer.accelerator=tpu",
        "trainer.devices=0",
        "+trainer.deterministic=3",
        "seed=99999999999999999999999999",
        f"seed={'1' * 400}",
        "protocol.epochs=99999999999999999999",
    ],
)
def test_what_nothing_reads_or_makes_no_sense_is_one_sentence(kd: Kdbench, setting: str) -> None:
    result = kd("run", "method=scratch", setting)
    one_sentence(result)
    assert setting.lstrip("+~").partition("=")[0].rpartition(".")[2] in result.err
    assert not kd.results.exists()


@pytest.mark.parametrize(
    "setting",
    [
        "method.kd.temperature=nan",
        "method.kd.weights.kd=inf",
        "method.kd.weights.kd={start: 1, end: -inf}",
        "protocol.optimizer.lr=1e400",
        "protocol.schedule.milestones=[nan]",
        "+protocol.lr_for.vgg8=nan",
        "dataset.mean=[inf]",
        "checkpoint_seconds=nan",
        "+teacher.method.foo=nan",
    ],
)
def test_a_number_that_is_none_is_told_by_its_name(kd: Kdbench, setting: str) -> None:
    result = kd("run", "method=kd", setting)
    one_sentence(result)
    assert setting.lstrip("+").partition("=")[0] in result.err
    assert not kd.results.exists()


def test_a_debug_run_stores_nothing_and_reaches_every_stage(alone: Kdbench) -> None:
    result = alone("run", "method=[scratch,kd,fitnet,dafl,dml]", "debug=fast", "protocol.epochs=60")
    assert result.code == 0, result.err
    assert "5 trained" in result.out
    assert "nothing was stored" in result.out
    assert not alone.results.exists()
    assert not (alone.cache / "teachers").exists()
    assert not (alone.cache / "views").exists()
    assert [path for path in alone.root.iterdir() if path != alone.cache] == []
    refused = alone("teacher", "train", "debug=fast")
    one_sentence(refused)


def test_a_debug_run_leaves_a_store_alone_that_has_its_cells(kd: Kdbench) -> None:
    assert kd.run("method=scratch").code == 0
    before = {path: path.read_bytes() for path in kd.results.rglob("*") if path.is_file()}
    result = kd.run("method=scratch", "debug=fast", "dataset.per_class=10")
    assert result.code == 0
    assert "1 trained" in result.out
    same = kd.run("method=scratch", "debug=fast")  # as short as the cell that is there
    assert "1 trained" in same.out
    assert "leaderboard" not in same.out
    assert {path: path.read_bytes() for path in kd.results.rglob("*") if path.is_file()} == before


def test_a_debug_run_shows_the_traceback_of_what_fails(kd: Kdbench, mine: Path) -> None:
    edit(mine, MINE.replace("FACTOR", "batch.nothing"))
    result = kd("run", *OWN, "debug=fast")
    assert result.code == 1
    assert "in losses" in result.out
    assert "'Batch' object has no attribute 'nothing'" in result.out


def test_what_was_asked_of_the_device_stands_in_the_record_and_a_profile_in_a_file(kd: Kdbench) -> None:
    asked = ("+trainer.deterministic=true", "+trainer.benchmark=false", "+trainer.profiler=simple")
    try:
        assert kd.run("method=scratch", *asked).code == 0
    finally:
        torch.use_deterministic_algorithms(False)
    assert kd.record("scratch").environment.path.endswith("; deterministic=true; benchmark=false")
    (profile,) = (kd.work / "profiles").glob("fit-scratch-*.txt")
    assert "training_step" in profile.read_text()


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("protocol.optimizer.momentum=null", "protocol.optimizer.momentum=None"),
        ("protocol.optimizer.momentum=true", "protocol.optimizer.momentum=True"),
        ("+protocol.optimizer.nesterov=1", "give true or false"),
        ("protocol.optimizer={_target_: torch.optim.LBFGS, momentum: 0.9}", "~protocol.optimizer.momentum"),
        ("protocol.optimizer.weight_decay=-1", "Invalid weight_decay value"),
        ("+teacher.method.foo=1", "teacher.method"),
        ("+teacher.method.weights={kd: 1}", "~teacher.method.weights.kd"),
        ("trainer.devices=-1", "trainer.devices=-1"),
        ("trainer.devices=[]", "trainer.devices=[]"),
    ],
)
def test_the_setting_that_is_wrong_is_named(kd: Kdbench, setting: str, told: str) -> None:
    result = kd("run", "method=kd", setting)
    one_sentence(result)
    assert told in result.err
    assert not kd.results.exists()


@pytest.mark.parametrize("optimizer", ["LBFGS", "SparseAdam"])
def test_an_optimizer_that_cannot_step_is_refused(optimizer: str) -> None:
    protocol = Protocol(optimizer={"_target_": f"torch.optim.{optimizer}", "lr": 0.1})
    with pytest.raises(UserError, match=f"{optimizer} with lr=0.1 cannot train a network"):
        check_optimizer(protocol)


def test_an_optimizer_that_does_not_know_a_setting_says_how_to_leave_it_out(kd: Kdbench) -> None:
    result = kd("run", "method=scratch", "protocol.optimizer={_target_: torch.optim.Adam, lr: 0.01}")
    one_sentence(result)
    assert "~protocol.optimizer.momentum" in result.err
