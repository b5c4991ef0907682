"""A launcher whose worker is as on another machine, and a sweeper that notes what it is asked and told."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, run_job
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from omegaconf import open_dict

import kdbench

WORKER = """
import pickle, sys
from hydra.core.utils import run_job, setup_globals
from omegaconf import open_dict
setup_globals()
with open(sys.argv[1], "rb") as file:
    context, config, task, jobs = pickle.load(file)
for number, overrides in jobs:
    job = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(job):
        job.hydra.job.num, job.hydra.job.id = number, f"elsewhere-{number}"
    run_job(task, job, "hydra.sweep.dir", "hydra.sweep.subdir", context)
"""


class Setup:
    """What Hydra gives to a plugin."""

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.context, self.task, self.config = hydra_context, task_function, config


class Elsewhere(Setup, Launcher):
    """Runs its jobs in one other process, in another folder, without the variables of the user's shell."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        elsewhere = Path("elsewhere").absolute()
        elsewhere.mkdir(exist_ok=True)
        jobs = [(initial_job_idx + k, list(overrides)) for k, overrides in enumerate(job_overrides)]
        (elsewhere / "work.pkl").write_bytes(pickle.dumps((self.context, self.config, self.task, jobs)))
        env = {name: value for name, value in os.environ.items() if not name.startswith("KDBENCH")}
        env |= {"PYTHONPATH": str(Path(kdbench.__file__).parent.parent), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", WORKER, "work.pkl"]
        subprocess.run(command, cwd=elsewhere, env=env, check=True, stdout=subprocess.DEVNULL)
        return []


class Asking(Setup, Sweeper):
    """A search that tries fixed jobs; class variables, for Hydra makes the object."""

    trials: ClassVar[list[list[str]]] = []
    asked: ClassVar[list[str]] = []
    values: ClassVar[list[Any]] = []
    direction: ClassVar[str] = ""

    def __init__(self, direction: str, params: None) -> None:
        Asking.direction = direction

    def sweep(self, arguments: list[str]) -> None:
        Asking.asked, Asking.values = arguments, []
        for number, overrides in enumerate(self.trials):
            job = self.context.config_loader.load_sweep_config(self.config, overrides)
            with open_dict(job):
                job.hydra.job.num, job.hydra.job.id = number, number
            done = run_job(self.task, job, "hydra.sweep.dir", "hydra.sweep.subdir", self.context)
            Asking.values.append(done.return_value)


NAME = "hydra_plugins.kdbench_test"
ConfigStore.instance().store(group="hydra/launcher", name="elsewhere", node={"_target_": f"{NAME}.Elsewhere"})
ConfigStore.instance().store(
    group="hydra/sweeper",
    name="asking",
    node={"_target_": f"{NAME}.Asking", "direction": "minimize", "params": None},
)
