"""The bench as its users drive it: the command line, on a store of its own."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.metadata
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import kdbench
from kdbench.cli import main
from kdbench.cli.program import SELDOM
from kdbench.results.record import Record
from kdbench.results.store import Store

ROOT = Path(__file__).parent.parent
"""Of the sources: a checkout, or an unpacked sdist."""
PACKAGES = Path(kdbench.__file__).parent.parent
"""Where kdbench is imported from: the same, or where a wheel was installed."""
SMALL = ("protocol.epochs=2", "dataset.per_class=20")
"""resnet20 -> resnet8x0.25 on 200 digits of 8x8 pixels: about half a second a cell."""


TRAINED: set[str] = set()
"""The methods that tests train which train all; empty: all."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--methods", default="", help="names, comma-separated: train these alone where tests train all")


def pytest_configure(config: pytest.Config) -> None:
    TRAINED.update(filter(None, config.getoption("--methods").split(",")))
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as behind nohup; commands under test listen to Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # every trainer asks all installed packages for callbacks, and tests make thousands of trainers
    importlib.metadata.entry_points = functools.cache(importlib.metadata.entry_points)
    os.fsync = lambda fd: None  # no test's files need outlive a loss of power
    gc.set_threshold(SELDOM)
    if hasattr(config, "workerinput"):  # one of several processes, with a core for each
        import torch

        torch.set_num_threads(1)
        if not torch.cuda.is_available():  # for which every seed would be kept, with the stack of who asked
            torch.cuda.manual_seed_all = lambda seed: None


def pytest_collection_finish() -> None:
    """What was collected lives until the end: the garbage collector need not look at a million objects every time."""
    gc.collect()
    gc.freeze()


def pytest_report_header() -> str:
    return f"kdbench: {PACKAGES}"


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def messages(self) -> list[str]:
        """What went wrong: lines on stderr, and those of the summary that name a cell."""
        bad = ("failed: ", "diverged: ", "left out: ")
        return self.err.splitlines() + [line for line in self.out.splitlines() if line.startswith(bad)]


class Kdbench:
    """Commands in-process, or in a process of their own, with `root` as working directory."""

    def __init__(self, root: Path, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
        self.root, self.cache, self._capfd = root, cache, capfd
        self.results, self.work = root / "results", root / "runs"

    def __call__(self, *args: str) -> Result:
        self._capfd.readouterr()
        loggers = [logging.getLogger(name) for name in (None, "hydra")]
        before = [(logger, logger.level, logger.handlers[:]) for logger in loggers]
        try:
            code = main(args)
        except SystemExit as leave:  # argparse
            code = int(leave.code or 0)
        for logger, level, handlers in before:  # --info configures them for good
            logger.setLevel(level)
            logger.handlers[:] = handlers
        out, err = self._capfd.readouterr()
        return Result(code, out, err)

    def run(self, *overrides: str) -> Result:
        return self("run", *SMALL, *overrides)

    def spawn(self, *args: str, **env: str) -> subprocess.Popen[str]:
        """The same in a new process (one thread), for tests that kill it or look at what it imports."""
        path = os.pathsep.join(filter(None, [str(PACKAGES), os.environ.get("PYTHONPATH")]))
        full = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **env}
        command = [sys.executable, "-m", "kdbench.cli", *args]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=self.root, env=full, stdout=pipe, stderr=pipe, text=True)

    def checkpoints(self) -> dict[Path, int]:
        """When each unfinished cell's was written; one that ends meanwhile takes its own away."""
        from kdbench.engine.cohort import CHECKPOINT  # with torch, which tests of texts do without

        found = {}
        for path in self.work.glob(f"cells/*/{CHECKPOINT}"):
            with contextlib.suppress(FileNotFoundError):
                found[path] = path.stat().st_mtime_ns
        return found

    def records(self) -> list[Record]:
        return Store(self.results).load()

    def record(self, method: str, seed: int = 0) -> Record:
        (found,) = [r for r in self.records() if (r.cell.method, r.cell.seed) == (method, seed)]
        return found

    def leftovers(self) -> list[Path]:
        """Half-written files."""
        folders = (self.results, self.work, self.cache)
        return [path for folder in folders for path in folder.rglob("*") if path.suffix in (".tmp", ".partial")]


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where teachers lie that tests may share but not change."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def kd(
    tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Kdbench]:
    monkeypatch.setenv("KDBENCH_CACHE", str(shared_cache))
    monkeypatch.delenv("KDBENCH_DATA", raising=False)
    yield from _commands(tmp_path, shared_cache, monkeypatch, capfd)


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Kdbench]:
    """As `kd`, with an empty cache of its own."""
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KDBENCH_DATA", raising=False)
    yield from _commands(tmp_path, tmp_path / "cache", monkeypatch, capfd)


def _commands(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Kdbench]:
    import torch

    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "path", [*sys.path])
    known, threads = set(sys.modules), torch.get_num_threads()
    torch.set_num_threads(1)  # as in the processes of `Kdbench.spawn`, whose numbers must be the same bits
    yield Kdbench(root, cache, capfd)
    torch.set_num_threads(threads)
    for name in sys.modules.keys() - known:  # a user's method, of which the next test may have another
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(f"{root}{os.sep}"):
            del sys.modules[name]
