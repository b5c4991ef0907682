"""Sweeps with real launchers: joblib, submitit on this machine, a Slurm cluster of one node, Ray; and a real search.

Each needs its plugin (``pip install 'kdbench[cluster,search]'``); the cluster also needs Slurm's programs (Debian:
slurmctld, slurmd, slurm-client, munge) and root.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import PACKAGES, SMALL, Kdbench
from test_grid import numbers, other, wait_for
from test_sweeps import summary

pytestmark = pytest.mark.cluster


def needs(*plugins: str) -> None:
    for plugin in plugins:
        try:
            importlib.import_module(f"hydra_plugins.{plugin}")
        except ImportError:
            pytest.skip(f"{plugin.replace('_', '-')} is not installed")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(what: str, command: Sequence[str], pattern: str, seconds: float = 120) -> str:
    """What `command` prints, once it matches."""
    end = time.monotonic() + seconds
    while True:
        out = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        if re.search(pattern, out, re.M):
            return out
        assert time.monotonic() < end, f"{what}: {out}"
        time.sleep(0.2)


# ---- clusters ---------------------------------------------------------------------------------------------------

SLURM_CONF = """
ClusterName=kdbench
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=10
CryptoType=crypto/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
KillWait=10
SchedulerParameters=sched_interval=5,bf_interval=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 Boards=1 SocketsPerBoard=1 CoresPerSocket=2 ThreadsPerCore=1 RealMemory=4000 \
    Gres=gpu:2
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE
PartitionName=urgent Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""


def empty_queue() -> None:
    subprocess.run(["scancel", "--user=root"], check=False)
    until("an empty queue", ["bash", "-c", "squeue --noheader | wc -l"], "^0$")


@pytest.fixture(scope="module")
def _slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A cluster of this one machine, without accounting, whose GPUs are none; yields the path of its settings."""
    needs("hydra_submitit_launcher")
    if not all(map(shutil.which, ("slurmctld", "slurmd", "munged", "srun"))):
        pytest.skip("Slurm is not installed (slurmctld, slurmd, slurm-client, munge)")
    if os.geteuid():
        pytest.skip("only root may start a cluster")
    root = tmp_path_factory.mktemp("slurm")
    for name in ("state", "spool"):
        (root / name).mkdir()
    key = root / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    root.chmod(0o700)
    host = socket.gethostname().partition(".")[0]
    conf = root / "slurm.conf"
    conf.write_text(SLURM_CONF.format(root=root, host=host, ports=(free_port(), free_port())))
    for name, device in {"gpu0": "/dev/null", "gpu1": "/dev/zero"}.items():
        (root / name).symlink_to(device)
    (root / "gres.conf").write_text(f"Name=gpu File={root}/gpu[0-1]\n")
    names = ("socket", "key-file", "pid-file", "log-file", "seed-file")
    files = ("munge.socket", "munge.key", "munged.pid", "munged.log", "munged.seed")
    munge = [f"--{name}={root / file}" for name, file in zip(names, files, strict=True)]
    try:
        subprocess.run(["munged", "--force", *munge], check=True)
        subprocess.run(["slurmctld", "-f", str(conf), "-i"], check=True)
        subprocess.run(["slurmd", "-f", str(conf)], check=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", str(conf))
            until("the node", ["sinfo", "--noheader", "--format=%T"], "idle")
        yield str(conf)
    finally:
        with pytest.MonkeyPatch.context() as patch, suppress(OSError, AssertionError):
            patch.setenv("SLURM_CONF", str(conf))
            empty_queue()  # what a job leaves behind is Slurm's to end
        for pid in (root / f"{name}.pid" for name in ("slurmd", "slurmctld", "munged")):
            with suppress(OSError, ValueError):
                os.kill(int(pid.read_text()), signal.SIGTERM)


@pytest.fixture
def slurm(_slurm: str, alone: Kdbench, monkeypatch: pytest.MonkeyPatch) -> Kdbench:
    monkeypatch.setenv("SLURM_CONF", _slurm)
    empty_queue()
    return alone


@pytest.fixture(scope="module")
def _ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A cluster of this one machine whose workers stand elsewhere; yields its address."""
    needs("hydra_ray_launcher")
    address, folder = f"127.0.0.1:{free_port()}", tmp_path_factory.mktemp("ray")
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={address[10:]}"]
    options = ["--num-cpus=2", "--include-dashboard=false", "--disable-usage-stats"]
    env = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(PACKAGES), "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("w") as log:
        head = subprocess.Popen([*ray, *options], cwd=folder, env=env, stdout=log, stderr=log)
        try:
            until("Ray", ["cat", str(folder / "log")], "runtime started")
            yield address
        finally:
            head.terminate()
            head.wait(60)


# ---- one grid for all launchers ---------------------------------------------------------------------------------

