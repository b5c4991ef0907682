"""What a protocol does to an optimiser step: clipping, accumulation, the last batch; against plain loops."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import Kdbench
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kdbench.data.batch import Batch, DataSpec
from kdbench.engine.cohort import Cohort, Member
from kdbench.engine.fit import make_trainer
from kdbench.errors import UserError
from kdbench.method import Method, Player
from kdbench.protocol import Protocol
from kdbench.results.store import Store
from methods.controls.scratch import Scratch

SPEC = DataSpec("made", (3, 8, 8), 4, n_train=22, n_test=4)
SGD = {"_target_": "torch.optim.SGD", "lr": 0.1}


class Plain(nn.Module):
    """Without batch norm, so that a batch is no more than its samples."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(3 * 8 * 8, 5), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.flatten(1)).tanh())

    def tap(self, x: Tensor, names: Any = None) -> dict[str, Tensor]:
        return {"logits": self(x)}


class Game(Method):
    """Two players: the body ascends what the head descends; the head's loss reaches the body too."""

    leaf, paper, title = "controls", "", "Game"
    needs, terms = frozenset({"labels"}), ("ce",)

    def players(self) -> list[Player]:
        net: Any = self.student
        return [Player("body", list(net.body.parameters()), SGD), Player("head", list(net.head.parameters()), SGD)]

    def turns(self, batch: Batch) -> Any:
        if batch.index[0] % 2 == 0:  # not in every batch
            yield "body", {"ce": -cross_entropy(self.student(batch.x), batch.y)}
        yield "head", {"ce": cross_entropy(self.student(batch.x), batch.y)}


def start() -> Plain:
    torch.manual_seed(3)
    return Plain()


def batches(size: int, n: int = SPEC.n_train) -> list[Batch]:
    made = torch.Generator().manual_seed(5)
    x, y = torch.randn(n, *SPEC.shape, generator=made), torch.randint(0, 4, (n,), generator=made)
    index = torch.arange(n)
    return [Batch(x[i : i + size], y[i : i + size], index[i : i + size] // size, index) for i in range(0, n, size)]


class Loader:
    """Lightning would take a plain list for several loaders."""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


class Scaled(MixedPrecision):
    """A gradient scaler as in 16-mixed, but all else in float32, where powers of two cost no bit."""

    def __init__(self, growth_interval: int) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=growth_interval)
        super().__init__("16-mixed", "cpu", scaler)

    def forward_context(self) -> AbstractContextManager[None]:
        return nullcontext()


def trainer_of(epochs: int = 1, plugin: Scaled | None = None) -> pl.Trainer:
    off: Any = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return pl.Trainer(max_epochs=epochs, accelerator="cpu", plugins=plugin, **off)


def trained(
    cls: type[Method],
    protocol: Protocol,
    data: list[Batch],
    spec: DataSpec = SPEC,
    plugin: Scaled | None = None,
) -> dict[str, Tensor]:
    """Weights after one epoch."""
    net = start()
    method = cls(protocol=protocol).bind(net, None, spec)
    trainer_of(plugin=plugin).fit(method, Loader(data))  # type: ignore[arg-type]
    return net.state_dict()


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(value, start().state_dict()[name]) for name, value in got.items())


def protocol(**fields: Any) -> Protocol:
    return Protocol(epochs=1, optimizer={**SGD, "momentum": 0.9}, schedule={"kind": "constant"}, **fields)


def test_clipping_is_torchs_on_a_plain_loop() -> None:
    net, norm = start(), 0.05
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    for batch in batches(5):
        optimizer.zero_grad()
        cross_entropy(net(batch.x), batch.y).backward()
        assert nn.utils.clip_grad_norm_(net.parameters(), norm) > norm
        optimizer.step()
    assert_same(trained(Scratch, protocol(batch_size=5, clip_norm=norm), batches(5)), net.state_dict())


@pytest.mark.parametrize("spec", [SPEC, DataSpec("unknown", SPEC.shape, 4, 0, 0)], ids=["bench", "loader"])
def test_accumulated_batches_are_one_large_batch(spec: DataSpec) -> None:
    n = SPEC.n_train if spec.n_train else 20  # a stranger's loader does not say how full its last batch is
    small, large = protocol(batch_size=5, accumulate=2), protocol(batch_size=10)
    assert_same(trained(Scratch, small, batches(5, n), spec), trained(Scratch, large, batches(10, n), spec))


def test_players_step_together_at_the_end_of_a_group_each_on_its_own_gradients() -> None:
    net = start()
    players = {name: torch.optim.SGD(getattr(net, name).parameters(), lr=0.1) for name in ("body", "head")}
    data = batches(5)
    for group in (data[:2], data[2:4], data[4:]):
        samples = sum(map(len, group))
        losses = [cross_entropy(net(batch.x), batch.y, reduction="sum") / samples for batch in group]
        grads = {
            "body": [
                torch.autograd.grad(-loss, list(net.body.parameters()), retain_graph=True)
                for loss, batch in zip(losses, group, strict=True)
                if batch.index[0] % 2 == 0
            ],
            "head": [torch.autograd.grad(loss, list(net.head.parameters()), retain_graph=True) for loss in losses],
        }
        for name, optimizer in players.items():
            for parameter, *each in zip(getattr(net, name).parameters(), *grads[name], strict=True):
                parameter.grad = torch.stack(each).sum(0)
            optimizer.step()
    assert_same(trained(Game, protocol(batch_size=5, accumulate=2), data), net.state_dict())


