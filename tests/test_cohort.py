"""Cohorts: whatever company a cell is in, and however its teacher's outputs come to it, its numbers are the same."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import SMALL, Kdbench, Result
from places import equal, records_in
from test_cli import one_sentence
from test_grid import all_numbers, numbers, other, wait_for

from kdbench.data.views import view_of
from kdbench.teaching.frozen import FrozenTeacher

ALONE = "cohort.max_students=1"


def plug(kd: Kdbench, code: str, **methods: str) -> None:
    """A user's methods, in ``conf`` and ``mine.py``."""
    (kd.root / "mine.py").write_text(code)
    (kd.root / "conf" / "method").mkdir(parents=True, exist_ok=True)
    for name, settings in methods.items():
        text = f"# @package method.{name}\n_target_: mine.{name.title()}\n{settings}\n"
        (kd.root / "conf" / "method" / f"{name}.yaml").write_text(text)


def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Fills with the number of images of each run of a fast teacher."""
    rows: list[int] = []
    original = FrozenTeacher._run

    def spy(self: FrozenTeacher, x: torch.Tensor) -> dict[str, torch.Tensor]:
        rows.append(len(x))
        return original(self, x)

    monkeypatch.setattr(FrozenTeacher, "_run", spy)
    return rows


def test_the_teacher_runs_once_for_all(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kd.run("method=[kd]", "seed=9").code == 0  # trains the teacher
    rows = asked(monkeypatch)
    assert kd.run("method=[kd,dkd,at,fitnet_joint,sp,rkd]", "engine.view_cache=false").code == 0
    training = 2 * 4  # two epochs of 200 images in batches of 64
    assert len(rows) == training + 5  # and on 500 test images, 100 at a time, to compare it with the plain network


def test_what_is_cached_is_what_is_live(kd: Kdbench) -> None:
    common = ("method=[kd,rkd,at]", "dataset.pad=1", "dataset.flip=true", "protocol.epochs=3")
    assert kd.run(*common, "engine.view_cache=false", "paths.results=live").code == 0
    assert kd.run(*common, ALONE, "paths.results=cold").code == 0
    assert kd.run(*common, ALONE, "paths.results=warm").code == 0
    equal(kd, "live", "cold")
    equal(kd, "live", "warm")


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "meta"])
def test_a_damaged_cache_changes_no_number(alone: Kdbench, damage: str) -> None:
    kd = alone
    assert kd.run("method=[kd,rkd]", "paths.results=whole").code == 0
    (values,) = (kd.cache / "views").glob("*/values.bin")
    meta = values.parent / "meta.json"
    if damage == "flip":
        data = bytearray(values.read_bytes())
        for k in range(0, len(data), 97):
            data[k] ^= 1
        values.write_bytes(data)
    elif damage == "truncate":
        values.write_bytes(values.read_bytes()[: values.stat().st_size // 2])
    elif damage == "delete":
        values.unlink()
    else:
        meta.write_text("{}")
    result = kd.run("method=[kd,rkd]", "paths.results=again")
    assert result.code == 0
    assert ("begun anew" in result.out) == (damage != "flip")  # a few bad rows are just computed again
    equal(kd, "whole", "again")


def test_the_cache_can_be_filled_ahead(alone: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    kd, views = alone, ("dataset.pad=1", "dataset.flip=true", "seed=[4,5]")
    first = kd("teacher", "cache", *SMALL, *views)
    assert first.code == 0, first
    seen = len({(i, *view) for seed in (4, 5) for epoch in range(2) for i, view in enumerate(views_seen(seed, epoch))})
    assert f"{seen} views to know, 0 in the cache" in first.out
    assert f"{seen} computed, 0 were there" in first.out
    assert f"0 computed, {seen} were there" in kd("teacher", "cache", *SMALL, *views).out

    rows = asked(monkeypatch)
    assert kd.run("method=[kd,rkd]", *views).code == 0
    assert sum(rows) == 500  # the test images on which it is compared with the plain network
    every = kd("teacher", "cache", "--all", *SMALL, *views)
    assert f"{200 * 3 * 3 * 2 - seen} computed, {seen} were there" in every.out


def views_seen(seed: int, epoch: int) -> list[list[int]]:
    return view_of(seed, epoch, torch.arange(200), 1, True).tolist()


def test_there_is_nothing_to_fill_without_a_cache(kd: Kdbench) -> None:
    result = kd("teacher", "cache", *SMALL, "engine.view_cache=false")
    one_sentence(result, "no view cache", "engine.view_cache=true")


# ---- members that leave -----------------------------------------------------------------------------------------


def test_a_member_that_diverges_leaves_the_others_as_they_are(kd: Kdbench) -> None:
    result = kd.run("method=[scratch,kd,dkd]", "method.kd.weights.kd=1e30", "protocol.epochs=3")
    one_sentence(result, "diverged: kd", "was not finite in epoch")
    assert kd.run("method=[scratch,dkd]", "protocol.epochs=3", ALONE, "paths.results=alone").code == 0
    for name in ("scratch", "dkd"):
        assert numbers(kd.record(name)) == numbers(records_in(kd, "alone")[name])


FAILS = """
import torch