GRID = ("run", "-m", "method=kd", "seed=0,1", "protocol.optimizer.lr=0.05,-1", *SMALL, "~logger")
QUOTED = 'paths.work="r/runs (v2) für köln"'
CPU = "trainer.accelerator=cpu"
ONE = "hydra.launcher.cpus_per_task=1"
SLURM = ("cluster=slurm", "hydra.launcher.gpus_per_node=null", ONE, "hydra.launcher.mem_gb=1", CPU)
RAY = ("cluster=ray_gpus", CPU, "hydra.launcher.ray.remote.num_cpus=1")
ON_CPUS = "hydra.launcher.ray.remote.num_gpus=0"
INIT = "hydra.launcher.ray.init"
LAUNCHERS: dict[str, tuple[str, ...]] = {
    "hydra_joblib_launcher": ("cluster=joblib", "hydra.launcher.n_jobs=2"),
    "hydra_submitit_launcher": ("hydra/launcher=submitit_local",),
    "hydra_ray_launcher": (*RAY, ON_CPUS, f"+{INIT}.num_cpus=2"),
    "slurm": SLURM,
    "ray cluster": (*RAY, ON_CPUS, f"{INIT}.address=ADDRESS"),
}


def finish(kd: Kdbench, *args: str) -> tuple[int, str, list[str]]:
    """Of a command in a process of its own: exit code, standard output, our lines of standard error."""
    out, err = (process := kd.spawn(*args, RAY_AUTH_MODE="disabled")).communicate(timeout=900)
    assert "Traceback" not in err, err
    return process.returncode, out, [line for line in err.splitlines() if line.startswith("kdbench: ")]


