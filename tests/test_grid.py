"""Grids: what survives kills, neighbours and broken files, and what is the same for all cells."""

from __future__ import annotations

import errno
import hashlib
import json
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALL, Kdbench
from test_cli import one_sentence

from kdbench.engine import cell, fit, run
from kdbench.errors import UserError
from kdbench.results import store
from kdbench.results.record import Record, parse

SEVERAL = ("method=[kd,fitnet,dml,dafl,byot]", "protocol.epochs=4", "dataset.per_class=20", "checkpoint_seconds=0")


def numbers(record: Record) -> dict[str, Any]:
    """All of a record that must not depend on how its cell came to be trained."""
    assert record.metrics
    return {
        "metrics": record.metrics,
        "curves": record.curves,
        "examples": (record.correct, record.scores),
        "teachers": (record.teacher, record.others),
        "images": record.cost.images_seen,
        "student forwards": record.cost.student_forwards,
        "teacher forwards": record.cost.teacher_forwards,
    }


def all_numbers(kd: Kdbench) -> dict[str, dict[str, Any]]:
    return {record.cell.id: numbers(record) for record in kd.records()}


def wait_for(kd: Kdbench, pattern: str, process: subprocess.Popen[str], count: int = 1) -> None:
    """Until `count` such files are in the working directory of a command that still runs."""
    end = time.monotonic() + 300
    while len(list(kd.root.glob(pattern))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


def other(kd: Kdbench, name: str, monkeypatch: pytest.MonkeyPatch) -> Kdbench:
    """The same command line in another folder, with nothing in common."""
    root = kd.root / name
    root.mkdir()
    monkeypatch.chdir(root)
    monkeypatch.setenv("KDBENCH_CACHE", str(root / "cache"))
    return Kdbench(root, root / "cache", kd._capfd)


# ---- killed -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_interrupted_grids_can_be_resumed(alone: Kdbench, signum: signal.Signals) -> None:
    kd = alone
    command = ["run", "method=[scratch,ls]", "protocol.epochs=40", "dataset.per_class=20", "checkpoint_seconds=0"]
    command += ["cohort.max_students=1"]  # one after the other
    process = kd.spawn(*command)
    wait_for(kd, "results/records/*.json", process)
    wait_for(kd, "runs/cells/*/last.ckpt", process)
    process.send_signal(signum)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signum
    assert err == "kdbench: interrupted; finished cells are kept, repeat the command to go on.\n"
    assert "Traceback" not in out
    assert [r.cell.method for r in kd.records()] == ["scratch"]
    assert not kd.leftovers()
    again = kd(*command)
    assert again.code == 0
    assert "1 trained, 1 already done" in again.out
    assert kd.record("ls").cost.images_seen == 40 * 200
    assert len(kd.record("ls").curves["test/top1"]) == 40


@pytest.mark.parametrize(
    "extra",
    [
        pytest.param((), id="plain"),
        pytest.param(("dataset.val=100", "protocol.eval_every=2"), id="val", marks=pytest.mark.slow),
    ],
)
def test_a_kill_changes_no_number(alone: Kdbench, monkeypatch: pytest.MonkeyPatch, extra: tuple[str, ...]) -> None:
    methods = "fitnet,dml" if extra else "fitnet,dafl"
    command = ["run", *SEVERAL, f"method=[{methods}]", "protocol.epochs=5", *extra]
    kd = other(alone, "killed", monkeypatch)
    rng = random.Random(len(extra))
    process = kd.spawn(*command)
    wait_for(kd, "runs/cells/????????????????/last.ckpt", process)  # of a cell, not of the teacher
    time.sleep(rng.random() / 4)
    process.kill()
    process.wait()
    assert kd(*command).code == 0
    assert not [path for path in kd.leftovers() if kd.results in path.parents]

    whole = other(alone, "whole", monkeypatch)
    assert whole(*command).code == 0
    assert all_numbers(kd) == all_numbers(whole)
    assert len(kd.records()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("extra", [(), ("dataset.val=100", "protocol.eval_every=2", "protocol.epochs=5")])
def test_many_kills_change_no_number(alone: Kdbench, monkeypatch: pytest.MonkeyPatch, extra: tuple[str, ...]) -> None:
    command = ["run", *SEVERAL, *extra]
    whole = other(alone, "whole", monkeypatch)
    process = whole.spawn(*command)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 0, err

    kd = other(alone, "killed", monkeypatch)
    rng = random.Random(1)
    kills = 0
    while True:
        process = kd.spawn(*command, PYTHONUNBUFFERED="1")
        assert process.stdout
        next((line for line in process.stdout if line.startswith("training ")), None)
        try:  # counted from the first step on, so that a slow start leaves something to kill
            _, err = process.communicate(timeout=1.5 * rng.random() if kills < 9 else 600)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0, err
        break
    assert kills >= 2
    assert len(kd.records()) == 5
    assert all_numbers(kd) == all_numbers(whole)


def test_a_kill_between_the_last_epoch_and_the_record(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kd.run("method=[kd]", "seed=3").code == 0
    expected = numbers(kd.record("kd", 3))
    shutil.rmtree(kd.results)

    def killed(*args: object, **kwargs: object) -> Record:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "make_record", killed)
        assert kd.run("method=[kd]", "seed=3").code == 130
    assert list(kd.work.glob("cells/*/last.ckpt"))
    assert kd.run("method=[kd]", "seed=3").code == 0
    assert numbers(kd.record("kd", 3)) == expected


def test_two_processes_share_a_grid(alone: Kdbench) -> None:
    kd = alone
    command = ["run", *SMALL, "method=[scratch,kd]", "seed=[0,1]", "protocol.epochs=4"]
    both = [kd.spawn(*command), kd.spawn(*command)]
    outputs = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    started = [line for out, _ in outputs for line in out.splitlines() if line.startswith("training ")]
    teachers = [line for line in started if line.startswith("training teacher")]
    # who comes first to a cell is chance, and so is in whose company it trains
    together = [re.match(r"training (\d+) in lockstep", line) for line in started if line not in teachers]
    assert len(teachers) == 1, started
    assert sum(int(many[1]) if many else 1 for many in together) == 4, started
    assert len(kd.records()) == 4
    summaries = [out.splitlines()[-1] for out, _ in outputs]
    assert sum(int(line.split()[0]) for line in summaries) == 4, summaries
    assert sum(int(line.split()[2]) for line in summaries) == 4, summaries


# ---- cells that fail --------------------------------------------------------------------------------------------


def test_a_diverged_cell_is_kept_and_counted(kd: Kdbench) -> None:
    result = kd.run("method=scratch", "protocol.optimizer.lr=1e9")
    one_sentence(result, "diverged: scratch", "'ce' was not finite in epoch 1", "lower")
    (record,) = kd.records()
    assert (record.status, record.metrics, record.correct) == ("diverged", None, None)
    again = kd.run("method=scratch", "protocol.optimizer.lr=1e9")
    one_sentence(again, "diverged: scratch")
    assert "training scratch" not in again.out


def test_a_diverged_teacher_is_trained_once_and_fails_its_cells_alone(alone: Kdbench) -> None:
    result = alone.run("method=[kd,dkd]", "protocol.optimizer.lr=1e9")
    assert result.code == 1
    assert [line.split()[:2] for line in result.messages] == [["failed:", "kd"], ["failed:", "dkd"]]
    assert all("the teacher resnet20 diverged" in line for line in result.messages)
    assert result.out.count("training teacher") == 1
    assert not list(alone.cache.rglob("*.safetensors"))
    assert not alone.records()


def test_a_method_that_does_not_fit_is_left_out(alone: Kdbench) -> None:
    result = alone.run("method=[fitnet,scratch]", "method.fitnet.hint=stage9")
    message = one_sentence(result, "left out: fitnet", "no tap 'stage9'", "choose another", code=0)
    assert "stage3" in message
    assert [r.cell.method for r in alone.records()] == ["scratch"]
    assert "training teacher" not in result.out  # known before a teacher was trained for it
    only = alone.run("method=[fitnet]", "method.fitnet.hint=stage9")
    one_sentence(only, "left out: fitnet")  # nothing ran: not a success


def test_wrong_weights_are_known_before_the_teacher_is_trained(alone: Kdbench) -> None:
    result = alone.run("method=[kd]", "+method.kd.weights.foo=1")
    one_sentence(result, "unknown weight 'foo'", "ce, kd")
    assert "training" not in result.out.replace("0 trained", "")


def test_an_exception_in_a_cell_leaves_the_others(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    from methods.controls.scratch import Scratch

    def broken(self: Scratch, *args: object) -> dict[str, torch.Tensor]:
        raise ZeroDivisionError("first line\nsecond line")

    monkeypatch.setattr(Scratch, "losses", broken)
    result = kd.run("method=[scratch,ls]", "pair.teacher=resnet8")
    message = one_sentence(result, "failed: scratch", "ZeroDivisionError: first line (traceback in ")
    log = Path(message.split("traceback in ")[1].rstrip(")"))
    assert "second line" in log.read_text()
    assert [r.cell.method for r in kd.records()] == ["ls"]


def test_an_edited_record(kd: Kdbench) -> None:
    kd.run("method=[scratch,ls]")
    (path,) = (kd.results / "records").glob("scratch-*.json")
    good = path.read_text()
    path.write_text(good.replace('"last": ', '"last": 1'))
    result = kd.run("method=[scratch,ls]", "seed=[0,1]")
    one_sentence(result, "failed: scratch", "was edited", "restore")
    assert "2 trained, 1 already done, 1 failed" in result.out
    path.write_text(good.replace('"schema_version": 1', '"schema_version": 99'))
    one_sentence(kd.run("method=scratch"), "schema version 99")
    one_sentence(kd("report"), "schema version 99")
    path.write_text(good)
    copy = path.with_name("copy-" + path.name)
    copy.write_text(good)
    one_sentence(kd.run("method=scratch"), "restore each from git or move it out")
    assert copy.read_text() == path.read_text() == good
    copy.unlink()
    assert kd.run("method=scratch").code == 0


def test_a_record_of_other_data_or_another_teacher(alone: Kdbench) -> None:
    kd = alone
    kd.run("method=[scratch,kd]")
    teacher = kd.record("kd").teacher
    assert teacher
    for folder in (kd.cache / "teachers", kd.results / "teachers"):
        shutil.rmtree(folder)
    assert kd("teacher", "train", *SMALL).code == 0  # the same bits again: nothing to complain about
    assert kd.run("method=[scratch,kd]").code == 0
    shutil.rmtree(kd.results / "teachers")  # it was kept again
    (card,) = (kd.cache / "teachers").glob("*.json")
    weights = card.with_suffix(".safetensors")
    changed = weights.read_bytes()[:-1] + b"\x01"
    weights.write_bytes(changed)
    data = json.loads(card.read_text())
    del data["seal"]
    card.write_text(json.dumps({**data, "sha256": hashlib.sha256(changed).hexdigest()}))
    result = kd.run("method=[scratch,kd]")
    one_sentence(result, "failed: kd", teacher.sha256[:12], "force=true")
    assert "1 already done" in result.out


def test_a_changed_teacher_file(alone: Kdbench) -> None:
    kd = alone
    kd("teacher", "train", *SMALL)
    (weights,) = (kd.cache / "teachers").glob("*.safetensors")
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    result = kd.run("method=[scratch,kd]")
    one_sentence(result, "failed: kd", "does not match the sha256", "delete both")
    assert [r.cell.method for r in kd.records()] == ["scratch"]
    weights.unlink()
    one_sentence(kd.run("method=[scratch,kd]"), "failed: kd", "is missing")
    weights.write_bytes(good)
    card = weights.with_suffix(".json")
    text = card.read_text()
    card.write_text(text[:50])
    one_sentence(kd.run("method=[scratch,kd]"), "failed: kd", "no teacher's card", "delete it")
    listed = kd("teacher", "list")
    assert listed.code == 0
    assert "no teacher's card" in listed.out
    card.write_text(text)
    assert kd.run("method=[scratch,kd]").code == 0


@pytest.mark.parametrize("key", ["paths.results", "paths.work"])
def test_a_file_in_the_way(kd: Kdbench, key: str) -> None:
    (kd.root / "file").write_text("mine")
    one_sentence(kd.run("method=[scratch,ls]", f"{key}=file/x"), "Cannot write to file/x", "choose another folder")
    assert (kd.root / "file").read_text() == "mine"


def test_a_full_disk_keeps_what_was_trained(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, text: str, overwrite: bool) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(store, "write_atomic", full)
        result = kd.run("method=scratch")
        one_sentence(result, "failed: scratch", "No space left on device", "free some space")
    assert not list(kd.results.rglob("*.json"))
    assert list(kd.work.glob("cells/*/last.ckpt"))

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(fit.Method, "training_step", refuse)  # only the record was missing
    assert kd.run("method=scratch").code == 0
    assert kd.record("scratch").cost.images_seen == 2 * 200


# ---- teachers ---------------------------------------------------------------------------------------------------


def test_a_small_teacher_is_kept_beside_its_records(alone: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    kd = alone
    first = kd.run("method=[kd]")
    assert first.out.index("training teacher resnet20") < first.out.index("training kd")
    kept = sorted(path.suffix for path in (kd.results / "teachers").iterdir())
    assert kept == [".json", ".safetensors"]
    shutil.rmtree(kd.cache)
    again = kd.run("method=[kd]", "seed=[0,1]")
    assert "training teacher" not in again.out
    one, two = kd.records()
    assert one.teacher == two.teacher

    monkeypatch.setattr("kdbench.teaching.teachers.KEPT_BYTES", 1000)
    kd.run("method=[kd]", "teacher.seed=1")
    assert sorted(path.suffix for path in (kd.results / "teachers").iterdir()) == kept
    assert len(list(kd.cache.rglob("*.safetensors"))) == 1


def test_a_teacher_may_have_seen_more_data_or_epochs(alone: Kdbench) -> None:
    result = alone.run("method=[kd]", "+teacher.dataset.per_class=40", "teacher.epochs=3")
    assert result.code == 0
    (card,) = (alone.cache / "teachers").glob("*.json")
    data = json.loads(card.read_text())
    assert data["recipe"]["dataset"]["per_class"] == 40
    assert len(data["curve"]) == data["recipe"]["protocol"]["epochs"] == 3
    assert alone.record("kd").cost.images_seen == 2 * 200


# ---- comparable by construction ---------------------------------------------------------------------------------


def test_a_cell_is_the_same_alone_and_in_a_grid(kd: Kdbench) -> None:
    kd.run("method=[kd]", "seed=1", "paths.results=alone")
    (alone_path,) = (kd.root / "alone" / "records").iterdir()
    kd.run("method=[scratch,dml,dafl,kd]", "seed=[0,1]")
    assert numbers(parse(alone_path.read_text())) == numbers(kd.record("kd", 1))
    assert numbers(kd.record("kd", 0)) != numbers(kd.record("kd", 1))


SPIES = '''
import torch

from methods.controls.scratch import Scratch

SEEN = {}


class Quiet(Scratch):
    def build(self, student, teacher, data):
        start = torch.cat([p.detach().flatten().clone() for p in self.student.parameters()])
        self.log_of = SEEN.setdefault(type(self).__name__, [start])

    def batch(self, batch):
        self.log_of += [batch.index.clone(), batch.view.clone(), batch.x.clone()]
        return batch


class Noisy(Quiet):
    """Draws random numbers wherever a method may."""

    def build(self, student, teacher, data):
        super().build(student, teacher, data)
        self.adapter = torch.nn.Linear(5, 5)
        self.other = self.spawn(1)

    def batch(self, batch):
        torch.rand(17)
        torch.rand(3, generator=self.rng)
        return super().batch(batch)

    def losses(self, s, t, batch):
        return {"ce": super().losses(s, t, batch)["ce"] * torch.rand(())}
'''


def test_all_methods_see_the_same_from_the_same_start(kd: Kdbench) -> None:
    (kd.root / "spies.py").write_text(SPIES)
    (kd.root / "conf" / "method").mkdir(parents=True)
    for name in ("quiet", "noisy"):
        (kd.root / "conf" / "method" / f"{name}.yaml").write_text(
            f"# @package method.{name}\n_target_: spies.{name.title()}\nweights: {{ce: 1.0}}\n"
        )
    result = kd.run("--config-dir", "conf", "method=[noisy,quiet]", "dataset.pad=1", "dataset.flip=true")
    assert result.code == 0, result
    import spies

    quiet, noisy = spies.SEEN["Quiet"], spies.SEEN["Noisy"]
    batches = 2 * 4  # two epochs of 200 images in batches of 64
    assert len(quiet) == len(noisy) == 1 + 3 * batches
    assert all(torch.equal(a, b) for a, b in zip(quiet, noisy, strict=True))
    order = [torch.cat(quiet[1 + 12 * epoch : 13 + 12 * epoch : 3]) for epoch in (0, 1)]
    assert all(torch.equal(seen.sort().values, torch.arange(200)) for seen in order)
    assert not torch.equal(*order)
    assert len({tuple(view.tolist()) for view in torch.cat(quiet[2::3])}) == 3 * 3 * 2
    assert kd.record("quiet").curves["loss/ce"] != kd.record("noisy").curves["loss/ce"]


# ---- validation and evaluation ----------------------------------------------------------------------------------


def test_validation_split_selects_an_epoch(kd: Kdbench) -> None:
    kd.run("method=scratch", "dataset.val=100", "protocol.epochs=4", "dataset.per_class=null")
    record = kd.record("scratch")
    assert record.metrics
    assert (record.dataset.n_train, record.dataset.n_val) == (1197, 100)
    val, test = record.curves["val/top1"], record.curves["test/top1"]
    best = max(value for value in val if value is not None)
    assert record.metrics.val_selected in [t for v, t in zip(val, test, strict=True) if v == best]
    assert record.metrics.last == pytest.approx(test[-1], abs=1e-4)
    assert record.metrics.oracle == pytest.approx(max(value or 0.0 for value in test), abs=1e-4)
    assert kd.run("method=scratch").code == 0
    assert next(r for r in kd.records() if not r.dataset.n_val).metrics.val_selected is None  # type: ignore[union-attr]


@pytest.mark.parametrize("val", [0, 50])
def test_the_last_epoch_is_always_evaluated(kd: Kdbench, val: int) -> None:
    common = ("method=scratch", "protocol.epochs=3", f"dataset.val={val}")
    assert kd.run(*common, "protocol.eval_every=2").code == 0
    (sparse,) = kd.records()
    assert kd.run(*common, "paths.results=dense").code == 0
    (path,) = (kd.root / "dense" / "records").iterdir()
    dense = parse(path.read_text())
    assert sparse.metrics
    assert dense.metrics
    assert sparse.metrics.last == dense.metrics.last
    assert sparse.correct == dense.correct
    assert sparse.curves["test/top1"] == [None, *dense.curves["test/top1"][1:]]
    assert sparse.curves["loss/ce"] == dense.curves["loss/ce"]
    assert (sparse.metrics.val_selected is not None) == bool(val)


def test_a_curve_holds_nothing_where_nothing_was_measured(kd: Kdbench) -> None:
    assert kd.run("method=[fitnet]", "protocol.epochs=3").code == 0
    curves = kd.record("fitnet").curves
    measured = {name: [value is not None for value in curve] for name, curve in curves.items()}
    assert measured["loss/hint"] == [True, False, False]  # the hint's stage is one epoch
    assert measured["loss/kd"] == measured["loss/ce"] == [False, True, True]
    assert measured["test/top1"] == [True, True, True]


# ---- settings of a method ---------------------------------------------------------------------------------------


def test_construct_hands_over_typed_settings() -> None:
    from kdbench.protocol import Protocol
    from methods.online.dml import DML

    made = cell.construct("dml", DML, {"peers": 3, "temperature": 2, "weights": {"ce": 1, "mutual": 1}}, Protocol())
    assert isinstance(made, DML)
    assert (made.num_peers, made.temperature) == (3, 2.0)
    assert isinstance(made.temperature, float)
    with pytest.raises(UserError, match=r"method.dml.weights.ce='x': "):
        cell.construct("dml", DML, {"weights": {"ce": "x"}}, Protocol())
    with pytest.raises(UserError, match=r"method.dml.weights.ce.until='x': "):
        cell.construct("dml", DML, {"weights": {"ce": {"start": 0, "end": 1, "until": "x"}}}, Protocol())


@pytest.mark.parametrize("cut", [{"limit_train_batches": 2}, {"max_steps": 3}, {"overfit_batches": 1}])
def test_what_did_not_see_its_images_becomes_no_record_and_no_teacher(
    alone: Kdbench, monkeypatch: pytest.MonkeyPatch, cut: dict[str, int]
) -> None:
    """Whatever it is that Lightning was told."""
    make = fit.make_trainer
    monkeypatch.setattr(fit, "make_trainer", lambda settings, **bench: make(settings, **bench, **cut))
    result = alone.run("method=[scratch,dafl]")
    assert (result.code, len(result.messages)) == (1, 2)
    assert all("and 2 epochs of its data have 400: take away the setting" in line for line in result.messages)
    assert "teacher resnet20 digits seed 0 saw " in result.messages[1]
    assert not alone.records()
    assert not list(alone.cache.rglob("*.safetensors"))