@pytest.mark.parametrize("fields", [{}, {"clip_norm": 0.05}, {"accumulate": 2}, {"accumulate": 2, "clip_norm": 0.05}])
@pytest.mark.parametrize("cls", [Scratch, Game])
def test_a_gradient_scaler_changes_no_number(cls: type[Method], fields: dict[str, Any]) -> None:
    given = protocol(batch_size=5, **fields)
    want = trained(cls, given, batches(5))
    assert_same(want, want)
    # a scale that grows with each step, so that it moves between the players of a group
    got = trained(cls, given, batches(5), plugin=Scaled(growth_interval=1))
    # torch adds 1e-6 to a norm before it divides by it, be it scaled or not
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6 if given.clip_norm else 0.0)


def test_a_gradient_scaler_goes_on_where_it_was(tmp_path: Path) -> None:
    def train(folder: Path, epochs: int) -> Scaled:
        folder.mkdir(exist_ok=True)
        whole = Protocol(epochs=2, batch_size=5, optimizer=SGD, schedule={"kind": "constant"})
        method = Scratch(protocol=whole).bind(start(), None, SPEC)
        member, plugin = Member("scratch", method, folder, torch.get_rng_state()), Scaled(growth_interval=3)
        member.resume()
        trainer = trainer_of(epochs, plugin)
        trainer.fit_loop.epoch_progress.current.processed = method.epoch
        trainer.fit_loop.epoch_progress.current.completed = method.epoch
        cohort = Cohort([member], [], channels_last=False, checkpoint_seconds=0, on_epoch=lambda members, epochs: None)
        trainer.fit(cohort, Loader(batches(5)))  # type: ignore[arg-type]
        assert method.epoch == epochs
        return plugin

    whole = train(tmp_path / "whole", 2).state_dict()
    assert whole["scale"] == 2.0**13  # ten steps, three times three of them
    train(tmp_path / "parts", 1)
    assert train(tmp_path / "parts", 2).state_dict() == whole


def test_a_precision_that_the_device_does_not_have_is_refused() -> None:
    off = {"logger": False, "enable_checkpointing": False}
    assert make_trainer({"accelerator": "cpu"}, precision="bf16-mixed", **off).precision == "bf16-mixed"
    with pytest.raises(UserError, match=r"protocol\.precision=16-mixed would be bf16-mixed on this device"):
        make_trainer({"accelerator": "cpu"}, precision="16-mixed", **off)


@pytest.mark.parametrize(("drop", "seen"), [(False, 200), (True, 192)])
def test_the_last_batch_is_left_out_where_the_protocol_says_so(kd: Kdbench, drop: bool, seen: int) -> None:
    assert kd.run("method=scratch", f"protocol.drop_last={str(drop).lower()}").code == 0
    assert kd.record("scratch").cost.images_seen == 2 * seen  # epochs


def test_clipped_and_accumulating_cells_are_the_same_alone_in_company_and_after_a_kill(kd: Kdbench) -> None:
    settings = ("protocol.clip_norm=1.0", "protocol.accumulate=3", "protocol.epochs=3", "checkpoint_seconds=0")
    assert kd.run("method=[kd,dml]", *settings).code == 0
    together = {name: (kd.record(name).curves, kd.record(name).correct) for name in ("kd", "dml")}
    for name, numbers in together.items():
        assert kd.run(f"method={name}", *settings, "cohort.max_students=1", f"paths.results={kd.root}/{name}").code == 0
        (alone,) = Store(kd.root / name).load()
        assert (alone.curves, alone.correct) == numbers
    plain = kd.run("method=kd", "protocol.epochs=3")
    assert plain.code == 0
    curves = [record.curves for record in kd.records() if record.cell.method == "kd"]
    assert curves[0] != curves[1]


def test_a_protocol_that_leaves_no_batch_is_refused(kd: Kdbench) -> None:
    result = kd.run("method=scratch", "protocol.drop_last=true", "protocol.batch_size=201")
    assert result.code == 1
    assert any("protocol.drop_last=true leaves nothing of 200 training images" in line for line in result.messages)


@pytest.mark.parametrize(
    "fields",
    [
        {"clip_norm": 0.0},
        {"clip_norm": float("nan")},
        {"clip_norm": "1"},
        {"accumulate": 0},
        {"accumulate": True},
        {"drop_last": 1},
        {"epochs": True},
        {"optimizer": {"_target_": "torch.optim.SGD", "lr": 0}},
        {"lr_for": {"vgg*": -0.1}},
        {"schedule": {"milestones": [0.5, 0.5]}},
        {"schedule": {"milestones": [1.5]}},
        {"schedule": {"gamma": 0}},
        {"name": "a\nb"},
    ],
)
def test_nonsense_in_a_protocol_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"protocol.{next(iter(fields))}"):
        Protocol.of(fields)
