"""How much memory a cohort may take: what is free by every limit, what one student takes, and what was too much."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
import torch
from filelock import FileLock, Timeout
from torch import Tensor, nn

from kdbench.models.base import Shape

BYTES_PER_PARAMETER = 40
"""Of a student in training: weights, gradients, two moments of Adam, buffers and adapters, in float32, doubled for
peers. Activations do not count: only one member of a cohort has any at a time."""


# ---- what is free -----------------------------------------------------------------------------------------------


def free_memory(environ: Mapping[str, str] = os.environ, proc: Path = Path("/proc/self")) -> int:
    """Bytes of main memory that this process may still take: of the host, its cgroups, its rlimit, its Slurm job."""
    process = psutil.Process().memory_info()
    free = [psutil.virtual_memory().available, *_in_cgroups(proc)]
    with suppress(ImportError):  # Windows
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            free.append(limit - process.vms)
    if (job := _of_slurm(environ)) is not None:
        free.append(job - process.rss)
    return max(0, min(free))


def _in_cgroups(proc: Path) -> Iterator[int]:
    """What is left in each cgroup that this process is in, version 1 and 2, up to the root that it sees."""
    try:
        paths = dict(line.split(":", 2)[1:] for line in (proc / "cgroup").read_text().splitlines())
        mounts = [line.split() for line in (proc / "mountinfo").read_text().splitlines()]
    except (OSError, ValueError):  # no Linux
        return
    for fields in mounts:  # ID PARENT DEVICE ROOT MOUNT-POINT OPTIONS ... - TYPE SOURCE SUPER-OPTIONS
        kind, options = fields[fields.index("-") + 1], fields[-1].split(",")
        if kind == "cgroup2":
            path, names, cache = paths.get(""), ("memory.max", "memory.current"), "inactive_file"
        elif kind == "cgroup" and "memory" in options:
            path = next((path for name, path in paths.items() if "memory" in name.split(",")), None)
            names, cache = ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file"
        else:
            continue
        top = Path(fields[4])
        folder = top / (path or "/").removeprefix(fields[3]).lstrip("/")
        for group in (folder, *folder.parents):
            with suppress(OSError, ValueError):  # no limit ("max"), or a group out of sight
                limit, used = (int((group / name).read_text()) for name in names)
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                yield limit - used + int(stat.get(cache, 0))  # file pages that the kernel would give up
            if group == top:
                break


def _of_slurm(environ: Mapping[str, str]) -> int | None:
    """Bytes that Slurm grants the job on this node, or None; it counts in MiB, and 0 stands for all there is."""
    for per, times in (
        ("SLURM_MEM_PER_NODE", None),
        ("SLURM_MEM_PER_CPU", "SLURM_CPUS_ON_NODE"),
        ("SLURM_MEM_PER_GPU", "SLURM_GPUS_ON_NODE"),
    ):
        with suppress(KeyError, ValueError):
            granted = int(environ[per]) * (int(environ[times]) if times else 1)
            if granted:
                return granted << 20
    return None


# ---- what is taken ----------------------------------------------------------------------------------------------


def student_bytes(net: nn.Module) -> int:
    """Of a student in training, see `BYTES_PER_PARAMETER`."""
    return BYTES_PER_PARAMETER * sum(parameter.numel() for parameter in net.parameters())


@torch.no_grad()
def activation_bytes(net: nn.Module, shape: Shape, *, train: int, evaluate: int) -> int:
    """Of the one student that plays: all activations and their gradients of a training batch, or a few of the largest
    of an evaluation batch, whichever are more.

    Args:
        train, evaluate: batch sizes.
    """
    sizes: list[int] = []

    def note(module: nn.Module, args: object, output: object) -> None:
        if isinstance(output, Tensor):
            sizes.append(4 * output.numel())

    with ExitStack() as hooks:
        for module in net.modules():
            if not list(module.children()):
                hooks.enter_context(module.register_forward_hook(note))
        training = net.training
        net.eval()(torch.zeros(1, *shape))
        net.train(training)
    return max(2 * train * sum(sizes), 3 * evaluate * max(sizes, default=0))


# ---- what was too much ------------------------------------------------------------------------------------------


@contextmanager
def attempt(folder: Path, students: int) -> Iterator[None]:
    """Train so many students in lockstep; if the process is killed meanwhile, `vanished` will tell.

    The mark is a file whose lock is held, so it is believed only when its process is gone, wherever that was.
    """
    lock = FileLock(folder / f"cohort-{students}-{secrets.token_hex(4)}.lock")
    if students > 1:
        with suppress(OSError, NotImplementedError):  # without it a next attempt just does not know
            lock.acquire()
    try:
        yield
    finally:
        if lock.is_locked:
            with suppress(OSError):
                Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def vanished(folder: Path) -> int | None:
    """The fewest students in lockstep at which a process was killed since this was last asked, or None."""
    found = []
    for path in folder.glob("cohort-*-*.lock"):
        with suppress(OSError, ValueError, NotImplementedError, Timeout):  # Timeout: its process lives
            with FileLock(path, timeout=0):
                path.unlink(missing_ok=True)
            found.append(int(path.name.split("-")[1]))
    return min(found, default=None)
