"""The order of Lightning's hooks and its modes of gradients, on which plans and meters rely: an upgrade must not move
what a method computes behind an epoch by one evaluation."""

from __future__ import annotations

from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import Kdbench
from test_methods import PROTOCOL, Data, batches, bind, trainer
from torch import Tensor
from worlds import IMAGES

from kdbench.data.batch import Batch
from kdbench.method import Stage
from kdbench.taps import Out
from methods.controls.scratch import Scratch

pytestmark = pytest.mark.filterwarnings("ignore:.*(LeafSpec|many workers|logging interval|no `val_dataloader)")


class Spy(pl.LightningModule):
    """Writes down when it is called, and in which mode."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.layer = torch.nn.Linear(1, 1)
        self.calls: list[str] = []
        self.modes: set[tuple[bool, bool]] = set()

    def on_train_epoch_start(self) -> None:
        self.calls.append("start")

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        self.calls.append("step")

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.calls += ["last batch"] if self.trainer.is_last_batch else []

    def on_validation_epoch_start(self) -> None:
        self.calls.append("evaluate")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.modes.add((torch.is_inference_mode_enabled(), self.training))

    def on_validation_epoch_end(self) -> None:
        self.calls.append("evaluated")

    def on_train_epoch_end(self) -> None:
        self.calls.append("end")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_an_epoch_is_evaluated_behind_its_last_batch_and_before_its_end() -> None:
    spy, data = Spy(), Data(batches(2), batches(1), IMAGES)
    lightning = trainer(4, check_val_every_n_epoch=2, inference_mode=False, reload_dataloaders_every_n_epochs=1)
    lightning.fit(spy, datamodule=data)
    plain = ["start", "step", "step", "last batch", "end"]
    evaluated = [*plain[:-1], "evaluate", "evaluated", "end"]
    assert spy.calls == (plain + evaluated) * 2
    lightning.validate(spy, datamodule=data, verbose=False)
    assert spy.calls[-2:] == ["evaluate", "evaluated"]
    assert spy.modes == {(False, False)}  # whoever attacks a network may enable gradients, here as there


STAGED = """
from kdbench.method import Stage
from methods.controls.scratch import Scratch

SAID = []


class Staged(Scratch):
    def say(self, what):
        return lambda: SAID.append(what)

    def stages(self):
        stages = [("make", 0), ("first", 0.5), ("close", 0), ("second", 0.5), ("end", 0)]
        return [Stage(name, share, self.say(f"begin {name}")) for name, share in stages]

    def losses(self, s, t, batch):
        SAID.append(f"train {self.stage}")
        return super().losses(s, t, batch)

    def on_validation_epoch_start(self):
        SAID.append(f"evaluate {self.stage}")
        super().on_validation_epoch_start()
"""
ORDER = [
    "begin make",
    "begin first",
    "train first",
    "train first",
    "begin close",
    "evaluate close",
    "begin second",
    "train second",
    "train second",
    "begin end",
    "evaluate end",
]
"""A stage of share 0 belongs to the epoch in front of it, and is judged with it; one that trains comes later."""


def test_stages_begin_in_the_order_of_the_plan(kd: Kdbench) -> None:
    (kd.root / "staged.py").write_text(STAGED)
    (kd.root / "conf" / "method").mkdir(parents=True)
    (kd.root / "conf" / "method" / "staged.yaml").write_text(
        "# @package method.staged\n_target_: staged.Staged\nweights: {ce: 1.0}\n"
    )
    result = kd.run("--config-dir", "conf", "method=[staged]", "protocol.batch_size=100")
    assert result.code == 0, result
    import staged  # type: ignore[import-not-found]

    assert staged.SAID == ORDER


def test_stages_begin_in_that_order_outside_of_the_bench() -> None:
    said: list[str] = []

    class Staged(Scratch):
        def stages(self) -> list[Stage]:
            stages = [("make", 0.0), ("first", 0.5), ("close", 0.0), ("second", 0.5), ("end", 0.0)]
            return [Stage(name, share, lambda name=name: said.append(f"begin {name}")) for name, share in stages]  # type: ignore[misc]

        def losses(self, s: Out, t: Out, batch: Batch) -> dict[str, Tensor]:
            said.append(f"train {self.stage}")
            return super().losses(s, t, batch)

        def on_validation_epoch_start(self) -> None:
            said.append(f"evaluate {self.stage}")
            super().on_validation_epoch_start()

    trainer(2).fit(bind(Staged(protocol=PROTOCOL)), datamodule=Data(batches(2), batches(1), IMAGES))
    assert said == ORDER
