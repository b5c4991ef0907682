"""Windows: nothing is imported or called that Python does not have there."""

from __future__ import annotations

import os
import subprocess
import sys

from conftest import PACKAGES, SMALL, Kdbench

WITHOUT = """
import sys

import filelock, hydra, pandas, PIL.Image, psutil, pytorch_lightning, sklearn.datasets, torch, torchmetrics, yaml
import torch.utils.data, torch.utils.flop_counter, torch.utils.tensorboard
from pytorch_lightning.trainer.connectors import signal_connector

signal_connector._IS_WINDOWS = True

# what others needed is loaded: from here on the process is as poor as one on Windows
import collections, importlib, os, pkgutil, signal

memory = psutil.virtual_memory()
psutil.virtual_memory = lambda: memory
Windows = collections.namedtuple("Windows", "rss peak_wset")
psutil.Process = lambda pid=None: type("Process", (), {"memory_info": lambda self: Windows(2**27, 3 * 2**27)})()
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
for name in (
    "fchmod fork forkpty getloadavg getpgid getuid geteuid killpg nice posix_fallocate pread preadv pwrite pwritev"
    " sched_getaffinity setsid sync sysconf uname"
).split():
    delattr(os, name)
for name in "SIGALRM SIGCONT SIGHUP SIGKILL SIGSTOP SIGUSR1 SIGUSR2 pthread_sigmask sigwait setitimer".split():
    delattr(signal, name)
signal.valid_signals = lambda: {signal.SIGABRT, signal.SIGFPE, signal.SIGINT, signal.SIGSEGV, signal.SIGTERM}
fstat, kept = os.fstat, "st_mode st_ino st_dev st_nlink st_uid st_gid st_size st_atime st_mtime st_ctime".split()
os.fstat = lambda fd: collections.namedtuple("Status", kept)(*(getattr(fstat(fd), name) for name in kept))


def hook(event, args):
    if event in ("open", "os.listdir", "os.scandir") and str(args[0]).startswith(("/proc", "/sys")):
        raise FileNotFoundError(args[0])


sys.addaudithook(hook)

import kdbench, methods

for package in (kdbench, methods):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)

from kdbench.cli import main

sys.exit(main(sys.argv[1:]))
"""


def test_a_grid_runs_without_what_windows_lacks(kd: Kdbench) -> None:
    env = {**os.environ, "PYTHONPATH": str(PACKAGES), "OMP_NUM_THREADS": "1", "PATH": ""}  # and without git
    args = ["run", *SMALL, "method=[scratch,kd]", "engine.view_cache=true"]
    command = [sys.executable, "-c", WITHOUT, *args]
    done = subprocess.run(command, cwd=kd.root, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "views cached" in kd.record("kd").environment.path
    assert kd.record("kd").environment.commit is None
    assert kd.record("scratch").cost.peak_memory_mb == 3 * 2**27 / 2**20
    without = kd.run("method=[scratch,kd]", "engine.view_cache=false", "paths.results=live")
    assert without.code == 0
    live = Kdbench(kd.root, kd.cache, kd._capfd)
    live.results = kd.root / "live"
    for method in ("scratch", "kd"):
        assert live.record(method).metrics == kd.record(method).metrics