from methods.logits.kd import KD


class Fails(KD):
    def losses(self, s, t, batch):
        if self.images_seen > 250:
            raise ZeroDivisionError("enough")
        return super().losses(s, t, batch)


class Spoils(KD):
    def losses(self, s, t, batch):
        terms = super().losses(s, t, batch)
        t.logits.mul_(2)
        return terms


class Paints(KD):
    def batch(self, batch):
        batch.x[:, :, 0] = 0
        return batch
"""
WEIGHTS = "temperature: 4.0\nweights: {ce: 0.1, kd: 0.9}"


def test_a_member_that_fails_leaves_the_others_as_they_are(kd: Kdbench) -> None:
    plug(kd, FAILS, fails=WEIGHTS)
    result = kd.run("--config-dir", "conf", "method=[kd,fails,dkd]", "paths.results=together")
    one_sentence(result, "failed: fails", "ZeroDivisionError: enough (traceback in ")
    assert kd.run("method=[kd,dkd]", ALONE, "paths.results=alone").code == 0
    equal(kd, "together", "alone")


@pytest.mark.parametrize(("name", "what"), [("spoils", "teacher's 'logits'"), ("paints", "batch's 'x'")])
def test_a_member_that_changes_what_is_shared_fails_alone(kd: Kdbench, name: str, what: str) -> None:
    plug(kd, FAILS, **{name: WEIGHTS})
    result = kd.run("--config-dir", "conf", f"method=[kd,{name},dkd]", "paths.results=together")
    message = one_sentence(result, f"failed: {name}", "in place", "clone")
    assert what in message
    assert kd.run("method=[kd,dkd]", ALONE, "paths.results=alone").code == 0
    equal(kd, "together", "alone")


# ---- killed -----------------------------------------------------------------------------------------------------


def test_a_killed_cohort_may_go_on_in_other_company(alone: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["run", "method=[kd,dml,at]", "protocol.epochs=12", "dataset.per_class=20", "checkpoint_seconds=0"]
    kd = other(alone, "killed", monkeypatch)
    process = kd.spawn(*command)
    wait_for(kd, "runs/cells/????????????????/last.ckpt", process, count=3)
    process.kill()
    process.wait()
    assert not kd.records()
    first = sorted(kd.root.glob("runs/cells/????????????????/last.ckpt"))[0]
    first.unlink()  # this one starts anew, beside two that do not
    assert kd(*command, "cohort.max_students=2").code == 0
    whole = other(alone, "whole", monkeypatch)
    assert whole(*command).code == 0
    assert all_numbers(kd) == all_numbers(whole)
    assert len(kd.records()) == 3


# ---- settings ---------------------------------------------------------------------------------------------------


def test_cohorts_are_as_large_as_they_may_be(kd: Kdbench) -> None:
    command = ("method=[scratch,ls,kd,dkd,at]", "seed=[0,1]", "protocol.epochs=1")
    result = kd.run(*command, "cohort.max_students=2")
    started = [line for line in result.out.splitlines() if line.startswith("training ")]
    assert sum("2 in lockstep" in line for line in started) == 4
    assert sum("in lockstep" not in line and "teacher" not in line for line in started) == 2
    shutil.rmtree(kd.results)
    result = kd.run(*command)
    assert sum("5 in lockstep (scratch, ls, kd, dkd, at)" in line for line in result.out.splitlines()) == 2


@pytest.mark.parametrize(
    "setting", ["cohort.max_students=0", "cohort.max_students=many", "engine.route=warp", "engine.compile=1"]
)
def test_wrong_settings(kd: Kdbench, setting: str) -> None:
    one_sentence(kd.run("method=[scratch]", setting), setting.partition("=")[0])
    assert not Path(kd.results, "records").exists()


def test_a_fast_teacher_is_compared_with_the_plain_one(kd: Kdbench) -> None:
    assert kd.run("method=[kd,scratch]").code == 0
    assert kd.run("method=[kd]", "engine.route=plain", "paths.results=plain").code == 0
    taught = kd.record("kd").teacher
    assert taught
    assert taught.agreement
    assert taught.agreement.images == 500
    assert taught.agreement.top1_percent >= 98
    assert 0 <= taught.agreement.max_abs_logit < 1
    assert kd.record("scratch").teacher is None
    plain = records_in(kd, "plain")["kd"].teacher
    assert plain
    assert plain.agreement is None


# ---- a view cache saves time, no more ---------------------------------------------------------------------------


def cached(kd: Kdbench, *more: str) -> Result:
    return kd.run("method=[kd,rkd]", *more)


ONLY_READ = "the view cache of resnet20 is only read"


@pytest.mark.parametrize("readable", [True, False])
def test_a_cache_that_cannot_be_written_costs_no_cell(
    alone: Kdbench, monkeypatch: pytest.MonkeyPatch, readable: bool
) -> None:
    kd = alone
    assert cached(kd, "paths.results=whole").code == 0
    real = os.open

    def refuse(path: str, flags: int, *args: int, **kwargs: int) -> int:
        if "/views/" in str(path) and (flags & (os.O_RDWR | os.O_CREAT) or not readable):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", refuse)
    rows = asked(monkeypatch)
    result = cached(kd, "paths.results=again")
    assert (result.code, result.messages) == (0, [])
    none = "resnet20 goes without a view cache: Cannot write to "
    told = f"{ONLY_READ}: it cannot be written (Permission denied)." if readable else none
    assert result.out.count(told) == 1
    assert sum(rows) == 500 + (0 if readable else 2 * 200)  # the test images, and both epochs unless they are known
    equal(kd, "whole", "again")
    paths = {record.environment.path for record in records_in(kd, "again").values()}
    assert all(("its views are not cached" in path) != readable for path in paths)
    one_sentence(kd("teacher", "cache", *SMALL), "there is no view cache that could be filled", "KDBENCH_CACHE=DIR")


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_disk_that_is_too_small_for_the_cache_costs_no_cell(
    alone: Kdbench, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    kd = alone
    assert cached(kd, "engine.view_cache=false", "paths.results=whole").code == 0
    with monkeypatch.context() as patch:
        if when == "before":
            room = {True: SimpleNamespace(free=1000), False: SimpleNamespace(free=10**9)}
            patch.setattr(shutil, "disk_usage", lambda path: room["views" in str(path)])
            expected = f"{ONLY_READ}: The view cache may take 0.00 GB more in "
        else:
            write, calls = os.pwrite, iter(range(1000))

            def fill(fd: int, data: bytes, offset: int) -> int:
                if next(calls) >= 40:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return write(fd, data, offset)

            patch.setattr(os, "pwrite", fill)
            expected = f"{ONLY_READ} from now on: Cannot write to "
        result = cached(kd, "paths.results=again")
    assert (result.code, result.messages) == (0, [])
    assert result.out.count(expected) == 1
    equal(kd, "whole", "again")


def test_a_batch_beyond_the_data_is_not_rehearsed(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kd.run("method=[kd]", "protocol.batch_size=64").code == 0
    padded = FrozenTeacher._padded
    rows: list[int] = []

    def spy(self: FrozenTeacher, x: torch.Tensor, n: int) -> torch.Tensor:
        rows.append(n)
        return padded(self, x, n)

    monkeypatch.setattr(FrozenTeacher, "_padded", spy)
    assert kd.run("method=[kd]", "protocol.batch_size=20000").code == 0
    assert 0 < max(rows) <= 208  # 200 images, in sixteens
