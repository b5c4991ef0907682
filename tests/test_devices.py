"""Devices: whose time and memory is whose, whose random numbers, what float32 is there, and what if one is full."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import SMALL, Kdbench
from places import equal
from test_cli import one_sentence
from test_cohort import plug
from test_grid import wait_for
from torch import Tensor

from kdbench.compute import device as devices
from kdbench.compute.clock import Clock
from kdbench.compute.device import check_usable, tf32
from kdbench.data.datasets import Split
from kdbench.engine import cohort, fit
from kdbench.engine.cohort import Member
from kdbench.engine.run import Bench
from kdbench.engine.seeding import seeded
from kdbench.errors import UserError
from kdbench.teaching.teachers import Teacher

CPU, GPU = torch.device("cpu"), torch.device("cuda", 3)


class Ticks:
    """A clock of which each mark is one second after the one before; notes whether float32 might be rounded then."""

    rounded: list[bool]

    def __init__(self, device: torch.device) -> None:
        self.now = 0

    def mark(self) -> int:
        self.now += 1
        self.rounded.append(torch.backends.cudnn.allow_tf32 or torch.backends.cuda.matmul.allow_tf32)
        return self.now

    def seconds(self, began: int, ended: int) -> int:
        return ended - began


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> type[Ticks]:
    Ticks.rounded = []
    monkeypatch.setattr(cohort, "Clock", Ticks)
    return Ticks


def test_time_is_of_who_used_it_and_float32_is_float32(
    kd: Kdbench, ticks: type[Ticks], monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks: list[torch.device] = []
    monkeypatch.setattr(fit, "forget_peak", peaks.append)
    before = torch.backends.cudnn.allow_tf32
    assert kd.run("method=[scratch,ls]", "~logger").code == 0
    # an epoch of four batches: before it, each batch and behind it are six turns of two marks for either, between one
    # mark at the beginning and one at the end; of its 25 seconds 12 are in turns, and 13 are shared
    assert [record.cost.train_seconds for record in kd.records()] == [2 * (6 + 13 / 2)] * 2
    assert set(ticks.rounded) == {False}
    assert torch.backends.cudnn.allow_tf32 is before
    assert peaks == [CPU]  # once for a cohort


class Event:
    """Of CUDA, on a device that works a second for each piece of work, later."""

    queued = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.passed = False

    def record(self, stream: Any) -> None:
        assert stream == f"the stream of {GPU}"
        self.at = Event.queued

    def synchronize(self) -> None:
        self.passed = True

    def elapsed_time(self, other: Event) -> float:
        assert other.passed
        return 1000 * (other.at - self.at)


def test_a_gpu_is_asked_for_the_time_that_its_work_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"the stream of {device}")
    clock = Clock(GPU)
    began = clock.mark()
    Event.queued += 2.5  # launched in no time
    ended = clock.mark()
    Event.queued += 7
    assert clock.seconds(began, ended) == 2.5


def test_the_peak_is_forgotten_on_the_device_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", told.append)
    for device in (CPU, GPU):
        fit.forget_peak(device)
    assert told == [GPU]


# ---- random numbers ---------------------------------------------------------------------------------------------


def test_a_member_has_the_random_numbers_of_its_own_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    states = {GPU: torch.tensor([0])}
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states[device])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: states.update({device: state}))
    member = Member("one", SimpleNamespace(), tmp_path, torch.get_rng_state(), cuda_rng=torch.tensor([5]))  # type: ignore[arg-type]
    with member.playing(GPU):
        assert int(states[GPU]) == 5
        states[GPU] = torch.tensor([6])
    states[GPU] = torch.tensor([9])  # another member
    with member.playing(GPU):
        assert int(states[GPU]) == 6


@pytest.mark.parametrize(("used", "saved"), [(False, []), (True, [2])])
def test_no_gpu_but_the_one_in_use_is_woken_for_its_random_numbers(
    monkeypatch: pytest.MonkeyPatch, used: bool, saved: list[int]
) -> None:
    asked: list[Any] = []

    @contextmanager
    def fork(devices: Any = None) -> Iterator[None]:
        asked.append(devices)
        yield

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: used)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    monkeypatch.setattr(torch.random, "fork_rng", fork)
    monkeypatch.setattr(torch, "manual_seed", lambda seed: None)
    with seeded("anything"):
        pass
    assert asked == [saved]


# ---- what float32 is --------------------------------------------------------------------------------------------


def test_rounding_is_as_it_was_afterwards() -> None:
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for allowed in (True, False):
        with suppress(KeyError), tf32(allowed):
            assert [backend.allow_tf32 for backend in backends] == [allowed, allowed]
            raise KeyError
        assert [backend.allow_tf32 for backend in backends] == before


def test_tf32_is_a_protocol_of_its_own(kd: Kdbench, ticks: type[Ticks], monkeypatch: pytest.MonkeyPatch) -> None:
    result = kd.run("method=scratch", "protocol.precision=tf32", "~logger")
    one_sentence(result, "protocol.precision=tf32 would be 32-true on this device")
    monkeypatch.setattr(fit, "has_tf32", lambda device: True)
    assert kd.run("method=scratch", "protocol.precision=tf32", "~logger").code == 0
    assert set(ticks.rounded) == {True}
    assert kd.run("method=scratch", "~logger").code == 0
    first, second = kd.records()
    assert {first.environment.precision, second.environment.precision} == {"32-true", "tf32"}
    assert first.cell.id != second.cell.id


TWICE = '''
import copy

import torch

from methods.controls.scratch import Scratch


class Twice(Scratch):
    """Two steps for each batch: the second must see what the first has learned, in 16 bits, too."""

    def turns(self, batch):
        before = self.student_out(batch.x).logits
        yield "student", {"ce": self.task.loss(before, batch.y)}
        same = copy.deepcopy(self.student)
        after = self.student_out(batch.x).logits
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            fresh = same.tap(batch.x)["logits"]
        assert before.dtype == torch.bfloat16
        assert torch.equal(after, fresh)
        yield "student", {"ce": self.task.loss(after, batch.y)}
'''


def test_a_second_turn_sees_the_weights_of_the_first_in_16_bits(kd: Kdbench) -> None:
    # autocast keeps its copies of weights for as long as its context lasts, unless it is told not to
    plug(kd, TWICE, twice="weights: {ce: 1.0}")
    own = ("--config-dir", "conf", "method=twice", "protocol.precision=bf16-mixed", "engine.route=plain", "~logger")
    result = kd.run(*own)
    assert (result.code, result.messages) == (0, [])


# ---- a device that is full, or shared ---------------------------------------------------------------------------

HUNGRY = """
from methods.controls.scratch import Scratch


