"""Which route a cell takes, and the small tools of the fast one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Kdbench
from pydantic import ValidationError
from torch import Tensor, nn

import kdbench
from kdbench import models
from kdbench.compute import fast, route
from kdbench.compute.fast import CompiledTap, fused, keep_freed_memory, stride_outside
from kdbench.compute.route import COMPILE_STEPS, EngineConfig, Route

CPU = torch.device("cpu")
SGD = {"_target_": "torch.optim.SGD", "lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}


@pytest.mark.parametrize(
    "settings",
    [
        {"route": "quick"},
        {"compile": 1},
        {"compile": "yes"},
        {"view_cache": 0},
        {"view_cache": "on"},
        {"view_cache": None},
        {"routes": "fast"},
    ],
)
def test_nonsense_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        EngineConfig(**settings)


def test_defaults_and_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "toolchain", lambda device: True)
    monkeypatch.setattr(route, "native_bf16", lambda device: device.type == "cuda")
    cuda, default = torch.device("cuda"), EngineConfig()
    assert Route.choose(default, CPU, COMPILE_STEPS) == Route(True, True, torch.float32, True)
    assert Route.choose(default, CPU, COMPILE_STEPS - 1) == Route(True, False, torch.float32, True)
    assert Route.choose(default, cuda, COMPILE_STEPS) == Route(True, True, torch.bfloat16, False)
    assert Route.choose(EngineConfig(compile=True, view_cache=True), cuda, 1) == Route(True, True, torch.bfloat16, True)
    assert not Route.choose(EngineConfig(compile=False), CPU, 10**9).compiled
    assert not Route.choose(EngineConfig(view_cache=False), CPU, 1).cached
    plain = EngineConfig(route="plain", compile=True, view_cache=True)
    assert Route.choose(plain, cuda, 10**9) == Route(False, False, torch.float32, False)
    monkeypatch.setattr(route, "toolchain", lambda device: False)
    assert not Route.choose(default, CPU, 10**9).compiled


def test_the_same_cell_takes_the_same_route_in_every_process() -> None:
    """A resumed cell must go on as it began."""
    code = (
        "import torch; from kdbench.compute.route import *; "
        "print(Route.choose(EngineConfig(), torch.device('cpu'), 6000))"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(kdbench.__file__).parent.parent)}
    other = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(Route.choose(EngineConfig(), CPU, 6000))


@pytest.mark.parametrize(
    ("chosen", "cohort", "teacher", "words"),
    [
        (Route(False, False, torch.float32, False), 1, True, "plain"),
        (Route(False, False, torch.float32, False), 3, True, "plain; lockstep of 3"),
        (
            Route(True, False, torch.bfloat16, True),
            8,
            True,
            "channels-last, fused; teacher folded bf16, views cached; lockstep of 8",
        ),
        (
            Route(True, True, torch.float32, False),
            1,
            True,
            "channels-last, fused, compiled; teacher folded fp32 compiled; alone",
        ),
        (
            Route(True, True, torch.bfloat16, True),
            2,
            True,
            "channels-last, fused, compiled; teacher folded bf16, views cached; lockstep of 2",
        ),
        (Route(True, False, torch.bfloat16, True), 1, False, "channels-last, fused; alone"),
    ],
)
def test_describe(chosen: Route, cohort: int, teacher: bool, words: str) -> None:
    assert chosen.describe(cohort, teacher=teacher) == words


def test_bfloat16_is_what_the_kernel_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own check and the flags of the first processor agree; without torch's, the flags alone decide."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        pytest.skip("no /proc/cpuinfo")
    flags = cpuinfo.read_text().split()
    expected = "avx512_bf16" in flags or "amx_bf16" in flags
    assert route._bf16_cpu() == expected
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, name, raising=False)
    assert route._bf16_cpu() == expected


@pytest.mark.parametrize("cap", ["AVX2", "avx512_core", "AVX512_CORE_VNNI", "SSE41"])
def test_bfloat16_is_not_taken_where_onednn_may_not(monkeypatch: pytest.MonkeyPatch, cap: str) -> None:
    """Its kernels crash, or emulate it, whatever the processor could do."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", cap)
    assert not route._bf16_cpu()


def test_a_stride_may_be_taken_outside_of_a_convolution() -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(4, 16, 1, stride=2), torch.nn.Conv2d(16, 8, 1, stride=2))
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    want = net(x)
    (slope,) = torch.autograd.grad(want.square().sum(), x)
    stride_outside(net)
    assert [module.stride for module in net] == [(1, 1), (2, 2)]  # sixteen inputs are well
    assert torch.allclose(net(x), want, atol=1e-6)
    assert torch.allclose(torch.autograd.grad(net(x).square().sum(), x)[0], slope, atol=1e-5)


@pytest.mark.slow
def test_a_processor_without_avx512_trains_the_smallest_students(alone: Kdbench) -> None:
    command = ["run", "method=[scratch,kd]", "protocol.epochs=2", "dataset.per_class=20"]
    process = alone.spawn(*command, "pair.teacher=resnet8x0.25", ONEDNN_MAX_CPU_ISA="AVX2")
    out, err = process.communicate(timeout=600)
    assert (process.returncode, err) == (0, "")
    assert "2 trained" in out
    assert "teacher folded bf16" not in out


def test_the_instruction_set_names_flags_and_caps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "_cpu_flags", lambda: {"avx2", "fma", "avx512_bf16", "hypervisor", "rdtscp"})
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("ATEN_CPU_CAPABILITY", raising=False)
    route.instruction_set.cache_clear()
    assert route.instruction_set() == "avx2 avx512_bf16 fma ONEDNN_MAX_CPU_ISA=AVX2"
    route.instruction_set.cache_clear()


