"""Sweeps: what became of each job is known whatever launcher ran it, and what a search is told of it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL, Kdbench
from hydra.core.plugins import Plugins
from omegaconf import OmegaConf
from test_cli import one_sentence
from test_grid import numbers

from kdbench import shipped
from kdbench.cli import slurm
from kdbench.cli.outcomes import Told
from kdbench.cli.sweeps import Sweep, check_gpus
from kdbench.errors import UserError

sys.path.append(str(Path(__file__).parent / "plugins"))  # Hydra takes plugins from a package of one name only


@pytest.fixture(autouse=True)
def asking() -> Any:
    """The sweeper; both plugins are made known where Hydra has looked for some before."""
    known = Plugins.instance()
    module = importlib.import_module("hydra_plugins.kdbench_test")
    known.register(module.Elsewhere)
    known.register(module.Asking)
    return module.Asking


OWN = '''
import os
import signal

from methods.controls.scratch import Scratch


class Own(Scratch):
    """Scratch that does something else in its second epoch."""

    def __init__(self, then="nothing", **kwargs):
        super().__init__(**kwargs)
        self.then = then

    def training_step(self, batch, batch_idx):
        if self.epoch == 1 and self.then == "die":
            os._exit(9)
        if self.epoch == 1 and self.then.startswith("SIG"):
            os.kill(os.getpid(), getattr(signal, self.then))
        return super().training_step(batch, batch_idx)
'''
OWN_ARGS = (
    "method=[]",
    "+method.own._target_=own.Own",
    "+method.own.weights.ce=1.0",
    "~logger",
    "checkpoint_seconds=0",
)


@pytest.fixture
def own(kd: Kdbench) -> Iterator[Kdbench]:
    (kd.root / "own.py").write_text(OWN)
    yield kd
    sys.modules.pop("own", None)


def summary(out: str) -> str:
    return out[re.search(r"^\d+ trained", out, re.M).start() :]  # type: ignore[union-attr]


# ---- whatever launcher ------------------------------------------------------------------------------------------


def test_jobs_elsewhere_are_told_as_those_here(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    # a divergence and a user's mistake among the jobs; a folder that needs quotes; the cache is known by a variable
    grid = ("-m", "method=scratch", "protocol.optimizer.lr=0.05,1e9,-1", "~logger")
    grid += ('paths.work="r/runs (v2) für köln"',)
    sides, summaries = {}, set()
    for name, launcher in (("here", ()), ("there", ("hydra/launcher=elsewhere",))):
        root = kd.root / name
        root.mkdir()
        monkeypatch.chdir(root)
        side = sides[name] = Kdbench(root, kd.cache, kd._capfd)
        result = side.run(*grid, *launcher)
        assert result.code == 1
        (mistake,) = result.err.splitlines()
        assert mistake.startswith("kdbench: protocol.optimizer")
        assert re.search("^scratch +1 ", result.out, re.M)  # a table
        told = summary(result.out)
        assert told.startswith("1 trained, 0 already done, 1 failed or diverged.\n")
        assert len(re.findall("^diverged: scratch .* seed 0 ", told, re.M)) == 1
        summaries.add(told)
        assert (root / "r" / "runs (v2) für köln" / "sweeps").is_dir()
    assert len(summaries) == 1
    here, there = ([r for r in sides[name].records() if r.metrics] for name in ("here", "there"))
    assert [numbers(record) for record in here] == [numbers(record) for record in there]
    assert len(here) == 1
    assert os.listdir(kd.root / "there" / "elsewhere") == ["work.pkl"]  # nothing went where the worker stands


@pytest.mark.slow
def test_trials_of_a_tuning_are_tried_elsewhere(kd: Kdbench) -> None:
    given = (
        "tune",
        *SMALL,
        "method=ls",
        "method.ls.epsilon=choice(0.1,0.3)",
        "control=null",
        "dataset.val=100",
        "~logger",
    )
    result = kd(*given, "hydra/launcher=elsewhere")
    assert (result.code, result.err) == (0, "")
    assert re.search("^│ ls +│ +2 │", result.out, re.M)
    assert len(list((kd.work / "tune" / "records").iterdir())) == 2
    here = kd(*given)  # finds what was tried there
    assert here.out == result.out


@pytest.mark.slow
def test_a_worker_that_dies(own: Kdbench) -> None:
    kd = own
    result = kd.run("-m", *OWN_ARGS, "+method.own.then=nothing,die,SIGINT", "hydra/launcher=elsewhere")
    assert result.code == 1
    first, second, last = result.err.splitlines()
    go_on = "repeat the command to go on."
    assert first == f"kdbench: job 1 (+method.own.then=die) did not end: it was killed, or still runs; {go_on}"
    assert second == (f"kdbench: job 2 (+method.own.then=SIGINT) was not begun, or still waits in a queue: {go_on}")
    assert re.match(r"kdbench: hydra/launcher=elsewhere gave up: CalledProcessError: Command .* exit status 9", last)
    assert summary(result.out) == "1 trained, 0 already done, 0 failed or diverged.\n"


def test_who_did_not_come_to_an_end(tmp_path: Path) -> None:
    planned = [["method=kd", f"seed={seed}"] for seed in range(4)]
    log = tmp_path / ".submitit" / "12_1" / "12_1_0_log.err"
    log.parent.mkdir(parents=True)
    log.write_text("")
    told = [
        Told(0, overrides=planned[0], state="ended"),
        Told(1, "12_1", planned[1], "interrupted"),
        Told(2, "12_2", planned[2], "begun"),
    ]
    go_on = "repeat the command to go on."
    sweep = Sweep(tmp_path, "submitit_slurm", planned)
    assert list(sweep.unheard(told, gave_up=False)) == [
        f"job 1 (seed=1) was interrupted (its log: {log}): {go_on}",
        f"job 2 (seed=2) was killed, or its machine failed: {go_on}",
        f"job 3 (seed=3) left no word: {tmp_path} must be the same folder for all workers.",
    ]
    assert list(sweep.unheard(told, gave_up=True)) == [
        f"job 1 (seed=1) was interrupted (its log: {log}): {go_on}",
        f"job 2 (seed=2) did not end: it was killed, or still runs; {go_on}",
        f"job 3 (seed=3) was not begun, or still waits in a queue: {go_on}",
    ]
    assert list(Sweep(tmp_path, "basic", [planned[0]]).unheard(told[:1], gave_up=False)) == []
    assert len(list(Sweep(tmp_path, "ray", None).unheard([], gave_up=False))) == 1
    assert sweep.queued() == "jobs that Slurm has go on: scancel 12 ends them."
    assert Sweep(tmp_path, "submitit_local", planned).queued() is None


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "Job 6_0 (task: 0) with path /a b/6_0_0_result.pkl\nhas not produced any output (state: CANCELLED)\nError",
            "RuntimeError: job 6_0 has ended without a result, its state is CANCELLED (all of it in LOG).",
        ),
        ("sbatch: error: invalid partition: nope", "RuntimeError: sbatch: error: invalid partition: nope."),
        ("\n-----\nray::_run_job() (pid=1)\nValueError: x\n", "RuntimeError: ValueError: x (all of it in LOG)."),
        ("", "RuntimeError: RuntimeError."),
    ],
)
def test_what_a_launcher_raises_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    told = Sweep(tmp_path, "some", [[]]).why(RuntimeError(text), [])
    log = tmp_path / "launcher.log"
    assert told == f"hydra/launcher=some gave up: {sentence}".replace("LOG", str(log))
    assert log.read_text() == text


@pytest.mark.parametrize(("group", "name", "extra"), [("launcher", "ray", "cluster"), ("sweeper", "optuna", "search")])
def test_a_plugin_that_is_not_installed(kd: Kdbench, group: str, name: str, extra: str) -> None:
    if importlib.util.find_spec(f"hydra_plugins.hydra_{name}_{group}"):
        pytest.skip("it is")
    told = one_sentence(kd.run("-m", f"hydra/{group}={name}"))
    assert told == f"kdbench: hydra/{group}={name} is not installed: pip install 'kdbench[{extra}]' brings it."


def test_a_preset_that_nothing_here_can_do(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    if not importlib.util.find_spec("hydra_plugins.hydra_submitit_launcher"):
        told = one_sentence(kd.run("cluster=slurm"))
        assert (
            told == "kdbench: hydra/launcher=submitit_slurm is not installed: pip install 'kdbench[cluster]' brings it."
        )
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    preset = shipped.config("cluster", "ray_gpus")["hydra"]
    with pytest.raises(UserError, match=r"num_gpus=1 .* PyTorch sees 0 GPUs here: .* cluster=joblib"):
        check_gpus(OmegaConf.create(preset))
    for wanted in ({"remote": {"num_gpus": 0}}, {"init": {"num_gpus": 8}}, {"init": {"address": "head:6379"}}):
        check_gpus(OmegaConf.merge(preset, {"launcher": {"ray": wanted}}))  # type: ignore[arg-type]


def test_states_of_slurm_s_jobs() -> None:
    listed = "12_0|RUNNING\n12_1|CANCELLED\n7|COMPLETED\n"
    states = {job: info["State"] for job, info in slurm.states(listed, {"12_0", "12_1", "13"}).items()}
    assert states == {"12_0": "RUNNING", "12_1": "CANCELLED", "13": "GONE"}  # it forgets what ended long ago


def test_a_bug_in_one_job_hides_nothing_of_the_others(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdbench.cli import run

    make_bench = run.make_bench

    def broken(job: Any) -> Any:
        if job.seed == [1]:
            raise TypeError("seeds are odd")
        return make_bench(job)

    monkeypatch.setattr(run, "make_bench", broken)
    result = kd.run("-m", "method=scratch", "seed=0,1,2")
    told = one_sentence(result, "job 1: TypeError: seeds are odd (traceback in ")
    assert "in broken" in Path(re.search(r"in (\S+)\)", told)[1]).read_text()  # type: ignore[index]
    assert "2 trained, 0 already done, 0 failed" in result.out
    assert "scratch  2 " in result.out
    one_sentence(kd.run("method=scratch", "seed=1"), "this is a bug in kdbench (TypeError: seeds are odd)")


def test_paths_start_where_the_user_stands(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDBENCH_CACHE", "cache")
    result = kd.run("-m", "method=kd", "seed=0,1", "hydra.job.chdir=true")
    assert result.code == 0
    assert [record.cell.seed for record in kd.records()] == [0, 1]
    assert re.search("^kd +2 ", result.out, re.M)
    assert {path.name for path in kd.root.iterdir()} == {"cache", "results", "runs"}
    assert {path.name for path in (kd.work / "sweeps").glob("*/[01]/*")} == set()  # the jobs' own folders
    assert os.environ["KDBENCH_CACHE"] == "cache"


def test_sweeps_in_one_folder_tell_their_own(kd: Kdbench) -> None:
    command = ("-m", "method=scratch", "hydra.sweep.dir=same")
    assert kd.run(*command, "seed=0,1").code == 0
    assert summary(kd.run(*command, "seed=2").out) == "1 trained, 0 already done, 0 failed or diverged.\n"


def test_a_sweep_s_folder_that_cannot_be_made(kd: Kdbench) -> None:
    (kd.root / "file").write_text("")
    one_sentence(kd.run("-m", "method=scratch", "seed=0,1", "paths.work=file"), "Cannot write to", "choose another")


def test_teachers_of_a_sweep(kd: Kdbench) -> None:
    result = kd("teacher", "train", "-m", "protocol.epochs=1", "dataset.per_class=20", "pair.teacher=resnet8,nope")
    one_sentence(result, "unknown network 'nope'")
    assert re.search(r"^resnet8: [\d.]+ %, sha256 [0-9a-f]{64}\n\S+\.safetensors$", result.out, re.M)


# ---- interruptions ----------------------------------------------------------------------------------------------


def test_ctrl_c_tells_what_was_done(own: Kdbench) -> None:
    result = own.run("-m", *OWN_ARGS, "+method.own.then=nothing,SIGINT", "seed=0,1")
    assert result.code == 130
    assert result.err == "kdbench: interrupted; finished cells are kept, repeat the command to go on.\n"
    assert summary(result.out) == "2 trained, 0 already done, 0 failed or diverged.\n"


def end_of_time(number: int, frame: object) -> None:
    raise RuntimeError("the job's time is over")


@pytest.mark.parametrize(("name", "handler"), [("SIGUSR1", signal.SIG_DFL), ("SIGUSR2", end_of_time)])
def test_a_scheduler_s_signal_fails_no_cell(
    own: Kdbench, monkeypatch: pytest.MonkeyPatch, name: str, handler: Any
) -> None:
    kd = own
    command = (*OWN_ARGS, f"+method.own.then={name}", "protocol.epochs=3")
    if handler == signal.SIG_DFL:  # where Lightning would put a handler of its own
        for key, value in {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "1", "SLURM_JOB_NAME": "kdbench"}.items():
            monkeypatch.setenv(key, value)
    before = signal.signal(getattr(signal, name), handler)
    try:
        result = kd.run(*command)
        assert signal.getsignal(getattr(signal, name)) is handler
        signal.signal(getattr(signal, name), signal.SIG_IGN)
        assert result.code == 130
        assert result.err == "kdbench: interrupted; finished cells are kept, repeat the command to go on.\n"
        assert "failed: " not in result.out
        assert len(list(kd.work.glob("cells/*/last.ckpt"))) == 1
        assert not kd.records()
        assert kd.run(*command).code == 0
    finally:
        signal.signal(getattr(signal, name), before)
    assert kd.run(*OWN_ARGS, "protocol.epochs=3", "+method.own.then=nothing").code == 0
    resumed, whole = kd.records()
    assert resumed.cell.id != whole.cell.id
    assert (resumed.metrics, resumed.curves, resumed.correct) == (whole.metrics, whole.curves, whole.correct)


# ---- searches ---------------------------------------------------------------------------------------------------

SEARCH = ("-m", "hydra/sweeper=asking", "dataset.val=100", "~logger")


def test_a_search_is_told_of_validation_images_alone(kd: Kdbench, asking: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = [["protocol.optimizer.lr=0.05"], ["protocol.optimizer.lr=1e9"], ["pair.student=nope"]]
    monkeypatch.setattr(asking, "trials", trials)
    result = kd.run(*SEARCH, "method=scratch", "seed=[0,1]", "paths.work='r/a (b)'")
    last = [record.curves["val/top1"][-1] for record in kd.records() if record.status == "finished"]
    assert len(last) == 2
    assert asking.values == [pytest.approx(sum(last) / 2), 0.0, None]
    assert result.code == 1
    assert f"best on the validation images, {sum(last) / 2:.2f}: job 0 (protocol.optimizer.lr=0.05)\n" in result.out
    assert "unknown network 'nope'" in result.err
    assert (kd.root / "r" / "a (b)" / "sweeps").is_dir()  # fixed settings keep their quotes
    assert asking.asked == []
    assert asking.direction == "maximize"


def test_a_search_without_validation_images_is_refused_at_once(
    kd: Kdbench, asking: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "trials", [[]])
    monkeypatch.setattr(asking, "asked", None)
    one_sentence(kd.run(*SEARCH, "method=scratch", "dataset.val=0"), "must not look at the test images", "dataset.val=")
    assert asking.asked is None
    # where the number of held out images is searched for, only the jobs can know
    monkeypatch.setattr(asking, "trials", [["dataset.val=0"]])
    one_sentence(kd.run(*SEARCH[:2], "method=scratch", "dataset.val=choice(0,10)"), "must not look at the test images")
    assert asking.values == [None]
    assert not kd.results.exists()


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ((), ["method.kd.temperature=choice(1,2,4,8,20)", "method.kd.weights.kd=interval(0.1,1.0)"]),
        (("method.kd.temperature=2",), ["method.kd.weights.kd=interval(0.1,1.0)"]),
        (("method.kd.weights.kd=choice(1,2)", "method.kd.temperature=1"), ["method.kd.weights.kd=choice(1,2)"]),
        (("method.kd.weights={ce: 0.5, kd: 0.5}",), ["method.kd.temperature=choice(1,2,4,8,20)"]),
        (("method=choice(scratch,kd)",), ["method=choice(scratch,kd)"]),
        (("hydra.sweeper.direction=minimize", "method=scratch"), []),
    ],
)
def test_a_search_looks_where_a_method_says(
    kd: Kdbench, asking: Any, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...], asked: list[str]
) -> None:
    monkeypatch.setattr(asking, "trials", [])
    assert kd.run(*SEARCH, *given).code == 1  # nothing was tried
    assert asking.asked == asked
    assert asking.direction == ("minimize" if "hydra.sweeper.direction=minimize" in given else "maximize")