class A(Scratch):
    def training_step(self, batch, batch_idx):
        cohort = self.trainer.lightning_module
        if sum(name.startswith("member") for name, _ in cohort.named_children()) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().training_step(batch, batch_idx)


class B(A):
    pass


class C(A):
    pass


class D(A):
    pass
"""


def test_cells_without_memory_in_lockstep_are_tried_by_halves(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    plug(kd, HUNGRY, **dict.fromkeys("abcd", "weights: {ce: 1.0}"))
    sizes: list[int] = []
    run = Bench.run

    def spy(self: Bench, cells: Any, **more: Any) -> Any:
        sizes.append(len(cells))
        return run(self, cells, **more)

    monkeypatch.setattr(Bench, "run", spy)
    result = kd.run("--config-dir", "conf", "method=[a,b,c,d]", "~logger", "engine.compile=false")
    assert (result.code, result.messages) == (0, [])
    assert "not enough memory for 4 in lockstep: now at most 2" in result.out
    assert sizes == [4, 2, 2]
    assert len(kd.records()) == 4


def test_data_are_moved_to_a_device_once(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: Counter[int] = Counter()
    to = Split.to

    def spy(self: Split, device: torch.device) -> Split:
        moved[id(self)] += 1
        return to(self, device)

    monkeypatch.setattr(Split, "to", spy)
    assert kd.run("method=scratch", "seed=[0,1,2]", "~logger").code == 0
    assert sorted(moved.values()) == [1, 1]  # train and test, not once for each seed


def test_a_teacher_is_on_the_device_when_its_fast_copy_is_made(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdbench.teaching import taught

    order: list[str] = []
    load, made, to = Teacher.load, taught.FrozenTeacher, torch.nn.Module.to

    def loaded(self: Teacher, data: Any) -> torch.nn.Module:
        order.append("loaded")
        return load(self, data)

    def moved(self: torch.nn.Module, *args: Any, **more: Any) -> torch.nn.Module:
        order.append("moved")
        return to(self, *args, **more)

    def frozen(*args: Any) -> Any:
        order.append("made")
        return made(*args)

    monkeypatch.setattr(Teacher, "load", loaded)
    monkeypatch.setattr(taught, "FrozenTeacher", frozen)
    monkeypatch.setattr(torch.nn.Module, "to", moved)
    assert kd.run("method=kd", "~logger").code == 0
    assert order[order.index("loaded") :][:3] == ["loaded", "moved", "made"]


def test_a_device_that_cannot_be_used(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    check_usable(CPU)

    def busy(*args: Any, **more: Any) -> Tensor:
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nCUDA kernel errors might be")

    monkeypatch.setattr(devices.torch, "zeros", busy)
    with pytest.raises(UserError, match=r"busy or unavailable.*CUDA_VISIBLE_DEVICES") as told:
        check_usable(GPU)
    assert "\n" not in str(told.value)


# ---- on a GPU ---------------------------------------------------------------------------------------------------

SLOW = """
import torch
from methods.controls.scratch import Scratch


