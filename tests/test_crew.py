"""Crews: one cell on several devices is the cell on one, up to rounding; what is not is refused in a sentence."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.nn.functional as F
from conftest import SMALL, Kdbench
from places import PLACES, equal, records_in, run, tiny_data
from test_cli import one_sentence
from test_cohort import plug
from test_every_method import killed_after_checkpoints
from test_grid import numbers, wait_for
from test_streamed import TRAIN, built, commanded, loader
from test_streamed import here as streamed  # noqa: F401
from torch import Tensor, nn
from worlds import SPEC

from kdbench.compute.batch_norm import BatchNormOfAll
from kdbench.data.batch import Batch, Share
from kdbench.data.manifest import ImageFiles
from kdbench.data.mixed import Mixed
from kdbench.data.views import Views
from kdbench.engine import crew as crews
from kdbench.engine import trial
from kdbench.engine.cohort import Cohort
from kdbench.engine.crew import check_batches
from kdbench.engine.fit import Place, each_device
from kdbench.engine.follower import follow
from kdbench.errors import UserError
from kdbench.method import Method
from kdbench.protocol import Protocol
from kdbench.results.record import Record

TWO = ("trainer.accelerator=cpu", "trainer.devices=2")
CPU = torch.device("cpu")
FORK = multiprocessing.get_context("fork")


class Forked(FORK.Process):  # type: ignore[name-defined,misc]
    """A process of a crew as `subprocess.Popen` shows it, without the seconds that a new interpreter takes."""

    def __init__(self, order: Mapping[str, Any], log: Path) -> None:
        super().__init__(target=self._follow, args=(order, log))
        self.start()

    @staticmethod
    def _follow(order: Mapping[str, Any], log: Path) -> None:
        os.setsid()
        sys.stdout = sys.stderr = log.open("w")
        code = follow(order)
        sys.stdout.flush()
        os._exit(code)

    def poll(self) -> int | None:
        return self.exitcode

    def wait(self, timeout: float | None = None) -> None:
        self.join(timeout)
        if self.exitcode is None:
            raise subprocess.TimeoutExpired("follower", timeout or 0)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Forked]]:
    """From now on other processes of a crew are forks of this one; they are gone in the end."""
    if torch.cuda.is_initialized():
        pytest.skip("a process that uses a GPU cannot be forked")
    started: list[Forked] = []

    def start(order: Mapping[str, Any], log: Path) -> Forked:
        started.append(Forked(order, log))
        return started[-1]

    monkeypatch.setattr(crews, "_start", start)
    yield started
    assert all(process.exitcode is not None for process in started)
    assert multiprocessing.active_children() == []


def near(one: Record, other: Record, tolerance: float, epochs: int | None = None) -> None:
    """The same numbers up to rounding, which grows from epoch to epoch, and the same answers where all are compared."""
    assert one.cell == other.cell
    for name, curve in one.curves.items():
        if name.startswith("loss/"):  # a term that an experience has none of is None
            a, b = curve[:epochs], other.curves[name][:epochs]
            assert [value is None for value in a] == [value is None for value in b], name
            assert [v for v in b if v is not None] == pytest.approx(
                [v for v in a if v is not None], rel=tolerance, abs=1e-7
            ), name
    for key in ("images", "student forwards", "teacher forwards"):
        assert numbers(one)[key] == numbers(other)[key]
    if epochs is None:
        assert one.correct is not None
        assert one.correct == other.correct


# ---- the whole --------------------------------------------------------------------------------------------------


def test_two_devices_are_one_up_to_rounding(kd: Kdbench, forked: list[Forked]) -> None:
    """Also where gradients are averaged over batches and cut to a norm; 200 images make a last batch of 8."""
    settings = ("method=[scratch,kd]", "dataset.pad=1", "protocol.accumulate=2", "protocol.clip_norm=1.0")
    assert kd.run(*settings, "paths.results=one").code == 0
    assert kd.run(*settings, *TWO).code == 0
    assert len(forked) == 2
    for name, record in records_in(kd, "one").items():
        near(record, kd.record(name), 1e-5)
        assert kd.record(name).environment.path.endswith("; 2 devices")


@pytest.mark.slow
def test_a_teacher_and_an_interrupted_cell_on_another_number_of_devices(
    alone: Kdbench, forked: list[Forked], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher is trained by two, and the student's second epoch by three."""
    kd, settings = alone, ("method=[kd]", "protocol.epochs=2", "checkpoint_seconds=0")
    with monkeypatch.context() as patch:
        killed_after_checkpoints(patch, 2 + 1)
        assert kd.run(*settings, *TWO).code == 130
    assert not kd.records()
    assert kd.run(*settings, "trainer.accelerator=cpu", "trainer.devices=3").code == 0
    assert len(forked) == 1 + 1 + 2
    assert kd.record("kd").environment.path.endswith("; 3 devices; devices: 2, then 3")
    assert kd.run(*settings, "paths.results=one").code == 0  # by the same teacher
    near(records_in(kd, "one")["kd"], kd.record("kd"), 1e-4)


