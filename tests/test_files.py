"""Files: whole or not there, whoever else writes them and whenever the power goes."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from kdbench.errors import UserError
from kdbench.files import STALE_AFTER, remove_leftovers, write_atomic, write_beside, writing_to


def test_bytes_and_text_are_written_as_they_are(tmp_path: Path) -> None:
    write_atomic(tmp_path / "text", "größer\n", overwrite=False)
    write_atomic(tmp_path / "bytes", b"\r\n\x00\xff", overwrite=False)
    assert (tmp_path / "text").read_bytes() == b"gr\xc3\xb6\xc3\x9fer\n"
    assert (tmp_path / "bytes").read_bytes() == b"\r\n\x00\xff"
    with pytest.raises(FileExistsError):
        write_atomic(tmp_path / "bytes", b"other", overwrite=False)
    assert (tmp_path / "bytes").read_bytes() == b"\r\n\x00\xff"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_file_is_on_the_disk_before_its_name_and_the_name_when_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a power cut leaves depends on this order alone."""
    done: list[str] = []
    synced, replaced = os.fsync, os.replace

    def fsync(fd: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "file")
        synced(fd)

    def replace(*names: object) -> None:
        done.append("name")
        replaced(*names)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    write_atomic(tmp_path / "a", b"x", overwrite=True)
    assert done == ["file", "name", "folder"]


def test_many_writers_of_one_file_never_fail_and_leave_one_of_their_texts(tmp_path: Path) -> None:
    texts = [bytes([65 + k]) * 100_000 for k in range(4)]
    failed: list[Exception] = []

    def write(text: bytes) -> None:
        try:
            for _ in range(25):
                write_atomic(tmp_path / "one", text, overwrite=True)
                assert (tmp_path / "one").read_bytes() in texts
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert [path.name for path in tmp_path.iterdir()] == ["one"]


def test_leftovers_go_when_they_are_old(tmp_path: Path) -> None:
    young = write_beside(tmp_path / "young", b"x")
    old = [write_beside(tmp_path / "old", b"x"), tmp_path / "weights.partial"]
    old[1].touch()
    (tmp_path / "mine.txt").touch()
    for path in (*old, tmp_path / "mine.txt"):
        os.utime(path, (0, path.stat().st_mtime - STALE_AFTER - 60))
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([young, tmp_path / "mine.txt"])


@pytest.mark.parametrize(
    ("code", "mend"),
    [
        (errno.ENOSPC, "free some space there, or choose another folder (A=B says where)."),
        (errno.EACCES, "choose a folder that you may write to (A=B says where)."),
        (errno.ENOLCK, "its file system knows no locks; choose a folder on another (A=B says where)."),
    ],
)
def test_the_mend_says_how_to_choose(tmp_path: Path, code: int, mend: str) -> None:
    with pytest.raises(UserError) as error, writing_to(tmp_path, "A=B says where"):
        raise OSError(code, os.strerror(code))
    assert str(error.value) == f"Cannot write to {tmp_path} ({os.strerror(code)}): {mend}"
