"""Logs: one per cell, equal to its curves, whole after a kill, and never at a cell's expense."""

from __future__ import annotations

import csv
import json
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from conftest import SMALL, Kdbench
from test_cli import one_sentence
from test_grid import wait_for

from kdbench.engine.cohort import Cohort
from kdbench.engine.logs import Log, Logs
from kdbench.results.record import Record


def curves_of(record: Record) -> dict[str, list[tuple[int, float]]]:
    """Name -> (epoch, value) wherever something was measured."""
    curves = {name: list(enumerate(curve)) for name, curve in record.curves.items()}
    return {name: [(epoch, value) for epoch, value in curve if value is not None] for name, curve in curves.items()}


def from_csv(path: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves in a CSV log; each epoch has one row."""
    rows = list(csv.DictReader(path.open()))
    assert [int(row["epoch"]) for row in rows] == [int(row["step"]) for row in rows] == list(range(len(rows)))
    names = set(rows[0]) - {"epoch", "step"}
    return {name: [(int(row["epoch"]), float(row[name])) for row in rows if row[name]] for name in names}


def from_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    names = set(events.Tags()["scalars"]) - {"epoch", "hp_metric"}
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in names}


def from_wandb(path: Path) -> tuple[dict[str, Any], str, dict[str, list[tuple[int, float]]]]:
    """Config, name and history of an offline run, from its file: LevelDB's log format behind a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record as Entry

    data, at, part = path.read_bytes(), 7, b""
    config: dict[str, Any] = {}
    name, history = "", {}
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        part = (part if kind in (3, 4) else b"") + data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind not in (1, 4):
            continue
        entry = Entry.FromString(part)
        for item in [*entry.run.config.update, *entry.config.update]:
            config[item.key] = json.loads(item.value_json)
        name = entry.run.display_name or name
        if entry.HasField("history"):
            row = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in entry.history.item}
            for key in row.keys() - {"epoch", "trainer/global_step"}:
                if not key.startswith("_"):
                    history.setdefault(key, []).append((row["epoch"], row[key]))
    return config, name, history


def runs(kd: Kdbench) -> dict[str, Path]:
    """W&B's offline runs by id."""
    return {path.stem.removeprefix("run-"): path for path in kd.work.glob("logs/wandb/offline-run-*/run-*.wandb")}


def logs(kd: Kdbench, method: str) -> Path:
    (folder,) = (kd.work / "logs").glob(f"{method}-*/*")
    return folder


# ---- one per cell -----------------------------------------------------------------------------------------------

EVERY_SECOND = ("protocol.epochs=5", "protocol.eval_every=2")
"""The last epoch is not one of those that are evaluated on the way."""


def test_csv_has_each_epoch_once_and_the_config(kd: Kdbench) -> None:
    assert kd.run("method=[scratch,dkd]", *EVERY_SECOND, "logger=csv").code == 0
    for method in ("scratch", "dkd"):
        record = kd.record(method)
        assert from_csv(logs(kd, method) / "metrics.csv") == curves_of(record)
        assert logs(kd, method).name == record.cell.id
        assert yaml.safe_load((logs(kd, method) / "hparams.yaml").read_text()) == record.config
    assert [epoch for epoch, _ in curves_of(kd.record("dkd"))["test/top1"]] == [1, 3, 4]


def test_tensorboard_has_each_epoch_once_and_the_config(kd: Kdbench) -> None:
    assert kd.run("method=[scratch,ls]", *EVERY_SECOND, "logger=tensorboard").code == 0
    for method in ("scratch", "ls"):
        want = curves_of(kd.record(method))
        found = from_tensorboard(logs(kd, method))
        assert found.keys() == want.keys()
        for name, points in want.items():
            steps, values = zip(*points, strict=True)
            assert [step for step, _ in found[name]] == list(steps)
            assert [value for _, value in found[name]] == pytest.approx(values, rel=1e-6), name  # float32
        assert yaml.safe_load((logs(kd, method) / "hparams.yaml").read_text()) == kd.record(method).config


