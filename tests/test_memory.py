"""How many students a cohort may have: by every limit there is, and by what an earlier attempt could not survive."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from conftest import Kdbench
from torch import nn

from kdbench.engine import memory
from kdbench.engine.memory import activation_bytes, attempt, free_memory, vanished
from kdbench.files import check_room

MIB = 1 << 20


@pytest.fixture(autouse=True)
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host with 20 GiB free, on which this process takes 400 MiB of memory and 3 GiB of addresses."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=20_480 * MIB))
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(rss=400 * MIB, vms=3072 * MIB))
    monkeypatch.setattr(psutil, "Process", lambda: process)


def proc(tmp_path: Path, version: int, groups: dict[str, tuple[str, int, int]], root: str = "/") -> Path:
    """A process in the last of `groups`: (limit, MiB used, MiB of idle file pages) by path."""
    mount, folder = tmp_path / "cg", tmp_path / "proc"
    limit, usage, pages = {
        2: ("memory.max", "memory.current", "inactive_file"),
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    }[version]
    for path, (most, used, idle) in groups.items():
        group = mount / path.lstrip("/")
        group.mkdir(parents=True, exist_ok=True)
        (group / limit).write_text(f"{most}\n")
        (group / usage).write_text(f"{used * MIB}\n")
        (group / "memory.stat").write_text(f"anon 1\n{pages} {idle * MIB}\n")
    folder.mkdir()
    last = list(groups)[-1]
    inside = root.rstrip("/") + last
    lines = {2: f"0::{inside}\n", 1: f"4:cpu,memory:{inside}\n1:name=systemd:/\n0::/\n"}[version]
    (folder / "cgroup").write_text(lines)
    kind = {2: "cgroup2 cgroup2 rw", 1: "cgroup cgroup rw,cpu,memory"}[version]
    (folder / "mountinfo").write_text(
        f"25 1 0:22 / /proc rw,nosuid shared:5 - proc proc rw\n31 25 0:27 {root} {mount} rw,nosuid shared:9 - {kind}\n"
    )
    return folder


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_a_container_counts(tmp_path: Path, version: int) -> None:
    unlimited = {1: "9223372036854771712", 2: "max"}[version]
    groups = {"/": (unlimited, 5000, 100), "/job": (str(1500 * MIB), 700, 200), "/job/step": (unlimited, 650, 10)}
    assert free_memory({}, proc(tmp_path, version, groups)) == (1500 - 700 + 200) * MIB


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    found = proc(tmp_path, 1, {"/": (str(1000 * MIB), 300, 0)}, root="/docker/0a1b")
    assert free_memory({}, found) == 700 * MIB


def test_what_is_used_up_is_nothing_rather_than_less(tmp_path: Path) -> None:
    assert free_memory({}, proc(tmp_path, 2, {"/": (str(500 * MIB), 600, 0)})) == 0


def test_without_limits_the_host_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert free_memory({}, tmp_path / "no proc") == 20_480 * MIB
    monkeypatch.setattr(resource, "getrlimit", lambda which: (4096 * MIB, resource.RLIM_INFINITY))
    assert free_memory({}, tmp_path / "no proc") == 1024 * MIB  # of addresses


@pytest.mark.parametrize(
    ("environ", "free"),
    [
        ({"SLURM_MEM_PER_NODE": "2000"}, 1600),
        ({"SLURM_MEM_PER_CPU": "500", "SLURM_CPUS_ON_NODE": "4"}, 1600),
        ({"SLURM_MEM_PER_CPU": "500"}, 20_480),
        ({"SLURM_MEM_PER_NODE": "0"}, 20_480),
        ({"SLURM_MEM_PER_NODE": "all"}, 20_480),
    ],
)
def test_what_slurm_grants_counts(tmp_path: Path, environ: dict[str, str], free: int) -> None:
    assert free_memory(environ, tmp_path / "no proc") == free * MIB


def test_activations_of_a_training_batch_or_of_an_evaluation_batch() -> None:
    net = nn.Sequential(nn.Conv2d(1, 10, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(640, 5))
    each = 4 * (640 + 640 + 640 + 5)
    assert activation_bytes(net, (1, 8, 8), train=64, evaluate=100) == 2 * 64 * each
    assert activation_bytes(net, (1, 8, 8), train=2, evaluate=100) == 3 * 100 * 4 * 640
    assert net.training


# ---- attempts ---------------------------------------------------------------------------------------------------


def killed(folder: Path, students: int) -> None:
    code = (
        "import os, sys; from pathlib import Path; from kdbench.engine.memory import attempt\n"
        f"with attempt(Path(sys.argv[1]), {students}): os.kill(os.getpid(), 9)"
    )
    path = str(Path(memory.__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code, str(folder)], env={"PYTHONPATH": path}, check=False)
    assert done.returncode == -9


def test_only_an_attempt_that_was_killed_is_told_and_only_once(tmp_path: Path) -> None:
    with attempt(tmp_path, 10):
        assert vanished(tmp_path) is None  # it lives
        with attempt(tmp_path, 4):
            pass
    with pytest.raises(KeyboardInterrupt), attempt(tmp_path, 10):
        raise KeyboardInterrupt
    assert vanished(tmp_path) is None
    assert not list(tmp_path.iterdir())
    killed(tmp_path, 10)
    (tmp_path / "cohort-6-0123.lock").touch()  # another one's
    assert vanished(tmp_path) == 6
    assert vanished(tmp_path) is None
    assert vanished(tmp_path / "nowhere") is None


def test_a_cohort_that_was_killed_is_halved(kd: Kdbench) -> None:
    (kd.work / "cells").mkdir(parents=True)
    (kd.work / "cells" / "cohort-4-0123.lock").touch()
    command = ("method=[scratch,ls,kd,at]", "protocol.epochs=1")
    result = kd.run(*command)
    assert result.code == 0
    assert "the last attempt, of 4 in lockstep, was killed, perhaps for want of memory: now at most 2" in result.out
    assert sum("2 in lockstep" in line for line in result.out.splitlines()) == 2
    assert not list(kd.work.glob("cells/cohort-*"))


@pytest.mark.parametrize(("free", "lockstep"), [(200, 3), (0, 1)])
def test_as_many_train_together_as_the_limit_holds(
    kd: Kdbench, monkeypatch: pytest.MonkeyPatch, free: int, lockstep: int
) -> None:
    """Half of it, for students of 40 bytes for each of their parameters; for at least one."""
    net = nn.Linear(999, 800)  # 0.8 million parameters, 30.5 MiB
    assert 3 <= 100 * MIB / (40 * sum(p.numel() for p in net.parameters())) < 4
    monkeypatch.setattr("kdbench.engine.run.free_memory", lambda: free * MIB)
    monkeypatch.setattr("kdbench.engine.run.activation_bytes", lambda *args, **kwargs: 0)
    monkeypatch.setattr("kdbench.engine.run.Bench._untrained", lambda self, cell: net)
    result = kd.run("method=[scratch,ls,kd]", "protocol.epochs=1")
    assert result.code == 0
    started = [line for line in result.out.splitlines() if line.startswith("training ") and "teacher" not in line]
    assert len(started) == (1 if lockstep == 3 else 3)
    assert ("3 in lockstep" in started[0]) == (lockstep == 3)


# ---- room on disks ----------------------------------------------------------------------------------------------


def test_what_does_not_fit_on_the_disk_is_told_before_anything_is_trained(
    kd: Kdbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """resnet8x0.25 on digits, SGD with momentum: weights and momentum of each student, old and new at once."""
    from kdbench import models

    net = models.create("resnet8x0.25", (1, 8, 8), 10)
    weights = 4 * sum(value.numel() for value in net.state_dict().values())
    momentum = 4 * sum(value.numel() for value in net.parameters())
    need = 2 * 3 * (weights + momentum)
    assert kd("teacher", "train", "protocol.epochs=2", "dataset.per_class=20").code == 0
    free = need - 1
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=free))
    result = kd.run("method=[scratch,ls,kd]", "engine.view_cache=false")
    assert (result.code, len(result.messages)) == (1, 1)
    (message,) = result.messages
    assert "the checkpoints of a cohort, old and new, will take at least 0." in message
    assert "are free: free some space there, or choose another folder (paths.work=DIR says where)." in message
    assert "training" not in result.out.replace("0 trained", "")
    free = need
    assert kd.run("method=[scratch,ls,kd]", "engine.view_cache=false").code == 0


def test_room_is_found_out_by_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_room(tmp_path / "new" / "folder", 0, "nothing", "A=B")
    assert not list((tmp_path / "new" / "folder").iterdir())


def test_numbers_that_optimisers_keep() -> None:
    from kdbench.construct import slots
    from kdbench.protocol import Protocol

    def of(**optimizer: object) -> float:
        return slots(Protocol(optimizer=optimizer))

    assert of(_target_="torch.optim.SGD", lr=0.1) == 0
    assert of(_target_="torch.optim.SGD", lr=0.1, momentum=0.9) == 1
    assert of(_target_="torch.optim.Adam", lr=0.1) == 2
    assert torch.is_grad_enabled()
