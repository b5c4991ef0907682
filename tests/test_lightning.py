"""The order of Lightning's hooks and its modes of gradients, on which plans and meters rely: an upgrade must not move
what a method computes behind an epoch by one evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import Kdbench
from pytorch_lightning.callbacks import ModelCheckpoint
from test_methods import PROTOCOL, Data, batches, bind, trainer
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from worlds import IMAGES

from kdbench.data.batch import Batch
from kdbench.errors import DoesNotFit, UserError
from kdbench.method import Stage
from kdbench.taps import Out
from methods.controls.scratch import Scratch
from methods.intermediate.at import AT
from methods.logits.kd import KD

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


# ---- networks of anyone's, outside of the bench -------------------------------------------------------------------


class Plain(torch.nn.Module):
    """A convolution and a linear layer, without a word of taps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.fc = torch.nn.Conv2d(3, width, 3, stride=2), torch.nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(torch.relu(self.conv(x)).mean((2, 3)))
        return out


def plain(seed: int, width: int = 8) -> Plain:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Plain(width)


def loader() -> DataLoader[tuple[Tensor, ...]]:
    draw = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(32, 3, 12, 12, generator=draw), torch.arange(32) % 4), 8)


SETTINGS: dict[str, Any] = {"temperature": 2.0, "weights": {"ce": 0.5, "kd": {"start": 0.0, "end": 1.0, "until": 1.0}}}


def test_plain_networks_are_trained_tested_and_loaded_again(tmp_path: Path) -> None:
    method = KD(**SETTINGS, protocol=PROTOCOL, student=plain(1), teacher=plain(2, 16))
    keeping = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    trainer(2, enable_checkpointing=True, callbacks=[keeping]).fit(method, loader())
    (tested,) = trainer(1).test(method, loader(), verbose=False)
    (x, y), student = loader().dataset.tensors, method._given[0]  # type: ignore[attr-defined]
    assert isinstance(student, Plain)
    assert not torch.equal(student.fc.weight, plain(1).fc.weight)
    assert tested["test/top1"] == pytest.approx(100 * (student(x).argmax(1) == y).float().mean().item())

    # the settings come with the checkpoint, the networks from whoever loads it
    loaded = KD.load_from_checkpoint(tmp_path / "epoch=1.ckpt", student=plain(3), teacher=plain(2, 16))
    assert (loaded.temperature, loaded._weights, loaded.protocol) == (2.0, method._weights, PROTOCOL)
    assert torch.equal(loaded(x), student(x))
    assert trainer(1).test(loaded, loader(), verbose=False) == [tested]
    other = KD.load_from_checkpoint(tmp_path / "epoch=1.ckpt", student=plain(3), teacher=plain(2, 16), temperature=3.0)
    assert other.temperature == 3.0

    # gone on with after the first epoch, it ends where it ended uninterrupted
    resumed = KD(**SETTINGS, protocol=PROTOCOL, student=plain(4), teacher=plain(2, 16))
    trainer(2).fit(resumed, loader(), ckpt_path=tmp_path / "epoch=0.ckpt")
    assert resumed.epoch == 2
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), method.parameters(), strict=True))


def test_what_began_before_a_checkpoint_does_not_begin_again(tmp_path: Path) -> None:
    said: list[str] = []

    class Staged(Scratch):
        def stages(self) -> list[Stage]:
            return [Stage(name, 0.5, lambda name=name: said.append(name)) for name in ("first", "second")]  # type: ignore[misc]

    keeping = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1)
    trainer(4, enable_checkpointing=True, callbacks=[keeping]).fit(Staged(student=plain(1)), loader())
    assert said == ["first", "second"]
    trainer(4).fit(Staged(student=plain(1)), loader(), ckpt_path=tmp_path / "epoch=2.ckpt")
    assert said == ["first", "second"]


def test_torchvisions_networks_train_or_say_which_tap_is_missing() -> None:
    from torchvision.models import resnet18

    student, teacher = resnet18(num_classes=4), resnet18(num_classes=4)
    before = student.fc.weight.clone()
    trainer(1, limit_train_batches=1).fit(KD(student=student, teacher=teacher), loader())
    assert not torch.equal(student.fc.weight, before)
    with pytest.raises(DoesNotFit, match=r"^the student \(ResNet\) has no tap 'stage\*' \(it has embed, logits\)"):
        trainer(1).fit(AT(student=student, teacher=teacher), loader())
    with pytest.raises(UserError, match="KD needs a teacher"):
        trainer(1).fit(KD(student=student), loader())
    with pytest.raises(UserError, match="has no student"):
        trainer(1).test(KD(teacher=teacher), loader())