def test_wandb_has_one_run_per_cell_in_lockstep(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")  # Lightning sets it for good
    offline = ("logger=wandb", "logger.offline=true", f"paths.work={kd.work}")  # W&B's service stands where it began
    result = kd.run("method=[scratch,kd]", "teacher.seed=41", *offline)
    assert result.code == 0, result
    assert "lockstep" in kd.record("kd").environment.path
    assert len(runs(kd)) == 3  # and the teacher's
    for method in ("scratch", "kd"):
        record = kd.record(method)
        config, name, history = from_wandb(runs(kd)[record.cell.id])
        assert name.startswith(f"{method}-")
        assert history == curves_of(record)
        assert {key: value for key, value in config.items() if key != "_wandb"} == record.config


# ---- killed and resumed -----------------------------------------------------------------------------------------


def die(monkeypatch: pytest.MonkeyPatch, kd: Kdbench, *command: str) -> None:
    """Run a command that ends after its third epoch, with a checkpoint of the second and no word to its logs."""
    with monkeypatch.context() as patch:
        patch.setattr(Log, "close", lambda self: None)
        save = Cohort.save

        def dying(self: Cohort) -> None:
            if self.epoch < 3:
                save(self)
            else:
                for member in self.members:
                    member.log.write(3)  # type: ignore[union-attr]
                raise KeyboardInterrupt

        patch.setattr(Cohort, "save", dying)
        assert kd.run(*command).code == 130
    assert len(list(kd.root.glob("runs/cells/*/last.ckpt"))) == 2


@pytest.mark.parametrize("logger", ["csv", "tensorboard"])
def test_logs_are_whole_after_a_resume(kd: Kdbench, monkeypatch: pytest.MonkeyPatch, logger: str) -> None:
    command = ("method=[scratch,ls]", "protocol.epochs=5", f"logger={logger}", "checkpoint_seconds=0")
    die(monkeypatch, kd, *command)
    if logger == "csv":
        with (logs(kd, "ls") / "metrics.csv").open("a") as file:
            file.write("4,1.")  # half a line, as a kill may leave
    assert kd.run(*command).code == 0
    for method in ("scratch", "ls"):
        read = from_csv(logs(kd, method) / "metrics.csv") if logger == "csv" else from_tensorboard(logs(kd, method))
        want = curves_of(kd.record(method))
        assert {name: [epoch for epoch, _ in points] for name, points in read.items()} == {
            name: [epoch for epoch, _ in points] for name, points in want.items()
        }
        assert [value for _, value in read["loss/ce"]] == pytest.approx([value for _, value in want["loss/ce"]])


@pytest.mark.slow
@pytest.mark.parametrize("logger", ["csv", "wandb"])
def test_logs_are_whole_after_a_kill(alone: Kdbench, logger: str) -> None:
    kd = alone
    command = ["run", "method=scratch", "protocol.epochs=30", "dataset.per_class=20", "checkpoint_seconds=0"]
    command += [f"logger={logger}", *(["logger.offline=true"] if logger == "wandb" else [])]
    process = kd.spawn(*command)
    wait_for(kd, "runs/cells/*/last.ckpt", process)
    process.kill()
    process.communicate()
    again = kd.spawn(*command)
    assert not again.communicate()[0].count("Traceback")
    assert again.returncode == 0
    record = kd.record("scratch")
    if logger == "csv":
        assert from_csv(logs(kd, "scratch") / "metrics.csv") == curves_of(record)
    else:
        assert from_wandb(runs(kd)[record.cell.id])[2] == curves_of(record)
        assert len(list(kd.work.glob("logs/wandb/offline-run-*/run-*.wandb"))) == 1


class Server:
    """A logger whose run lies on a server, where what was logged stays."""

    def __init__(self, epochs: int) -> None:
        self.rows: list[tuple[int | None, dict[str, float]]] = []
        self.experiment = SimpleNamespace(resumed=epochs > 0, summary={"epoch": epochs - 1} if epochs else {})

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step, metrics))

    def save(self) -> None: ...
    def finalize(self, status: str) -> None: ...
    def log_hyperparams(self, params: dict[str, Any]) -> None: ...


