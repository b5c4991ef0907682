"""The shared frozen teacher: the same values as the plain network, and the same bits however they are asked for."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from kdbench import models
from kdbench.compute.fast import why
from kdbench.compute.route import Route
from kdbench.data.batch import Batch
from kdbench.taps import probe
from kdbench.teaching.frozen import FrozenTeacher, folded

PLAIN = Route(fast=False, compiled=False, teacher_dtype=torch.float32, cached=False)
FP32 = Route(fast=True, compiled=False, teacher_dtype=torch.float32, cached=True)
BF16 = Route(fast=True, compiled=False, teacher_dtype=torch.bfloat16, cached=True)
COMPILED = Route(fast=True, compiled=True, teacher_dtype=torch.float32, cached=False)
SHAPE = (3, 16, 16)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def used(name: str, shape: tuple[int, int, int] = SHAPE) -> nn.Module:
    """A network whose batch norms are not the identity: random statistics, scales and shifts."""
    torch.manual_seed(0)
    net = models.create(name, shape, 10)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    net.train()
    for _ in range(3):  # statistics that keep deep networks from exploding
        net(torch.randn(16, *shape))
    return net.eval()


def batch(n: int, shape: tuple[int, int, int] = SHAPE, seed: int = 1) -> Batch:
    x = torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed))
    return Batch(x, torch.zeros(n, dtype=torch.int64), torch.arange(n), torch.zeros(n, 3, dtype=torch.int64))


class Shelf:
    """A view cache that is a dictionary."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.rows, self.lookups = dtype, {}, 0

    def _keys(self, index: Tensor, view: Tensor) -> list[tuple[int, ...]]:
        return [(i, *v) for i, v in zip(index.tolist(), view.tolist(), strict=True)]

    def lookup(self, index: Tensor, view: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.lookups += 1
        keys = self._keys(index, view)
        known = torch.tensor([key in self.rows for key in keys])
        blank = {"logits": torch.full((10,), torch.nan), "embed": torch.full((64,), torch.nan)}
        found = [self.rows.get(key, blank) for key in keys]
        return known, {name: torch.stack([row[name].to(self.dtype) for row in found]) for name in blank}

    def store(self, index: Tensor, view: Tensor, values: dict[str, Tensor]) -> None:
        for i, key in enumerate(self._keys(index, view)):
            assert all(value.dtype == self.dtype for value in values.values())
            self.rows[key] = {name: value[i].clone() for name, value in values.items()}


def names_of(net: nn.Module, shape: tuple[int, int, int] = SHAPE) -> tuple[str, ...]:
    return tuple(probe("net", net, shape).shapes)


@pytest.mark.parametrize("name", models.names())
def test_fast_taps_are_the_plain_ones(name: str) -> None:
    """Folded float32 to 1e-4 of the tap's largest value, bfloat16 (8 bits, tens of layers) to 10 % of it."""
    shape = (3, 32, 32) if name.startswith("lenet") or name.endswith("-valid") or name == "plane10" else SHAPE
    net = used(name, shape)
    x = batch(4, shape).x
    want = net.tap(x)
    for route, tolerance in ((FP32, 1e-4), (BF16, 0.1)):
        teacher = FrozenTeacher(copy.deepcopy(net), shape, route, batch_size=4)
        got = teacher.tap(x, tuple(want))
        assert teacher.failed is None
        assert set(got) == set(want)
        for tap, value in want.items():
            assert got[tap].dtype == torch.float32
            assert got[tap].shape == value.shape
            assert float((got[tap] - value).abs().max()) <= tolerance * float(value.abs().max()), (tap, tolerance)


def test_every_neighbouring_pair_is_folded() -> None:
    """resnet8: all 9 batch norms stand behind a convolution; wrn-16-1: 6 of 13, the others open a block."""
    for name, left in (("resnet8", 0), ("wrn-16-1", 7)):
        net = used(name)
        before = copy.deepcopy(net.state_dict())
        assert sum(isinstance(module, nn.BatchNorm2d) for module in folded(net).modules()) == left
        assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_what_only_looks_foldable_is_left() -> None:
    shared = nn.Conv2d(3, 3, 1)

    class Scaled(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Reversed(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[0](self[1](x))

    bn = lambda: nn.BatchNorm2d(3, eps=0.5)  # noqa: E731
    net = nn.Sequential(
        nn.Sequential(shared, bn()),
        nn.Sequential(shared, bn()),
        nn.Sequential(Scaled(3, 3, 1), bn()),
        Reversed(nn.Conv2d(3, 3, 1), bn()),
        nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False)),
    ).eval()
    x = torch.randn(4, 3, 5, 5)
    assert torch.equal(folded(net)(x), net(x))


def test_a_network_that_cannot_be_folded_is_still_right() -> None:
    """A tap on the convolution in front of a batch norm: unfolded, but channels-last."""

    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64, eps=3.0))
            self.head = nn.Linear(64, 10)

        def tap(self, x: Tensor, names: object = None) -> dict[str, Tensor]:
            stem = self.first[0](x)
            embed = self.first[1](stem).mean((2, 3))
            return {"stem": stem, "embed": embed, "logits": self.head(embed)}

    net = Odd().eval()
    teacher = FrozenTeacher(net, SHAPE, FP32, 16)
    x = batch(16).x
    assert teacher.failed is None
    for tap, value in teacher.tap(x, ("stem", "embed")).items():
        assert torch.allclose(value, net.tap(x)[tap], atol=1e-5)


