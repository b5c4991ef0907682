"""One process at a time, and whom the others wait for."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import SMALL, Kdbench
from test_grid import all_numbers, numbers, wait_for

from kdbench import files
from kdbench.engine import locks
from kdbench.engine.cohort import Member
from kdbench.engine.locks import BusyError, forget_dead, holder_of, locked
from kdbench.engine.progress import Watch
from kdbench.errors import UserError
from kdbench.results.record import Record
from kdbench.results.store import Store

HOLDER = """
import sys, time
from pathlib import Path
from kdbench.engine.locks import locked
with locked(Path(sys.argv[1]), "it", wait=True):
    print("held", flush=True)
    time.sleep(60)
"""


def other_process(lock: Path) -> subprocess.Popen[str]:
    path = str(Path(locks.__file__).parents[2])
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock)], env={"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    return holder


def test_who_waits_is_told_once_for_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = tmp_path / "deep" / "a.lock"
    monkeypatch.setattr(locks, "PATIENCE", 0.05)
    holder, told = other_process(lock), []
    with pytest.raises(BusyError), locked(lock, "kd", wait=False, say=told.append):
        pass
    assert not told

    def say(sentence: str) -> None:
        told.append(sentence)
        threading.Timer(0.3, holder.kill).start()  # a lock goes with its holder

    with locked(lock, "kd", wait=True, say=say):
        assert holder_of(lock) == f"process {os.getpid()} on {socket.gethostname()}"
    assert told == [f"waiting for process {holder.pid} on {socket.gethostname()}, which trains kd (lock {lock})."]
    holder.communicate()
    assert [path.name for path in lock.parent.iterdir()] in ([], ["a.lock"])


@pytest.mark.parametrize(
    "left", [None, "{", '{"pid": "x", "host": "h"}', f'{{"pid": 4000000000, "host": "{socket.gethostname()}"}}']
)
def test_what_a_dead_holder_wrote_is_not_believed(tmp_path: Path, left: str | None) -> None:
    lock = tmp_path / "a.lock"
    if left is not None:
        lock.with_suffix(".holder").write_text(left)
    assert holder_of(lock) == "another process"
    with locked(lock, "kd", wait=False):  # and keeps nobody out
        forget_dead(tmp_path)
        assert holder_of(lock) == f"process {os.getpid()} on {socket.gethostname()}"
    lock.with_suffix(".holder").write_text(left or "")
    forget_dead(tmp_path)
    assert not lock.with_suffix(".holder").exists()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EACCES])
def test_a_file_system_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    if code == errno.ENOLCK:
        mend = "its file system knows no locks; choose a folder on another (A=B says where)."

        def refuse(fd: int, operation: int) -> None:
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(fcntl, "flock", refuse)
    else:
        mend = "choose a folder that you may write to (A=B says where)."

        def forbid(self: Path, *args: object, **kwargs: object) -> None:
            raise PermissionError(code, os.strerror(code))

        monkeypatch.setattr(Path, "mkdir", forbid)
    with pytest.raises(UserError) as error, locked(tmp_path / "a.lock", "kd", wait=True, otherwise="A=B says where"):
        pass
    assert str(error.value) == f"Cannot write to {tmp_path} ({os.strerror(code)}): {mend}"


# ---- in the grid ------------------------------------------------------------------------------------------------


def test_a_cell_that_is_held_for_the_store_is_waited_for(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever folder its holder has for what is unfinished; and what it says when it dies."""
    monkeypatch.setattr(locks, "PATIENCE", 0.05)
    assert kd.run("method=[ls]").code == 0
    (record,) = kd.records()
    shutil.rmtree(kd.results)
    holder = other_process(Store(kd.results).locks / f"{record.cell.id}.lock")
    asked = locks.holder_of

    def dies_soon(lock: Path) -> str:
        threading.Timer(0.2, holder.kill).start()
        return asked(lock)

    passed, epochs = Watch.passed, []

    def counted(watch: Watch, members: Sequence[Member], more: int) -> None:
        passed(watch, members, more)
        epochs.append((watch.completed, watch.total))

    monkeypatch.setattr(locks, "holder_of", dies_soon)
    monkeypatch.setattr(Watch, "passed", counted)
    result = kd.run("method=[scratch,ls]")
    assert (result.code, holder.wait()) == (0, -signal.SIGKILL)
    assert epochs == [(1, 4), (2, 4), (3, 4), (4, 4)]  # what is waited for is not over
    lines = result.out.splitlines()
    assert lines[0] == "training scratch resnet8x0.25 digits seed 0"  # it is left to the end
    (said,) = [line for line in lines if line.startswith("waiting for ")]
    assert said.startswith(f"waiting for process {holder.pid} on {socket.gethostname()}, which trains ls resnet8")
    assert f"/.locks/{record.cell.id}.lock)." in said
    assert "2 trained" in result.out
    assert numbers(kd.record("ls")) == numbers(record)
    holder.communicate()