@pytest.mark.parametrize(("sent", "want"), [(0, [0, 1, 2, 3]), (2, [2, 3]), (3, [3]), (4, [])])
def test_a_run_on_a_server_goes_on_after_its_last_epoch(
    monkeypatch: pytest.MonkeyPatch, sent: int, want: list[int]
) -> None:
    server, said = Server(sent), []
    monkeypatch.setattr(Logs, "_make", lambda *args, **more: server)
    curves: dict[str, list[float | None]] = {"loss": [3.0, 2.0], "top1": [None, 50.0]}  # resumed at the third epoch
    with Logs({"_target_": "any"}, said.append).of("title", "id", {}, curves) as log:
        assert log
        curves["loss"] += [1.0, 0.5]
        log.write(3)
    assert [step for step, _ in server.rows] == want
    rows = {0: {"loss": 3.0}, 1: {"loss": 2.0, "top1": 50.0}, 2: {"loss": 1.0}, 3: {"loss": 0.5}}
    assert [row for _, row in server.rows] == [{**rows[k], "epoch": k} for k in want]
    assert not said


# ---- what befalls a log -----------------------------------------------------------------------------------------


def test_without_a_key_the_grid_goes_on(kd: Kdbench) -> None:
    process = kd.spawn(
        *("run", *SMALL, "method=[scratch,ls]", "seed=[0,1]", "logger=wandb"),
        **{"HOME": str(kd.root), "WANDB_API_KEY": "", "WANDB_MODE": "online"},
    )
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0
    assert len(kd.records()) == 4
    assert (out + err).count("logger.offline=true") == out.count("the log cannot be written") == 1
    assert "Traceback" not in out + err


FULL = """
import errno

from pytorch_lightning.loggers import CSVLogger


class Full(CSVLogger):
    def log_metrics(self, metrics, step=None):
        if step == 1:
            raise OSError(errno.ENOSPC, "No space left on device", "metrics.csv")
        super().log_metrics(metrics, step)
"""


def test_a_log_that_cannot_be_written_costs_the_log(kd: Kdbench) -> None:
    (kd.root / "full.py").write_text(FULL)
    result = kd.run("method=[scratch,ls]", "protocol.epochs=3", "logger._target_=full.Full")
    assert result.code == 0
    assert len(kd.records()) == 2
    assert result.err == ""
    assert result.out.count("No space left on device") == 1
    assert list(from_csv(logs(kd, "ls") / "metrics.csv")["loss/ce"]) == curves_of(kd.record("ls"))["loss/ce"][:1]


def test_a_log_that_was_lost_says_no_more() -> None:
    class Broken:
        calls = 0

        def log_metrics(self, metrics: dict[str, float], step: int) -> None:
            self.calls += 1
            raise RuntimeError

    broken, lost = Broken(), []
    log = Log(broken, {"loss": [1.0, 2.0]}, 0, lost.append)  # type: ignore[arg-type]
    log.write(1)
    log.write(2)
    log.close()
    assert broken.calls == len(lost) == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["logger=csv", "+logger.colour=1"], ["'logger.colour'", "flush_logs_every_n_steps"]),
        (["logger=tensorboard", "+logger.colour=1"], ["'logger.colour'", "flush_secs"]),
        (["logger=wandb", "+logger.colour=1"], ["'logger.colour'", "entity"]),
        (["logger=csv", "+logger.version=mine"], ["logger.version", "named after its cell"]),
        (["logger=wandb", "+logger.id=mine"], ["logger.id", "named after its cell"]),
        (["logger=csv", "logger.save_dir=3"], ["logger", "int"]),
        (["logger=csv", "logger._target_=nope.Nope"], ["nope.Nope", "logger._target_"]),
        (["logger=csv", "logger._target_=os.getcwd"], ["os.getcwd", "none of Lightning's loggers"]),
        (["logger=csv", "logger._target_=null"], ["logger._target_"]),
        (["logger=wandb", "logger.offline=true", "+logger.log_model=true"], ["log_model"]),
    ],
)
def test_wrong_settings_are_told_before_anything_is_trained(kd: Kdbench, settings: list[str], words: list[str]) -> None:
    one_sentence(kd.run("method=[scratch,kd]", *settings), *words)
    assert not list(kd.results.rglob("*.json"))
    assert not list(kd.root.glob("runs/logs/*"))
