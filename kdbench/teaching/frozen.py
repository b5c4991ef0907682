"""The frozen teacher that a cohort shares: run once per batch, folded where the route is fast."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection
from typing import Protocol

import torch
from torch import Tensor, nn
from torch._inductor import config as inductor
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kdbench.compute.fast import Tapped, compiled_tap, stride_outside, why
from kdbench.compute.route import Route, avx512
from kdbench.data.batch import Batch
from kdbench.models.base import Shape
from kdbench.teaching.adapter import Rescale

CACHED = frozenset({"logits", "embed"})
"""The taps that a view cache holds: feature maps are too large for it."""
ROWS = 16
"""The number of rows in multiples of which the fast teacher runs, where that changes no bit (see `granularity`)."""


class Views(Protocol):
    """What `FrozenTeacher` asks of a view cache; its dtype is the fast teacher's."""

    def lookup(self, index: Tensor, view: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B,) which rows are known, and (B, ·) values by tap, on the CPU; unknown rows hold anything."""
        ...

    def store(self, index: Tensor, view: Tensor, values: dict[str, Tensor]) -> None: ...


class FrozenTeacher(nn.Module):
    """A teacher in eval mode, without gradients of its own, with the `tap` of `kdbench.taps.Net`.

    On the fast route, `tap` without gradient runs a folded, channels-last copy in the route's dtype and hands its
    values out as float32. What a row gives never depends on the batch it came in, on the taps that were asked for, or
    on whether it was computed or looked up.

    Attributes:
        plain: the network as it was loaded.
        fast: its copy; None on the plain route, or if the network cannot be copied so (`failed` says why).
        cache: where logits and embeddings of known views are looked up, or None.
        hits, misses: rows looked up so far.
        failed: why a part of the route could not be taken, or None.

    Args:
        net: float32.
        shape: (C, H, W) of the images.
        batch_size: of the protocol; no more rows than that (rounded up to the granularity) are run at once.
    """

    def __init__(self, net: nn.Module, shape: Shape, route: Route, batch_size: int) -> None:
        super().__init__()
        self.shape, self.batch_size, self.dtype = shape, batch_size, route.teacher_dtype
        self.cache: Views | None = None
        self.hits = self.misses = 0
        self.failed: str | None = None
        self.plain = net.eval().requires_grad_(False)
        self.fast = fast_copy(net, shape, self.dtype) if route.fast and len(shape) == 3 else None
        if route.fast and self.fast is None:
            self.failed = "its taps change when it is folded" if len(shape) == 3 else "it takes no images"
        self._graph: Tapped | None = None
        if route.compiled and not route.cached and self.fast is not None:
            self._graph = compiled_tap("tap_teacher")
        self._fixed_rows = self._graph is not None or batch_size <= ROWS
        self._granularity: dict[torch.device, int] = {}
        self.serve(None)

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stays in eval mode."""
        super().train(False)
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the plain network."""
        logits: Tensor = self.plain(x)
        return logits

    def tap(self, x: Tensor, names: Collection[str] | None = None) -> dict[str, Tensor]:
        """The taps called `names` and ``logits``, see `kdbench.taps.Net`.

        All taps (None) are asked for to learn their shapes: that is for the plain network, and so is whatever gradients
        must flow through.
        """
        if self.fast is None or names is None or torch.is_grad_enabled():
            taps: dict[str, Tensor] = self.plain.tap(x, names)  # type: ignore[operator]
            return taps
        wanted = (*names, "logits")
        if self._batch is None or x is not self._batch.x or x._version != self._versions["x"][1]:
            raw = self._run(x)
            return {name: raw[name].float() for name in wanted}
        if not self._memo.keys() >= set(wanted):
            self._memo |= self._served(self._batch, set(wanted))
        for name in wanted:
            if name not in self._floats:
                self._floats[name] = self._memo[name].float()
                self._versions[name] = (self._floats[name], self._floats[name]._version)
        return {name: self._floats[name] for name in wanted}

    def serve(self, batch: Batch | None, *, whole: bool = False) -> None:
        """From now on `batch` is played: its images are run (or looked up) once, however often they are asked for.

        Args:
            whole: some method will ask for feature maps, so that looking up the rest would save nothing.
        """
        self._batch, self._whole = batch, whole
        self._memo: dict[str, Tensor] = {}
        self._floats: dict[str, Tensor] = {}
        self._versions: dict[str, tuple[Tensor, int]] = {}
        if batch is not None:
            shared = {"x": batch.x, "y": batch.y, "index": batch.index, "view": batch.view}
            self._versions = {name: (value, value._version) for name, value in shared.items()}

    def spoiled(self) -> str | None:
        """What was changed in place of the served batch or of the outputs handed out for it, as a clause, or None."""
        for name, (value, version) in self._versions.items():
            if value._version != version:
                whose = "the batch's" if hasattr(self._batch, name) else "the teacher's"
                return f"{whose} '{name}' was changed in place"
        return None

    @property
    def granularity(self) -> int:
        """Rows are padded to a multiple of this: `ROWS`, or the batch size.

        Kernels are chosen by the number of rows, and may round differently. So few rows are run as few only if trials
        on this device show no difference in any bit of any tap; else always a whole batch. A compiled graph has one
        size.
        """
        device = next(self.plain.parameters()).device
        if device not in self._granularity:
            fine = not self._fixed_rows and self.fast is not None and self._rows_are_independent(device)
            self._granularity[device] = ROWS if fine else self.batch_size
        return self._granularity[device]

    @torch.no_grad()
    def _rows_are_independent(self, device: torch.device) -> bool:
        full = -(-self.batch_size // ROWS) * ROWS
        random = torch.Generator().manual_seed(0)
        x = self._padded(torch.randn(full, *self.shape, generator=random).to(device), full)
        want = self._eager(x)
        sizes = range(ROWS, full + 1, ROWS)
        for size in {*sizes[:: max(len(sizes) // 6, 1)], *sizes[-2:]}:  # up to eight of them
            rows = torch.randperm(full, generator=random)[:size].to(device)
            got = self._eager(self._padded(x[rows], size))
            if not all(torch.equal(got[name], value[rows]) for name, value in want.items()):
                return False
        return True

    def _served(self, batch: Batch, wanted: set[str]) -> dict[str, Tensor]:
        """Raw taps of the served batch: from the cache where that suffices, else all of them."""
        if self.cache is None or self._whole or not wanted <= CACHED:
            return self._run(batch.x)
        index, view = batch.index.cpu(), batch.view.cpu()
        known, values = self.cache.lookup(index, view)
        values = {name: value.to(batch.x.device) for name, value in values.items()}
        missing = ~known
        n = int(missing.sum())
        self.hits, self.misses = self.hits + len(batch) - n, self.misses + n
        if n:
            new = self._run(batch.x[missing.to(batch.x.device)])
            new = {name: new[name] for name in CACHED}
            self.cache.store(index[missing], view[missing], new)
            for name in CACHED:
                values[name][missing.to(batch.x.device)] = new[name]
        return values

    @torch.no_grad()
    def _run(self, x: Tensor) -> dict[str, Tensor]:
        """All taps in the fast dtype: always the same graph, so that what is asked for never changes a bit."""
        rows = self.granularity
        most = -(-self.batch_size // rows) * rows
        outs = []
        for part in x.split(most):
            n = len(part)
            taps = self._net(self._padded(part, -(-n // rows) * rows))
            outs.append({name: value[:n] for name, value in taps.items()})
        return outs[0] if len(outs) == 1 else {name: torch.cat([out[name] for out in outs]) for name in outs[0]}

    def _padded(self, x: Tensor, rows: int) -> Tensor:
        """`x` with black rows up to `rows`. A fresh tensor, as kernels look at strides and `x` may have any."""
        size = (rows, *self.shape)
        padded = torch.empty(size, dtype=self.dtype, device=x.device, memory_format=torch.channels_last)
        padded[: len(x)] = x
        padded[len(x) :] = 0
        return padded

    def _net(self, x: Tensor) -> dict[str, Tensor]:
        if self._graph is not None:
            try:
                # Frozen weights are constants: laid out once as the kernels like them. Dynamo, too, reads this setting.
                with torch.autocast(x.device.type, enabled=False), inductor.patch(freezing=True):
                    return self._graph(self.fast, x, None)  # type: ignore[arg-type]
            except Exception as error:  # dynamo, inductor and compilers each have their own; nothing was changed yet
                self.failed, self._graph = why(error), None
        return self._eager(x)

    def _eager(self, x: Tensor) -> dict[str, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            taps: dict[str, Tensor] = self.fast.tap(x)  # type: ignore[union-attr,operator]
            return taps


@torch.no_grad()
def fast_copy(net: nn.Module, shape: Shape, dtype: torch.dtype) -> nn.Module | None:
    """A folded, channels-last copy of `net` in `dtype` with the same taps; None if it cannot be had.

    A network from elsewhere may read a convolution's output, or its layout, in ways that no rule foresees: whether the
    copy gives the same taps is tried on two random images.
    """
    device = next(net.parameters()).device
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(device)
    want = net.tap(x)  # type: ignore[operator]
    for change in (folded, copy.deepcopy):
        fast = change(net).to(memory_format=torch.channels_last)
        if not avx512():
            stride_outside(fast)
        try:
            got = fast.tap(x.to(memory_format=torch.channels_last))  # type: ignore[operator]
            same = all(
                float((got[name] - value).abs().max()) <= 1e-2 * float(value.abs().max()) + 1e-6
                for name, value in want.items()
            )
            if not same:
                continue
            fast.to(dtype)
            for module in fast.modules():
                if isinstance(module, (nn.modules.batchnorm._BatchNorm, Rescale)):
                    module.float()  # those that could not be folded keep their precise statistics
            fast.tap(x.to(dtype, memory_format=torch.channels_last))  # type: ignore[operator]
            return fast
        except RuntimeError:  # a view that wants another layout, a kernel that lacks the dtype
            continue
    return None


def folded(net: nn.Module) -> nn.Module:
    """A copy of `net` (in eval mode) with batch norms merged into the convolutions in front of them.

    Only neighbours in a plain nn.Sequential that occur once in the network: there, nothing stands between the two.
    """
    net = copy.deepcopy(net)
    uses = Counter(id(module) for _, module in net.named_modules(remove_duplicate=False))
    for parent in net.modules():
        if type(parent).forward is not nn.Sequential.forward:
            continue
        assert isinstance(parent, nn.Sequential)
        for i, (conv, norm) in enumerate(zip(list(parent)[:-1], list(parent)[1:], strict=True)):
            if uses[id(conv)] > 1 or uses[id(norm)] > 1:
                continue
            # exact types: subclasses standardise weights or carry an activation
            if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d and norm.running_mean is not None:
                parent[i], parent[i + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
    return net