def test_freed_memory_is_kept_where_there_is_glibc() -> None:
    glibc = (
        sys.platform == "linux" and "glibc" in os.confstr("CS_GNU_LIBC_VERSION") if hasattr(os, "confstr") else False
    )
    assert keep_freed_memory() == glibc


@pytest.mark.parametrize(
    "config",
    [
        {**SGD, "fused": False},
        {**SGD, "foreach": True},
        {**SGD, "differentiable": True},  # which torch does not combine with fused
        {"_target_": "torch.optim.Rprop", "lr": 0.1},
        {"_target_": "torch.optim.Nothing", "lr": 0.1},
        {**SGD, "lr": -1},
    ],
)
def test_an_optimiser_that_cannot_or_shall_not_be_fused(config: dict[str, Any]) -> None:
    assert fused(config) == config


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_fused_steps_are_the_same_steps(name: str) -> None:
    config = {"_target_": f"torch.optim.{name}", "lr": 0.05, "weight_decay": 5e-4}
    assert fused(config) == {**config, "fused": True}
    ends = []
    for settings in ({}, {"fused": True}):
        weight = nn.Parameter(torch.linspace(-1, 1, 50))
        optimizer = getattr(torch.optim, name)([weight], lr=0.05, weight_decay=5e-4, **settings)
        for _ in range(5):
            optimizer.zero_grad()
            (weight**4).sum().backward()
            optimizer.step()
        ends.append(weight.detach())
    assert torch.allclose(*ends, atol=1e-6)


def resnet(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return models.create("resnet8x0.25", (3, 8, 8), 10)


def test_what_does_not_compile_runs_eagerly_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def broken(name: str) -> Any:
        def graph(net: nn.Module, x: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
            calls.append(name)
            net.tap(x, names)
            raise RuntimeError("no compiler")

        return graph

    monkeypatch.setattr(fast, "compiled_tap", broken)
    tap, net, twin, x = CompiledTap(4), resnet(0), resnet(0), torch.randn(4, 3, 8, 8)
    for _ in range(3):
        got, want = tap(net, x, ("stage1",)), twin.tap(x, ("stage1",))
        assert torch.equal(got["logits"], want["logits"])
    assert len(calls) == 1
    assert tap.why_not(net) == "RuntimeError: no compiler"
    assert all(torch.equal(value, twin.state_dict()[key]) for key, value in net.state_dict().items())


def test_only_full_training_batches_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def recorder(name: str) -> Any:
        def graph(net: nn.Module, x: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
            calls.append(name)
            return net.tap(x, names)

        return graph

    monkeypatch.setattr(fast, "compiled_tap", recorder)
    tap, net, x = CompiledTap(4), resnet(0), torch.randn(4, 3, 8, 8)
    tap(net, x[:3], ())
    tap(net.eval(), x, ())
    assert calls == []
    tap(net.train(), x, ())
    tap(resnet(1), x, ())
    assert calls == ["tap_0"] * 3, "a trial, and one graph for two networks of one architecture"
    tap(net, x, ("stage1",))
    assert calls[3:] == ["tap_1"] * 2
    tap(models.create("resnet8x0.5", (3, 8, 8), 10), x, ())
    assert calls[5:] == ["tap_2"] * 2


@pytest.mark.slow
def test_a_compiled_step_is_the_eager_step() -> None:
    """Outputs, gradients and running statistics to 1e-4; another instance's weights compile nothing anew."""
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    tap = CompiledTap(8)
    x = torch.randn(8, 3, 8, 8).to(memory_format=torch.channels_last)
    for seed in (0, 1):
        net, twin = (resnet(seed).to(memory_format=torch.channels_last) for _ in range(2))
        for _ in range(2):
            got, want = tap(net, x, ("stage1", "embed")), twin.tap(x, ("stage1", "embed"))
            assert list(got) == list(want)
            for taps in (got, want):
                sum(value.square().mean() for value in taps.values()).backward()  # type: ignore[union-attr]
        assert tap.why_not(net) is None
        for (name, p), q in zip(net.named_parameters(), twin.parameters(), strict=True):
            assert p.grad is not None
            assert torch.allclose(p.grad, q.grad, atol=1e-4), name  # type: ignore[arg-type]
        for (name, p), q in zip(net.named_buffers(), twin.buffers(), strict=True):
            assert torch.allclose(p, q, atol=1e-5), name
        assert counters["stats"]["unique_graphs"] == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert tap(net, x, ("stage1", "embed"))["embed"].dtype == torch.bfloat16
    assert counters["stats"]["unique_graphs"] == 2


@pytest.mark.slow
def test_networks_with_hooks_run_eagerly() -> None:
    torch.manual_seed(0)
    net, x, tap = models.create("torchvision/resnet18", (3, 32, 32), 10), torch.randn(2, 3, 32, 32), CompiledTap(2)
    assert set(tap(net, x, ("stage1",))) == {"stage1", "logits"}
    assert tap.why_not(net)
    assert tap.why_not(resnet(0)) is None


@pytest.mark.slow
def test_without_a_compiler_training_goes_on() -> None:
    code = """
import torch
from kdbench import models
from kdbench.compute.fast import CompiledTap
from kdbench.compute.route import toolchain
net = models.create("resnet8x0.25", (3, 8, 8), 10)
tap = CompiledTap(4)
tap(net, torch.randn(4, 3, 8, 8), ())["logits"].sum().backward()
assert int(net.stem[1].num_batches_tracked) == 1
assert tap.why_not(net), "it compiled"
assert not toolchain("cpu")
"""
    env = {**os.environ, "PYTHONPATH": str(Path(kdbench.__file__).parent.parent), "CXX": "/nonexistent/c++"}
    env["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