@pytest.mark.parametrize("route", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", ["resnet8", "wrn-16-1", "mobilenetv2-0.5", "shufflenetv2"])
def test_a_row_has_the_same_bits_in_any_company(name: str, route: Route) -> None:
    net = used(name)
    taps = names_of(net)
    teacher = FrozenTeacher(net, SHAPE, route, batch_size=64)
    x = batch(64).x
    want = teacher.tap(x, taps)
    assert 64 % teacher.granularity == 0
    for rows in (torch.arange(3), torch.arange(16, 64), torch.arange(63, -1, -1), torch.tensor([40]), torch.arange(37)):
        got = teacher.tap(x[rows], taps)
        assert all(torch.equal(got[tap], want[tap][rows]) for tap in taps), rows
    twice = teacher.tap(torch.cat([x, x[:5]]), taps)  # more than a batch
    assert all(torch.equal(twice[tap], torch.cat([want[tap], want[tap][:5]])) for tap in taps)
    sideways = x.to(memory_format=torch.channels_last)
    assert all(torch.equal(value, want[tap]) for tap, value in teacher.tap(sideways, taps).items())
    for tap in taps:
        alone = teacher.tap(x, (tap,))
        assert set(alone) == {tap, "logits"}
        assert torch.equal(alone[tap], want[tap])
        assert torch.equal(alone["logits"], want["logits"])


def test_rows_that_depend_on_their_company_are_run_in_whole_batches() -> None:
    class Nosy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 10)

        def tap(self, x: Tensor, names: object = None) -> dict[str, Tensor]:
            embed = x.flatten(1)[:, :64] + len(x)  # as if kernels rounded differently
            return {"embed": embed, "logits": self.head(embed)}

    teacher = FrozenTeacher(Nosy().eval(), SHAPE, FP32, 64)
    x = batch(64).x
    assert teacher.granularity == 64
    assert torch.equal(teacher.tap(x[:3], ("embed",))["embed"], teacher.tap(x, ("embed",))["embed"][:3])
    assert FrozenTeacher(used("resnet8"), SHAPE, FP32, 8).granularity == 8


@pytest.mark.parametrize("route", [FP32, BF16], ids=["fp32", "bf16"])
def test_live_cached_and_half_cached_are_the_same_bits(route: Route) -> None:
    net = used("resnet8")
    live = FrozenTeacher(net, SHAPE, route, 64)
    cached = FrozenTeacher(net, SHAPE, route, 64)
    shelf = cached.cache = Shelf(route.teacher_dtype)
    b = batch(64)
    want = live.tap(b.x, ("embed",))

    def part(rows: slice) -> Batch:
        return Batch(b.x[rows], b.y[rows], b.index[rows], b.view[rows])

    for rows, hits, misses in ((slice(0, 21), 0, 21), (slice(10, 64), 11, 64), (slice(0, 64), 75, 64)):
        served = part(rows)
        cached.serve(served)
        got = cached.tap(served.x, ("embed", "logits"))
        assert (cached.hits, cached.misses) == (hits, misses)
        assert all(torch.equal(got[tap], want[tap][rows]) for tap in want)
        lookups = shelf.lookups
        full = cached.tap(served.x, ("stage1", "logits"))
        again = cached.tap(served.x, ("embed",))
        assert shelf.lookups == lookups
        assert torch.equal(full["logits"], got["logits"])
        assert torch.equal(again["embed"], got["embed"])

    cached.serve(b)
    cached.tap(b.x, ("stage1",))
    cached.tap(b.x, ("logits",))
    assert shelf.lookups == 3, "what has been run is not looked up"
    b.view[0, 0] = 1  # another view of the image is another row
    cached.serve(b)
    cached.tap(b.x, ())
    assert (cached.hits, cached.misses) == (75 + 63, 65)