class Slow(Scratch):
    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        torch.cuda._sleep(100_000_000)  # cycles of work, at most 3 GHz, which the host does not wait for
"""


@pytest.mark.gpu
def test_time_and_memory_on_a_gpu(kd: Kdbench) -> None:
    plug(kd, SLOW, slow="weights: {ce: 1.0}")
    own = ("--config-dir", "conf", "trainer.accelerator=gpu", "engine.compile=false", "~logger")
    assert kd.run(*own, "method=[scratch,slow]", "protocol.batch_size=200").code == 0
    steps = 2
    slow, scratch = kd.record("slow").cost, kd.record("scratch").cost
    assert slow.train_seconds - scratch.train_seconds > steps * 0.03 / 2
    large = scratch.peak_memory_mb
    assert kd.run(*own, "method=ls", "protocol.batch_size=2", "protocol.epochs=1").code == 0
    assert kd.record("ls").cost.peak_memory_mb < large  # not what came before it


@pytest.mark.gpu
def test_float32_on_a_gpu() -> None:
    gpu = torch.device("cuda")
    a = torch.randn(512, 512, generator=torch.Generator().manual_seed(0)).to(gpu)
    images, kernels = a.view(4, 64, 32, 32), a[:64, :].reshape(-1)[: 64 * 64 * 9].view(-1, 64, 3, 3)
    exact = a.double() @ a.double()
    exact_conv = torch.nn.functional.conv2d(images.double(), kernels.double())

    def apart() -> tuple[float, float]:
        product = ((a @ a) - exact).abs().max() / exact.abs().max()
        convolved = (torch.nn.functional.conv2d(images, kernels) - exact_conv).abs().max() / exact_conv.abs().max()
        return float(product), float(convolved)

    with tf32(False):
        assert max(apart()) < 1e-5
    if devices.has_tf32(gpu):
        with tf32(True):
            assert max(apart()) > 1e-5


@pytest.mark.gpu
def test_random_numbers_of_a_member_on_a_gpu(tmp_path: Path) -> None:
    gpu = torch.device("cuda", torch.cuda.current_device())
    torch.cuda.manual_seed(1)
    state, whole = torch.cuda.get_rng_state(gpu), torch.rand(6, device=gpu)
    member = Member("one", SimpleNamespace(), tmp_path, torch.get_rng_state(), cuda_rng=state)  # type: ignore[arg-type]
    parts = []
    for _ in range(2):
        with member.playing(gpu), torch.random.fork_rng([]):
            parts.append(torch.rand(3, device=gpu))
        torch.rand(100, device=gpu)  # another member
    repeated = []
    torch.cuda.set_rng_state(state, gpu)
    for _ in range(2):
        repeated.append(torch.rand(3, device=gpu))
    assert torch.equal(torch.cat(parts), torch.cat(repeated))
    assert torch.equal(parts[0], whole[:3])


@pytest.mark.gpu
def test_an_interrupted_cell_goes_on_as_if_it_had_not_been(kd: Kdbench) -> None:
    common = ("method=[scratch,dafl]", "trainer.accelerator=gpu", "+trainer.deterministic=true", "engine.compile=false")
    command = ("run", *SMALL, *common, "protocol.epochs=6", "checkpoint_seconds=0", "~logger")
    fixed = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # what deterministic products ask for
    process = kd.spawn(*command, **fixed)
    wait_for(kd, "runs/cells/*/last.ckpt", process, 2)
    process.kill()
    process.communicate()
    for results in ("results", "whole"):
        again = kd.spawn(*command, f"paths.results={results}", **fixed)
        out, err = again.communicate(timeout=600)
        assert again.returncode == 0, err
        assert "begun anew" not in out
    equal(kd, "results", "whole")