def test_streamed_images_are_read_by_the_device_that_trains_on_them(
    kd: Kdbench,
    streamed: Path,  # noqa: F811
    forked: list[Forked],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[int] = []
    original = ImageFiles.content

    def counted(self: ImageFiles, i: int, *, hashed: bool) -> bytes:
        read.append(len(self))
        return original(self, i, hashed=hashed)

    command = [word for word in commanded(streamed) if not word.startswith("method=")]
    common = (*command, "method=scratch", "engine.workers=0", "protocol.epochs=2")
    assert kd(*common, "paths.results=one").code == 0
    monkeypatch.setattr(ImageFiles, "content", counted)
    result = kd(*common, *TWO)
    assert result.code == 0, result
    assert read.count(2 * TRAIN) == 2 * TRAIN  # half of them in each of two epochs
    near(records_in(kd, "one")["scratch"], kd.record("scratch"), 1e-4)


@pytest.mark.parametrize("mix", [None, {"mixup": 1.0}])
def test_shares_make_up_the_batch(streamed: Path, mix: Mapping[str, float] | None) -> None:  # noqa: F811
    """Of images that are streamed, and mixed, and in memory."""
    data = built(streamed, mix=mix)
    kinds: list[Callable[[Share], Any]] = [lambda share: loader(data, 7, share=share)]
    if data.mix:
        kinds = [lambda share: Mixed(loader(data, 7, share=share), data.mix, 2)]  # type: ignore[arg-type]
    else:
        images = torch.randint(0, 256, (24, 4, 4, 1), dtype=torch.uint8)
        settings: dict[str, Any] = {"mean": [0.5], "std": [0.5], "augment": True, "pad": 1, "flip": True}
        kinds.append(lambda share: Views(images, torch.arange(24), 7, 1, share=share, **settings))
    for kind in kinds:
        whole, *shares = ([*kind(share)] for share in (Share(), *(Share(rank, 3) for rank in range(3))))
        for batch, *parts in zip(whole, *shares, strict=True):
            assert max(map(len, parts)) - min(map(len, parts)) <= 1
            for key in ("x", "y", "index", "view"):
                assert torch.equal(torch.cat([getattr(part, key) for part in parts]), getattr(batch, key))
            if "again" in batch.beside:
                assert torch.equal(torch.cat([part["again"].x for part in parts]), batch["again"].x)


# ---- who may not ------------------------------------------------------------------------------------------------

NOISY = """
import torch
from methods.controls.scratch import Scratch


class Noisy(Scratch):
    def student_out(self, x, net=None):
        torch.rand(len(x))
        return super().student_out(x, net)


class Center(Scratch):
    def build(self, student, teacher, data):
        self.register_buffer("center", torch.zeros(data.num_classes))

    def losses(self, s, t, batch):
        self.logits = s.logits.detach()
        return super().losses(s, t, batch)

    def after_step(self, batch):
        self.center.lerp_(self.logits.mean(0), 0.1)


class Pairs(Scratch):
    def losses(self, s, t, batch):
        assert len(batch) % 64 in (0, 8)
        return super().losses(s, t, batch)


class Single(Scratch):
    terms = ("ce", "size")

    def losses(self, s, t, batch):
        return {**super().losses(s, t, batch), "size": s.logits.float().square().mean()}
"""


def test_who_compares_samples_is_refused(kd: Kdbench, forked: list[Forked]) -> None:
    """Relations, a memory bank, images made of random numbers; a draw for each sample; a mean that is kept. A term that
    is float32 whatever the others are is no reason."""
    own = dict.fromkeys(("noisy", "center", "pairs"), "weights: {ce: 1.0}")
    plug(kd, NOISY, **own, single="weights: {ce: 1.0, size: 0.1}")
    chosen = ["rkd", "crd", "dafl", *own]
    result = kd.run(*TWO, "--config-dir", "conf", f"method=[{','.join(chosen)},single]", "protocol.epochs=1")
    assert "Traceback" not in result.out + result.err
    told = {line.split()[2]: line for line in result.messages if line.startswith("left out: ")}
    assert sorted(told) == sorted(chosen)
    assert [record.cell.method for record in kd.records()] == ["single"]
    assert all("train it on one device (trainer.devices=1)" in line for line in told.values())
    for name, found in {
        "rkd": "RKD is another method where 2 devices share each batch (its term '",
        "noisy": "(the state of its random numbers differs on 16 samples)",
        "center": "(its buffer 'center' differs",
        "pairs": "cannot be tried on 16 samples in float64 (AssertionError",
    }.items():
        assert found in told[name]


def test_what_lies_beside_a_batch_is_not_shared(kd: Kdbench) -> None:
    semi = ("scenario=semi_supervised", "dataset.scenario.labelled=50", "dataset.scenario.per_batch=8")
    one_sentence(kd.run("method=mean_teacher", *semi, *TWO), "MeanTeacher needs 'unlabelled'", "trainer.devices=1")
    assert kd.run("method=scratch", *semi, "trainer.accelerator=cpu", "protocol.epochs=1").code == 0


def test_what_is_tried_leaves_no_trace(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each step of one device, the same step is tried: not a bit of the record is another."""
    settings = ("method=[dml,crd]", "cohort.max_students=1", "protocol.epochs=1")
    assert kd.run(*settings, "paths.results=one").code == 0
    played = Cohort._step
    tried: list[trial.Trial] = []

    def twice(self: Cohort, method: Method, batch: Batch, batch_idx: int) -> None:
        tried.append(trial.step(None, method, batch, batch_idx))
        played(self, method, batch, batch_idx)

    monkeypatch.setattr(Cohort, "_step", twice)
    assert kd.run(*settings).code == 0
    assert len(tried) == 2 * 4  # cells, batches
    assert all(each.terms_of and each.gradients_of and each.left for each in tried)
    equal(kd, "one", "results")


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        ({"batch_size": 3}, 1),
        ({"batch_size": 2}, 2),
        ({"batch_size": 3, "drop_last": True}, 3),
        ({"batch_size": 9}, 4),
    ],
)
def test_a_batch_has_a_sample_for_each_device(settings: dict[str, Any], least: int) -> None:
    data = replace(SPEC, n_train=4)
    for size in range(2, 5):
        if size <= least:
            check_batches(Protocol(**settings), data, size)
        else:
            with pytest.raises(UserError, match=f"has {least}, fewer than {size} devices.*drop_last=true"):
                check_batches(Protocol(**settings), data, size)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("protocol.batch_size=199", "the last batch of 200 images in batches of 199 has 1, fewer than 2 devices"),
        ("protocol.precision=16-mixed", "take bf16-mixed"),
    ],
)
def test_what_is_known_before_anything_is_trained(kd: Kdbench, override: str, says: str) -> None:
    result = kd.run("method=kd", "teacher.seed=77", override, *TWO)
    one_sentence(result, says)
    assert "training" not in result.out


@pytest.mark.skipif(torch.cuda.is_available(), reason="here they are")
def test_devices_that_are_not_there(kd: Kdbench) -> None:
    one_sentence(kd.run("method=scratch", "trainer.accelerator=gpu", "trainer.devices=2"), "trainer.accelerator")


def test_a_device_each() -> None:
    assert each_device({"accelerator": "cpu", "devices": 1}) == [Place({"accelerator": "cpu", "devices": 1}, CPU)]
    assert each_device({"accelerator": "cpu", "devices": 3}) == [Place({"accelerator": "cpu", "devices": 1}, CPU)] * 3


# ---- what goes wrong --------------------------------------------------------------------------------------------

UNLUCKY = """
import multiprocessing, os, signal
from methods.controls.scratch import Scratch


class Unlucky(Scratch):
    def after_step(self, batch):
        if multiprocessing.parent_process() and self.epoch == 1:
            befall = os.environ.get("BEFALL")
            if befall == "raise":
                raise ValueError("no luck")
            if befall == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if befall == "differ":
                self.student.head.bias.data += 1e-3
"""


def test_another_process_that_fails_costs_an_epoch(
    kd: Kdbench, forked: list[Forked], monkeypatch: pytest.MonkeyPatch
) -> None:
    plug(kd, UNLUCKY, unlucky="weights: {ce: 1.0}")
    command = ("--config-dir", "conf", "method=unlucky", "checkpoint_seconds=0")
    for what, words in {
        "raise": ["device 2 of 2", "ValueError: no luck"],
        "die": ["device 2 of 2", "SIGKILL", "repeat the command"],
        "differ": ["disagree about 'student.head.bias' after epoch 2"],
    }.items():
        monkeypatch.setenv("BEFALL", what)
        one_sentence(kd.run(*command, *TWO), *words)
    (checkpoint,) = kd.work.glob("cells/*/last.ckpt")
    assert checkpoint.exists()
    monkeypatch.delenv("BEFALL")
    epochs: list[int] = []
    played = Cohort.on_train_epoch_start
    monkeypatch.setattr(Cohort, "on_train_epoch_start", lambda self: (epochs.append(self.epoch), played(self)))
    assert kd.run(*command, *TWO).code == 0
    assert epochs == [1]
    assert kd.run(*command, "paths.results=one").code == 0
    near(records_in(kd, "one")["unlucky"], kd.record("unlucky"), 1e-5)


@pytest.mark.cluster
@pytest.mark.parametrize("end", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGKILL"])
def test_no_process_outlives_the_one_that_leads(kd: Kdbench, end: str) -> None:
    """Real ones, not forks."""
    settings = (*SMALL, "method=scratch", "~logger")
    running = kd.spawn("run", *settings, "protocol.epochs=300", "checkpoint_seconds=0", *TWO)
    wait_for(kd, "runs/cells/*/last.ckpt", running)
    family = psutil.Process(running.pid).children(recursive=True)
    assert any("kdbench.engine.follower" in process.cmdline() for process in family)
    running.send_signal(getattr(signal, end))
    out, err = running.communicate(timeout=120)
    assert running.returncode == {"SIGKILL": -signal.SIGKILL, "SIGTERM": 143}.get(end, 130), (out, err)
    assert "Traceback" not in out + err
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
    assert list(kd.work.glob("cells/*/last.ckpt"))
    if end != "SIGKILL":
        return
    again = kd.spawn("run", *settings, "protocol.epochs=300", "trainer.accelerator=cpu")
    out, err = again.communicate(timeout=600)
    assert again.returncode == 0, (out, err)
    assert kd.record("scratch").environment.path.endswith("devices: 2, then 1")


@pytest.mark.cluster
def test_a_real_process_follows(kd: Kdbench) -> None:
    assert kd.run("method=scratch", "paths.results=one").code == 0
    assert kd.run("method=scratch", *TWO).code == 0
    near(records_in(kd, "one")["scratch"], kd.record("scratch"), 1e-5)


# ---- batch norm -------------------------------------------------------------------------------------------------


def all_at_once(shares: int, play: Callable[[int, Callable[[Tensor], None]], None]) -> None:
    """`play` in a thread for each share, with its number and what sums a tensor over all."""
    meeting, lying = threading.Barrier(shares, timeout=60), [torch.empty(0)] * shares

    def run(number: int) -> None:
        def add(tensor: Tensor) -> None:
            lying[number] = tensor.clone()
            meeting.wait()
            total = torch.stack(lying).sum(0)
            meeting.wait()
            tensor.copy_(total)

        play(number, add)

    with ThreadPoolExecutor(shares) as pool:
        list(pool.map(run, range(shares)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", [{}, {"affine": False}, {"track_running_stats": False}, {"momentum": None}])
@pytest.mark.parametrize("shape", [(7, 3), (5, 3, 4, 2)])
def test_batch_norm_of_shares_is_that_of_the_batch(
    shape: tuple[int, ...], settings: dict[str, Any], dtype: torch.dtype
) -> None:
    """Outputs, gradients, gradients of gradients and running statistics, far from zero, in three uneven shares."""
    random = torch.Generator().manual_seed(0)
    x = (100 + 3 * torch.randn(shape, generator=random, dtype=torch.float64)).to(dtype)
    weights = torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)
    nets = [nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d] * 4
    whole, *parts = (net(3, dtype=dtype, **settings) for net in nets)
    for net in (whole, *parts):
        if net.affine:
            with torch.no_grad():
                net.weight.copy_(torch.tensor([0.5, -2.0, 1.0]))
                net.bias.copy_(torch.tensor([0.0, 1.0, -1.0]))

    def played(net: nn.Module, x: Tensor, weights: Tensor, add: Callable[[Tensor], None]) -> list[Tensor]:
        x = x.clone().requires_grad_()
        out = net(x)
        (gradient,) = torch.autograd.grad((out.sin() * weights).sum(), x, create_graph=True)
        second = torch.autograd.grad(gradient.square().sum(), [x, *net.parameters()])
        sums = [each.clone() for each in second[1:]]
        for each in sums:
            add(each)
        net(x)  # a second step
        return [out.detach(), gradient.detach(), second[0], *sums]

    want = played(whole, x, weights, lambda tensor: None)
    got: list[list[Tensor]] = [[]] * 3

    def play(number: int, add: Callable[[Tensor], None]) -> None:
        share = Share(number, 3)
        with BatchNormOfAll(add):
            got[number] = played(parts[number], share.of(x), share.of(weights), add)

    all_at_once(3, play)
    close = {"rtol": 2e-3, "atol": 2e-3} if dtype == torch.float32 else {"rtol": 1e-8, "atol": 1e-8}
    for k, value in enumerate(want):
        together = torch.cat([each[k] for each in got]) if k < 3 else got[0][k]
        torch.testing.assert_close(together, value, **close)
    for net in parts:
        for name, value in whole.state_dict().items():
            torch.testing.assert_close(net.state_dict()[name], value, **close)


def test_batch_norm_that_is_not_in_training_waits_for_nobody() -> None:
    net, x = nn.BatchNorm2d(3), torch.randn(4, 3, 2, 2)
    with BatchNormOfAll(lambda tensor: pytest.fail("it asked")):
        assert torch.equal(net.eval()(x), F.batch_norm(x, net.running_mean, net.running_var, net.weight, net.bias))


# ---- everyone ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_every_method_is_refused_or_the_same(
    kd: Kdbench,
    forked: list[Forked],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    place: str,
) -> None:
    folder = tmp_path_factory.mktemp("data")
    tiny_data(folder)
    monkeypatch.setenv("KDBENCH_DATA", str(folder))
    assert run(kd, place, "cohort.max_students=1000", "paths.results=one").code == 0
    result = run(kd, place, *TWO)
    assert all(line.startswith("left out: ") and "train it on one device" in line for line in result.messages)
    one = records_in(kd, "one")
    left_out = {line.split()[2] for line in result.messages}
    assert {record.cell.method for record in kd.records()} == one.keys() - left_out
    for record in kd.records():
        near(one[record.cell.method], record, 1e-3, epochs=1)


@pytest.mark.gpu
def test_two_gpus_are_one_up_to_rounding(kd: Kdbench) -> None:
    gpus = ("trainer.accelerator=gpu", "engine.compile=false", "method=[scratch,kd]")
    if torch.cuda.device_count() < 2:
        one_sentence(kd.run(*gpus, "trainer.devices=2"), "trainer.devices")
        return
    assert kd.run(*gpus, "paths.results=one").code == 0
    assert kd.run(*gpus, "trainer.devices=2").code == 0
    for name, record in records_in(kd, "one").items():
        near(record, kd.record(name), 1e-3, epochs=1)