def test_the_served_batch_is_run_once() -> None:
    teacher = FrozenTeacher(used("resnet8"), SHAPE, FP32, 16)
    calls: list[int] = []
    assert teacher.fast is not None
    teacher.fast.stem.register_forward_hook(lambda *args: calls.append(1))  # type: ignore[union-attr]
    b = batch(16)
    teacher.serve(b)
    first = teacher.tap(b.x, ("stage1",))
    assert teacher.tap(b.x, ("stage1", "embed"))["stage1"] is first["stage1"]
    assert len(calls) == 1
    teacher.tap(b.x.clone(), ("stage1",))  # somebody's own images, equal or not
    assert len(calls) == 2
    teacher.serve(None)
    teacher.tap(b.x, ("stage1",))
    assert len(calls) == 3


def test_changes_in_place_are_found() -> None:
    teacher = FrozenTeacher(used("resnet8"), SHAPE, BF16, 16)
    b = batch(16)
    teacher.serve(b)
    before = teacher.tap(b.x, ("stage1",))
    assert teacher.spoiled() is None
    before["stage1"].mul_(2)
    assert teacher.spoiled() == "the teacher's 'stage1' was changed in place"
    teacher.serve(b)
    assert teacher.spoiled() is None
    same = teacher.tap(b.x, ())["logits"]
    b.x.add_(1)
    assert teacher.spoiled() == "the batch's 'x' was changed in place"
    assert not torch.equal(teacher.tap(b.x, ())["logits"], same), "other images are not the served ones"
    teacher.serve(b)
    b.y += 1
    assert teacher.spoiled() == "the batch's 'y' was changed in place"


def test_gradients_flow_through_the_plain_network() -> None:
    net = used("resnet8")
    teacher = FrozenTeacher(net, SHAPE, BF16, 16)
    b = batch(4)
    b.x.requires_grad_()
    teacher.serve(b)
    with torch.enable_grad():
        got = teacher.tap(b.x, ("embed",))
        (slope,) = torch.autograd.grad(got["embed"].sum(), b.x)
        (want,) = torch.autograd.grad(net.tap(b.x, ("embed",))["embed"].sum(), b.x)
    assert torch.equal(slope, want)
    assert float(slope.abs().max()) > 0


def test_probing_and_the_plain_route_leave_the_network_alone() -> None:
    net = used("resnet8")
    fast, plain = FrozenTeacher(net, SHAPE, BF16, 64), FrozenTeacher(net, SHAPE, PLAIN, 64)
    x = batch(5).x
    want = net.tap(x)
    assert probe("t", fast, SHAPE) == probe("t", plain, SHAPE) == probe("t", net, SHAPE)
    assert all(torch.equal(value, want[tap]) for tap, value in plain.tap(x, tuple(want)).items())
    assert torch.equal(fast(x), want["logits"])
    for teacher in (fast, plain):
        teacher.train()
        assert not any(module.training for module in teacher.modules())
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        assert plain.tap(x, ())["logits"].dtype == torch.bfloat16
        assert torch.equal(fast.tap(x, ())["logits"], fast.tap(x, ("stage1",))["logits"])
        inside = fast.tap(x, ())["logits"]
    assert torch.equal(inside, fast.tap(x, ())["logits"])


def test_a_compile_failure_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    net = used("resnet8")
    teacher = FrozenTeacher(net, SHAPE, COMPILED, 16)
    assert teacher.granularity == 16

    def refuse(*args: object) -> dict[str, Tensor]:
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(teacher, "_graph", refuse)
    x = batch(16).x
    got = teacher.tap(x, ("stage1",))
    assert teacher.failed == why(RuntimeError("no compiler")) == "RuntimeError: no compiler"
    assert torch.allclose(got["stage1"], net.tap(x)["stage1"], atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_taps_are_the_plain_ones(dtype: torch.dtype) -> None:
    net = used("resnet8")
    taps = names_of(net)
    teacher = FrozenTeacher(net, SHAPE, Route(True, True, dtype, False), 16)
    x = batch(16).x
    want, got = net.tap(x), teacher.tap(x, taps)
    assert teacher.failed is None
    for tap in taps:
        limit = (1e-4 if dtype == torch.float32 else 0.1) * float(want[tap].abs().max())
        assert float((got[tap] - want[tap]).abs().max()) <= limit
        assert torch.equal(teacher.tap(x[:5], (tap,))[tap], got[tap][:5])