@pytest.fixture(scope="module")
def basic() -> dict[str, Any]:
    """What the basic launcher made of the grid, once for all others."""
    return {}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_grid_with_a_failing_job(
    launcher: str,
    basic: dict[str, Any],
    alone: Kdbench,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    args = LAUNCHERS[launcher]
    if launcher == "slurm":
        request.getfixturevalue("slurm")
    elif launcher == "ray cluster":
        args = tuple(arg.replace("ADDRESS", request.getfixturevalue("_ray")) for arg in args)
    else:
        needs(launcher)
    if not basic:
        reference = other(alone, "basic", monkeypatch)
        basic["told"] = finish(reference, *GRID)
        basic["numbers"] = [numbers(record) for record in reference.records()]
    code, out, told = finish(kd := other(alone, "launched", monkeypatch), *GRID, QUOTED, *args)
    assert (code, told) == (1, basic["told"][2])
    assert len(told) == 1
    assert told[0].startswith("kdbench: protocol.optimizer")
    assert summary(out).startswith("2 trained, 0 already done, 0 failed or diverged.\n")
    assert re.search("^kd +2 ", out, re.M)
    assert [numbers(record) for record in kd.records()] == basic["numbers"]
    assert (kd.root / "r" / "runs (v2) für köln" / "cells").is_dir()


# ---- each job has the device that it was given -----------------------------------------------------------------

SEEING = '''
import os
import time
from pathlib import Path

from methods.controls.scratch import Scratch


class Seeing(Scratch):
    """Scratch that notes which GPU it was given, when there are two at work."""

    def training_step(self, batch, batch_idx):
        Path("seen").mkdir(exist_ok=True)
        Path("seen", str(os.getpid())).write_text(os.environ.get("CUDA_VISIBLE_DEVICES", "none"))
        end = time.monotonic() + 120
        while len(os.listdir("seen")) < 2 and time.monotonic() < end:
            time.sleep(0.1)
        return super().training_step(batch, batch_idx)
'''


@pytest.mark.parametrize(
    ("args", "given"),
    [
        pytest.param((*RAY, f"+{INIT}.num_cpus=2", f"+{INIT}.num_gpus=2"), ["0", "1"], id="ray"),
        pytest.param(
            (*RAY, f"+{INIT}.num_cpus=2", f"+{INIT}.num_gpus=1", "hydra.launcher.ray.remote.num_gpus=0.5"),
            ["0", "0"],
            id="ray, half each",
        ),
        pytest.param(("cluster=slurm", ONE, "hydra.launcher.mem_gb=1", CPU), ["0", "1"], id="slurm"),
    ],
)
def test_each_job_has_the_gpu_that_it_was_given(
    args: tuple[str, ...], given: list[str], alone: Kdbench, request: pytest.FixtureRequest
) -> None:
    if "cluster=slurm" in args:
        request.getfixturevalue("slurm")
    else:
        needs("hydra_ray_launcher")
    (alone.root / "own.py").write_text(SEEING)
    own = ("method=[]", "+method.own._target_=own.Seeing", "+method.own.weights.ce=1.0")
    # that it is a sweep, the preset says
    code, _, told = finish(alone, "run", *own, "seed=0,1", *SMALL, "~logger", *args)
    assert (code, told) == (0, [])
    assert sorted(path.read_text() for path in (alone.root / "seen").iterdir()) == given


# ---- Slurm: what ends a job ------------------------------------------------------------------------------------

LONG = ("method=scratch", "~logger", *SMALL, "protocol.epochs=400", "engine.compile=false", "checkpoint_seconds=0.5")


TIMED = "hydra.launcher.timeout_min=9"  # submitit takes a signal in a job's last ten minutes for the end of its time


def job_ids() -> list[str]:
    out = subprocess.run(["squeue", "--noheader", "--array", "--format=%i"], capture_output=True, text=True, check=True)
    return out.stdout.split()


def begin(kd: Kdbench, *args: str) -> subprocess.Popen[str]:
    """A sweep of long cells, each of which has a checkpoint."""
    process = kd.spawn("run", *LONG, *SLURM, *args)
    wait_for(kd, "runs/cells/*/last.ckpt", process, 2 if "seed=0,1" in args else 1)
    return process


def lines(process: subprocess.Popen[str]) -> tuple[int, list[str]]:
    """Exit code, and our sentences, after at most two minutes."""
    _, err = process.communicate(timeout=120)
    assert "Traceback" not in err, err
    return process.returncode, [line for line in err.splitlines() if line.startswith("kdbench: ")]


def test_cancelled_jobs_are_not_waited_for(slurm: Kdbench) -> None:
    process = begin(slurm, "seed=0,1")
    subprocess.run(["scancel", job_ids()[0].partition("_")[0]], check=True)
    code, told = lines(process)
    assert code == 1
    assert [bool(re.search(r"job [01] \(seed=[01]\) was interrupted \(its log: ", line)) for line in told] == [
        True,
        True,
        False,
    ]
    assert "state is CANCELLED" in told[2]
    assert len(list(slurm.work.glob("cells/*/last.ckpt"))) == 2


def test_the_end_of_a_job_s_time_interrupts_it(slurm: Kdbench) -> None:
    process = begin(slurm, "seed=0,1", TIMED, "hydra.launcher.max_num_timeout=0")
    subprocess.run(["scancel", "--signal=USR2", *job_ids()], check=True)  # as Slurm does when the time is nearly over
    code, told = lines(process)
    assert code == 1
    assert len(told) == 2
    assert all("was interrupted" in line for line in told)
    assert len(list(slurm.work.glob("cells/*/last.ckpt"))) == 2
    assert not slurm.records()


def test_slurm_queues_a_job_again_before_its_time_is_over(slurm: Kdbench) -> None:
    limit = ("hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=30")
    process = begin(slurm, "seed=0", "protocol.epochs=100000", *limit)
    (job,) = job_ids()
    until("its return to the queue", ["scontrol", "show", "job", job], "Restarts=1", 180)
    assert len(list(slurm.work.glob("cells/*/last.ckpt"))) == 1
    subprocess.run(["scancel", job], check=True)
    code, told = lines(process)
    assert code == 1
    assert " was interrupted (its log: " in told[0]
    assert not slurm.records()


@pytest.mark.parametrize("how", ["preempted", "out of time"])
def test_a_job_that_is_queued_again_resumes(slurm: Kdbench, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    process = begin(slurm, "seed=0", TIMED)
    if how == "preempted":
        subprocess.run(["srun", "--partition=urgent", "--exclusive", "true"], check=True, capture_output=True)
    else:
        subprocess.run(["scancel", "--signal=USR2", *job_ids()], check=True)
    assert process.communicate(timeout=600)[1] == ""
    assert process.returncode == 0
    (resumed,) = slurm.records()
    log = next(slurm.work.glob("sweeps/*/.submitit/*/*.out")).read_text()
    assert log.count("training scratch") == 2
    whole = other(slurm, "whole", monkeypatch)
    assert finish(whole, "run", *LONG)[0] == 0
    assert numbers(whole.records()[0]) == numbers(resumed)


def test_ctrl_c_says_what_the_queue_still_has(slurm: Kdbench) -> None:
    process = begin(slurm, "seed=0")
    (job,) = job_ids()
    process.send_signal(signal.SIGINT)
    code, told = lines(process)
    assert code == 130
    assert told[0] == f"kdbench: jobs that Slurm has go on: scancel {job} ends them."
    assert told[1].startswith("kdbench: interrupted")
    assert job_ids() == [job]


def test_what_slurm_refuses(slurm: Kdbench) -> None:
    code, _, told = finish(slurm, "run", "-m", *LONG, *SLURM, "hydra.launcher.partition=nope")
    assert code == 1
    assert len(told) == 1
    assert "invalid partition specified: nope" in told[0]


# ---- Optuna -----------------------------------------------------------------------------------------------------

OPTUNA = ("run", "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1", *SMALL, "~logger")


def test_a_search_with_optuna(alone: Kdbench) -> None:
    needs("hydra_optuna_sweeper")
    code, _, told = finish(alone, *OPTUNA, "method=kd")
    assert (code, len(told)) == (1, 1)
    assert "must not look at the test images" in told[0]
    code, out, told = finish(alone, *OPTUNA, "method=kd", "dataset.val=100", QUOTED)
    assert (code, told) == (0, [])
    (results,) = (alone.root / "r").glob("*/sweeps/*/optimization_results.yaml")
    values = [record.curves["val/top1"][-1] for record in alone.records()]
    assert f"best_value: {max(values)}\n" in results.read_text()
    assert "method.kd.temperature: " in results.read_text()
    assert f"best on the validation images, {max(values):.2f}: job " in out
