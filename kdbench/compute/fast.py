"""Small tools of the fast route; each is there for a measured reason (two cores, batch 64, CIFAR)."""

from __future__ import annotations

import copy
import ctypes
import inspect
from collections.abc import Callable, Collection, Mapping
from functools import cache, partial
from types import FunctionType
from typing import Any
from weakref import WeakKeyDictionary

import hydra
import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc


@cache
def keep_freed_memory() -> bool:
    """Keep glibc from handing freed memory back to the kernel, once per process; True where that is possible.

    A step frees and asks again for the same large buffers. By default each comes fresh from the kernel, page by page:
    9656 page faults a step against 34, which is 5 to 10 % of a resnet20's step.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  # other C libraries know no such parameters
        kept = libc.mallopt(M_MMAP_THRESHOLD, 1 << 30) or libc.mallopt(M_MMAP_THRESHOLD, 1 << 25)  # older: 32 MiB
        return bool(kept and libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
    except (OSError, AttributeError, TypeError):  # TypeError: Windows
        return False


def fused(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """An optimiser's config with ``fused: True``, where it has that and the user chose no implementation himself.

    A compiled step of a resnet20 took 84 ms with it and 89 ms with the loop over parameters.
    """
    if "fused" in config or "foreach" in config:
        return config
    with_fused = {**config, "fused": True}
    try:
        cls = hydra.utils.get_class(str(config["_target_"]))
        if "fused" not in inspect.signature(cls).parameters:
            return config
        # Only its constructor knows what it can be combined with, and on which devices.
        hydra.utils.instantiate(with_fused, [nn.Parameter(torch.zeros(1))])
    except Exception:  # whatever is wrong with the config itself is told where the optimiser is made
        return config
    return with_fused


def stride_outside(net: nn.Module) -> None:
    """Have 1x1 convolutions with a stride and less than 16 inputs leave pixels out first: the same sums.

    Without AVX-512, oneDNN's kernels for them in channels-last write beyond their buffers ("corrupted double-linked
    list", "free(): invalid size").
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.in_channels < 16:
            dy, dx = module.stride
            if (dy, dx) != (1, 1) and module.padding == (0, 0):
                module.stride = (1, 1)
                module.register_forward_pre_hook(partial(_leave_out, dy, dx))


def _leave_out(dy: int, dx: int, module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (args[0][:, :, ::dy, ::dx],)


Tapped = Callable[[nn.Module, Tensor, "tuple[str, ...] | None"], dict[str, Tensor]]


def compiled_tap(name: str) -> Tapped:
    """torch.compile of ``net.tap(x, names)``, whole or not at all.

    Dynamo keeps graphs by code object: with one of its own, each function has its own graphs and its own limit of
    recompilations. Parameters are inputs of the graph, so networks of one architecture share it.
    """

    def tap(net: Any, x: Tensor, names: tuple[str, ...] | None) -> dict[str, Tensor]:
        taps: dict[str, Tensor] = net.tap(x, names)
        return taps

    own = FunctionType(tap.__code__.replace(co_name=name), tap.__globals__, name)
    compiled: Tapped = torch.compile(own, dynamic=False, fullgraph=True)
    return compiled


class CompiledTap:
    """``net.tap(x, names)``, compiled for full training batches and eager for everything else.

    A graph that cannot be compiled, for want of a compiler or because a network takes its taps with hooks, is left for
    good: that architecture runs eagerly, and `failed` says why. Each is judged on its own, so what one cell of a cohort
    does never changes another's numbers.

    Attributes:
        failed: why graphs could not be compiled, by architecture (its ``repr``).
    """

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.failed: dict[str, str] = {}
        self._graphs: dict[tuple[object, ...], Tapped | None] = {}
        self._architectures: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()

    def __call__(self, net: nn.Module, x: Tensor, names: Collection[str] | None) -> dict[str, Tensor]:
        names = None if names is None else tuple(names)
        if net.training and len(x) == self.batch_size:
            key = self._key(net, x, names)
            if key not in self._graphs:
                self._graphs[key] = self._compile(net, x, names)
            graph = self._graphs[key]
            if graph is not None:
                try:
                    return graph(net, x, names)
                except TorchDynamoException as error:  # something not in the key has changed and does not compile
                    self.failed.setdefault(self._architectures[net], why(error))
                    self._graphs[key] = None
        taps: dict[str, Tensor] = net.tap(x, names)  # type: ignore[operator]
        return taps

    def why_not(self, net: nn.Module) -> str | None:
        """Why networks of this architecture are not compiled, or None."""
        return self.failed.get(repr(net))

    def _key(self, net: nn.Module, x: Tensor, names: tuple[str, ...] | None) -> tuple[object, ...]:
        """What dynamo would compile anew for; the weights are not in it."""
        if net not in self._architectures:
            self._architectures[net] = repr(net)  # slow for deep networks
        device = x.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        grad = (torch.is_grad_enabled(), x.requires_grad, tuple(p.requires_grad for p in net.parameters()))
        return (self._architectures[net], names, x.shape, x.stride(), x.dtype, x.device, autocast, grad)

    def _compile(self, net: nn.Module, x: Tensor, names: tuple[str, ...] | None) -> Tapped | None:
        graph = compiled_tap(f"tap_{len(self._graphs)}")
        try:
            # On a copy, and back again: what fails shall fail here, and leave no trace in the running statistics.
            taps = graph(copy.deepcopy(net), x.detach().requires_grad_(x.requires_grad), names)
            total = torch.stack([value.float().sum() for value in taps.values()]).sum()
            if total.requires_grad:
                total.backward()
        except Exception as error:  # dynamo, inductor and compilers each have their own
            self.failed.setdefault(self._architectures[net], why(error))
            return None
        return graph


def why(error: Exception) -> str:
    """A failed compilation in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300].rstrip(": ")
