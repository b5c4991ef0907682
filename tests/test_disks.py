"""Disks that are full: real ones, of a few kB. What happens is a sentence, nothing is lost, and room mends it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Kdbench, Result
from test_grid import all_numbers


def slow(size: str) -> object:
    return pytest.param(size, marks=pytest.mark.slow)


Mount = Callable[[Path, str], None]


@pytest.fixture
def mount() -> Iterator[Mount]:
    """Gives a folder a disk of its own, of a size; again, another size."""
    mounted: list[Path] = []

    def make(folder: Path, size: str) -> None:
        folder.mkdir(exist_ok=True)
        options = f"size={size}" if folder not in mounted else f"remount,size={size}"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip("only root may mount a small disk")
        mounted.append(folder)

    yield make
    for folder in dict.fromkeys(mounted):
        subprocess.run(["umount", "-l", str(folder)], check=True)  # a view cache may still be open there


def told(result: Result, folder: Path) -> None:
    """Every message is one clear sentence about that disk."""
    assert result.code == 1, result
    assert result.messages
    print(*result.messages, sep="\n")
    for message in result.messages:
        assert str(folder.name) in message
        assert "free some space there, or choose another folder (" in message or "MB are free" in message
        assert "Error" not in message
        assert "traceback" not in message


COMMAND = ("method=[scratch,fitnet]", "checkpoint_seconds=0", "~logger")


@pytest.mark.parametrize("size", ["100k", *map(slow, ("4k", "16k", "240k", "300k", "400k"))])
def test_a_full_disk_for_what_is_unfinished(kd: Kdbench, mount: Mount, size: str) -> None:
    assert kd.run(*COMMAND, "seed=7").code == 0  # a teacher
    mount(kd.root / "small", size)
    result = kd.run(*COMMAND, "paths.work=small")
    if result.code:
        told(result, kd.root / "small")
    mount(kd.root / "small", "20m")
    assert kd.run(*COMMAND, "paths.work=small").code == 0
    found = all_numbers(kd)
    assert kd.run(*COMMAND, "seed=[0,7]", "force=true").code == 0
    assert all_numbers(kd) == found
    assert not kd.leftovers()


@pytest.mark.parametrize("size", ["300k", *map(slow, ("4k", "1200k", "2400k"))])
def test_a_full_disk_for_what_is_cached(alone: Kdbench, mount: Mount, size: str) -> None:
    kd = alone
    mount(kd.cache, size)
    result = kd.run("method=[kd]", "~logger")
    if result.code:
        told(result, kd.cache)
        assert "training teacher" not in result.out  # known before
    mount(kd.cache, "20m")
    assert kd.run("method=[kd]", "~logger").code == 0


@pytest.mark.parametrize("size", ["4k", slow("12k")])
def test_a_full_disk_for_records(kd: Kdbench, mount: Mount, size: str) -> None:
    mount(kd.results, size)
    result = kd.run("method=[scratch,ls]", "~logger")
    if result.code:
        told(result, kd.results)
    mount(kd.results, "20m")
    assert kd.run("method=[scratch,ls]", "~logger").code == 0
    assert len(kd.records()) == 2
    assert not kd.leftovers()
