"""Routes: how a cell is computed, which is no part of what it is.

The *plain* route is the reference: eager, float32, the teacher live in its training layout. The *fast* route computes
the same equations sooner and rounds differently. Which one was taken stands in the record, not in a cell's identity.
"""

from __future__ import annotations

import os
import platform
import shutil
import sysconfig
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt

COMPILE_STEPS = 5000
"""Cells of fewer steps are not compiled: a graph costs 15 to 35 s on two cores and saves about a tenth of a step of
85 ms (resnet20, batch 64), so it has paid for itself after some 2000 to 4000 steps. Not everywhere: on an AMD EPYC with
PyTorch 2.14 it saves 6 % of resnet8's step and nothing of resnet20's, and LeNet-5 is 18 % slower."""

ISA_CAPS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
"""Environment variables by which oneDNN is told to use fewer instructions than the processor has."""


class EngineConfig(BaseModel):
    """What a user may say about how cells are computed; none of it changes which cell it is.

    Attributes:
        route: ``fast``, or ``plain`` for eager float32 throughout (then the other settings are without effect).
        compile: torch.compile for full batches; ``auto``: for cells of at least `COMPILE_STEPS` steps where a compiler
            is installed.
        view_cache: keep the teacher's logits and embeddings of every view that it has seen; ``auto``: on the CPU.
        workers: processes that read streamed images; 0: the one that trains; ``auto``: one for each core, at most 8.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    route: Literal["fast", "plain"] = "fast"
    compile: Literal["auto"] | StrictBool = "auto"
    view_cache: Literal["auto"] | StrictBool = "auto"
    workers: Literal["auto"] | Annotated[StrictInt, Field(ge=0)] = "auto"


@dataclass(frozen=True)
class Route:
    """How a cell is computed: a function of settings, device and length alone, so that a resumed cell takes it again.

    Attributes:
        fast: students channels-last with fused optimisers, the teacher folded and channels-last.
        compiled: full batches go through torch.compile.
        teacher_dtype: of the folded teacher's weights and activations.
        cached: the teacher's logits and embeddings are looked up by view.
        devices: on how many it is computed, each with its share of every batch.
    """

    fast: bool
    compiled: bool
    teacher_dtype: torch.dtype
    cached: bool
    devices: int = 1

    @classmethod
    def choose(cls, config: EngineConfig, device: torch.device, steps: int, devices: int = 1) -> Route:
        """The route of a cell of `steps` optimiser batches in all its epochs on `device`, or several like it.

        Several compile nothing, as batch norm asks the others; and look nothing up, as all would wait for the one that
        has to ask the teacher.
        """
        if config.route == "plain":
            return cls(fast=False, compiled=False, teacher_dtype=torch.float32, cached=False, devices=devices)
        compiled = config.compile
        if compiled == "auto":
            compiled = steps >= COMPILE_STEPS and toolchain(device.type)
        cached = config.view_cache
        if cached == "auto":
            # on a GPU each step would wait for the look-up on the host; Windows has no positioned reads
            cached = device.type == "cpu" and hasattr(os, "pread")
        dtype = torch.bfloat16 if native_bf16(device) else torch.float32
        alone = devices == 1
        return cls(
            fast=True, compiled=compiled and alone, teacher_dtype=dtype, cached=cached and alone, devices=devices
        )

    def describe(self, cohort: int, *, teacher: bool = True) -> str:
        """For the record: ``channels-last, fused; teacher folded bf16, views cached; lockstep of 8``.

        Args:
            cohort: the number of cells trained in lockstep, this one included.
            teacher: whether the cell has one.
        """
        company = f"lockstep of {cohort}" if cohort > 1 else f"{self.devices} devices" if self.devices > 1 else "alone"
        if not self.fast:
            return "plain" if company == "alone" else f"plain; {company}"
        parts = ["channels-last, fused" + (", compiled" if self.compiled else "")]
        if teacher:
            folded = "teacher folded " + {torch.bfloat16: "bf16", torch.float32: "fp32"}[self.teacher_dtype]
            parts.append(folded + (", views cached" if self.cached else " compiled" if self.compiled else ""))
        return "; ".join([*parts, company])


@cache
def native_bf16(device: torch.device) -> bool:
    """Whether `device` computes in bfloat16, rather than emulating it (which is slower than float32)."""
    if device.type == "cuda":
        try:
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
        except TypeError:  # a torch without that argument
            return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and torch.backends.mkldnn.is_available() and _bf16_cpu()


def _bf16_cpu() -> bool:
    # The processor is asked, and oneDNN, whose kernels it is about: it may have been told to use less.
    # torch's own checks are private, so they may be gone; then the kernel's list is asked (AMX comes with bfloat16)
    capped = next(filter(None, map(os.environ.get, ISA_CAPS)), "").upper()
    if capped.startswith(("SSE", "AVX2", "AVX512_CORE")) and not capped.endswith(("BF16", "FP16", "AMX")):
        return False
    if not avx512() and platform.machine().lower() in ("x86_64", "amd64"):
        return False
    checks = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
    known = [bool(check()) for check in checks if callable(check)]
    if known:
        return any(known)
    return bool(_cpu_flags() & {"avx512_bf16", "amx_bf16"})


@cache
def avx512() -> bool:
    """Whether oneDNN computes with AVX-512 (asked of itself, as it may have been told to use less)."""
    try:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # private: what it asks for is just AVX-512
    except (AttributeError, RuntimeError):
        return True


def _cpu_flags() -> set[str]:
    """As the kernel lists them, of x86 and of ARM; empty where it does not."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return set()
    return {word for line in lines if line.lower().startswith(("flags", "features")) for word in line.split()}


@cache
def instruction_set() -> str:
    """What the kernels of a CPU are chosen by, and so what may change a bit: its vector instructions, and caps on them.

    Processors of one name need not have the same, least of all in virtual machines.
    """
    kinds = ("sse", "avx", "amx", "fma", "f16c", "bf16", "asimd", "sve", "i8mm", "fp")
    caps = [f"{name}={os.environ[name]}" for name in (*ISA_CAPS, "ATEN_CPU_CAPABILITY") if os.environ.get(name)]
    return " ".join([*sorted(flag for flag in _cpu_flags() if flag.startswith(kinds)), *caps])


@cache
def toolchain(device_type: str) -> bool:
    """Whether torch.compile will find what it needs for ``cpu`` or ``cuda``; nothing is compiled to find out."""
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():  # its kernels are Python extensions
        return False
    try:
        if device_type == "cuda":
            from torch.utils._triton import has_triton

            c_compilers = filter(None, (os.environ.get("CC"), "gcc", "clang", "cc"))  # triton's launchers are in C
            return bool(has_triton()) and any(map(shutil.which, c_compilers))
        from torch._inductor.cpp_builder import get_cpp_compiler

        return device_type == "cpu" and bool(get_cpp_compiler())
    except Exception:  # private parts of torch, which raise what they like
        return False