@pytest.mark.slow
def test_a_process_elsewhere_is_told_and_waited_for(alone: Kdbench) -> None:
    """Two with folders of their own for what is unfinished, and one store: the second waits, and trains nothing."""
    kd = alone
    command = ["run", *SMALL, "method=[scratch]", "protocol.epochs=40", f"paths.results={kd.results}"]
    first = kd.spawn(*command, "paths.work=one", "checkpoint_seconds=0")
    wait_for(kd, "one/cells/*/last.ckpt", first)
    first.send_signal(signal.SIGSTOP)
    second = kd.spawn(*command, "paths.work=two", PYTHONUNBUFFERED="1")
    assert second.stdout
    said = second.stdout.readline()
    assert said.startswith(f"waiting for process {first.pid} on {socket.gethostname()}, which trains scratch ")
    first.send_signal(signal.SIGCONT)
    out, err = second.communicate(timeout=120)
    assert (first.wait(timeout=120), second.returncode, err) == (0, 0, "")
    assert "0 trained, 1 already done, 0 failed" in out
    assert len(kd.records()) == 1
    assert not list(kd.root.glob("*/cells/????????????????"))
    first.communicate()


@pytest.mark.slow
def test_several_processes_with_folders_of_their_own(alone: Kdbench) -> None:
    kd = alone
    command = ["run", *SMALL, "method=[scratch,kd,fitnet,ls]", "seed=[0,1]", "protocol.epochs=10"]
    command.append(f"paths.results={kd.results}")
    several = [kd.spawn(*command, f"paths.work=work{k}") for k in range(4)]
    outputs = [process.communicate(timeout=600) for process in several]
    assert [process.returncode for process in several] == [0] * 4, outputs
    trained = [int(out.splitlines()[-1].split()[0]) for out, _ in outputs]
    assert sum(trained) == len(kd.records()) == 8, outputs
    started = [line for out, _ in outputs for line in out.splitlines() if line.startswith("training teacher")]
    assert len(started) == 1
    assert not list(kd.root.glob("work*/cells/????????????????"))
    found = all_numbers(kd)
    shutil.rmtree(kd.results)
    assert kd(*command).code == 0
    assert all_numbers(kd) == found


def test_a_record_that_another_process_wrote_meanwhile_is_done_not_failed(
    kd: Kdbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a file system's locks do not reach the other machine."""
    assert kd.run("method=[scratch]", "paths.results=elsewhere").code == 0
    (theirs,) = Store(kd.root / "elsewhere").load()
    write = Store.write

    def late(self: Store, record: Record, overwrite: bool = False) -> Path:
        write(self, theirs, overwrite=True)
        return write(self, record, overwrite)

    monkeypatch.setattr(Store, "write", late)
    result = kd.run("method=[scratch]")
    assert result.code == 0, result
    assert "0 trained, 1 already done, 0 failed" in result.out
    assert kd.records() == [theirs]
    assert not list(kd.work.glob("cells/*/*"))


def test_what_is_done_needs_no_folder_that_can_be_written(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kd.run("method=[scratch,kd]").code == 0
    expected = numbers(kd.record("kd"))
    shutil.rmtree(kd.work)
    before = {path: path.stat().st_mtime_ns for path in kd.root.rglob("*")}
    real = os.open

    def read_only(path: object, flags: int, *args: object, **kwargs: object) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and str(kd.root) in str(path):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *args, **kwargs)  # type: ignore[arg-type]

    def refuse(path: Path, content: object) -> Path:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(os, "open", read_only)  # as filelock opens its files
    monkeypatch.setattr(files, "write_beside", refuse)
    result = kd.run("method=[scratch,kd]")
    assert (result.code, result.messages) == (0, [])
    assert "0 trained, 2 already done" in result.out
    assert {path: path.stat().st_mtime_ns for path in kd.root.rglob("*")} == before
    assert numbers(kd.record("kd")) == expected


def test_locks_are_not_for_git_nor_the_report(kd: Kdbench) -> None:
    subprocess.run(["git", "init", "-q"], cwd=kd.root, check=True)
    assert kd.run("method=[scratch]").code == 0
    seen = subprocess.run(["git", "status", "--porcelain", "-uall"], cwd=kd.root, capture_output=True, text=True)
    assert "results/records/" in seen.stdout
    assert ".locks" not in seen.stdout
    assert kd("report", "--check").code == 0


def test_a_teacher_that_cannot_be_kept_fails_no_cell(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdbench.teaching.teachers import Teachers

    def refuse(self: Teachers, teacher: object) -> None:
        raise UserError("Cannot write to results/teachers (No space left on device): free some space there.")

    with monkeypatch.context() as patch:
        patch.setattr(Teachers, "keep", refuse)
        result = kd.run("method=[kd,dkd]")
    assert (result.code, result.messages) == (0, [])
    assert "2 trained, 0 already done, 0 failed" in result.out
    assert result.out.count("the teacher resnet20 is not kept beside its records: Cannot write to ") == 1
    assert not (kd.results / "teachers").exists()
    assert kd.run("method=[kd,dkd]").code == 0
    assert len(list((kd.results / "teachers").iterdir())) == 2
