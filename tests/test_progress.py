"""What is seen of a training: on a terminal of any width, in a file or pipe, resumed, and for whatever is measured."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Kdbench
from rich.console import Console

from kdbench.engine import progress
from kdbench.engine.progress import Watch, clock, news
from kdbench.measures import TOP1, Measure


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


class Planned(SimpleNamespace):
    def __str__(self) -> str:
        return f"{self.name} {self.pair} digits seed {self.seed}"


def cell(name: str, seed: int = 0, epochs: int = 240) -> Any:
    return Planned(
        name=name,
        seed=seed,
        student="resnet8x0.25",
        pair="resnet20-resnet8x0.25",
        teacher={"name": "resnet20"},
        config={"dataset": {"name": "digits"}},
        protocol=SimpleNamespace(epochs=epochs),
    )


def member(
    epoch: int, loss: float | None = None, measure: Measure = TOP1, epochs: int = 240, **curves: list[float | None]
) -> Any:
    method = SimpleNamespace(
        epoch=epoch, protocol=SimpleNamespace(epochs=epochs), task=SimpleNamespace(primary=measure)
    )
    return SimpleNamespace(method=method, loss=loss, curves={name.replace("_", "/"): c for name, c in curves.items()})


def terminal(width: int) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)


def picture(watch: Watch, width: int) -> list[str]:
    """The lines that a terminal shows."""
    console = terminal(width)
    bar = progress._Bar(watch, console)
    bar.add_task("", total=None)
    for drawn in bar.get_renderables():
        console.print(drawn)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


# ---- on a terminal ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_numbers_survive_where_it_is_narrow(width: int, time: Clock) -> None:
    names = ["scratch", "ls", "kd", "dkd", "fitnet", "at", "sp", "rkd"]
    plan = [cell(name, seed) for seed in (7, 8, 9) for name in names]
    watch = Watch(plan, terminal(width))
    watch.reach(240 * 8)
    watch.start(plan[8:16], 0, True)
    time.now += 50.0
    watch.passed([member(10, 2.314, test_top1=[54.18])] * 8, 10)
    line, below = picture(watch, width)
    # 250 of 720 epochs of each of eight; 10 of them took 50 s, so the 470 that are left take 2350 s
    assert "2000/5760 epochs" in line
    assert line.rstrip().endswith("ETA 0:39:10")
    assert re.search(r" \d:\d\d:\d\d +ETA", line)
    assert "━" in line
    assert max(len(line), len(below)) <= width
    assert line.startswith("8 methods, digits, seed 2/3" if width >= 80 else "8 methods")
    assert below.strip() == "epoch 10/240 loss 2.31 top-1 54.2 %"


def test_nothing_of_it_stays(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdbench.cli import run

    console = terminal(80)
    monkeypatch.setattr(run, "out", console)
    assert kd.run("method=[scratch,kd]", "seed=[0,1]").code == 0
    assert isinstance(console.file, io.StringIO)
    raw = console.file.getvalue()
    assert "2 methods, digits, seed 2/2" in raw
    assert re.search(r"epoch 2/2 loss \S+ to \S+ top-1 \S+ to \S+ %", raw)
    assert raw.count("resnet8x0.25 digits seed") == 4  # what is printed above the bar stays
    end = raw[raw.rindex("kd resnet20-resnet8x0.25 digits seed 1") :]
    cleared, moved_up = end.count("\x1b[2K"), end.count("\x1b[1A")
    assert end.rstrip("\r\n").endswith(("\x1b[2K", "\x1b[?25h"))
    assert cleared >= moved_up >= 2


def test_a_teacher_joins_the_plan_when_it_begins(time: Clock) -> None:
    watch = Watch([cell("kd", epochs=240)], terminal(80))
    watch.start([cell("teacher", epochs=60)], 0, False)
    assert watch.title == "teacher resnet8x0.25, digits, seed 0"
    assert (watch.completed, watch.total) == (0, 300)
    time.now += 3.0
    watch.passed([member(1, epochs=60)], 1)
    assert watch.left == pytest.approx(299 * 3.0)
    time.now += 2.0
    assert watch.left == pytest.approx(299 * 3.0 - 2.0)  # it counts down between two epochs


def test_what_was_resumed_is_over_but_took_no_time(time: Clock) -> None:
    watch = Watch([cell("kd"), cell("dkd")], terminal(80))
    watch.start([cell("kd"), cell("dkd")], 200, True)
    assert (watch.completed, watch.total) == (400, 480)
    time.now += 6.0
    watch.passed([member(201), member(201)], 1)
    assert (watch.completed, watch.left) == (402, 78 * 3.0)
    watch.passed([], 1)  # all diverged at once
    watch.reach(480)
    assert watch.left == 0.0


# ---- in a file or pipe --------------------------------------------------------------------------------------------


def test_a_line_a_minute(time: Clock) -> None:
    file = io.StringIO()
    watch = Watch([cell("kd")], Console(file=file, force_terminal=False, width=80))
    watch.start([cell("kd")], 0, True)
    for epoch in range(1, 11):
        time.now += 23.333
        watch.passed([member(epoch, 2.314, test_top1=[54.18])], 1)
    lines = file.getvalue().splitlines()
    assert lines[0] == "training kd resnet20-resnet8x0.25 digits seed 0"
    # at 70, 140 and 210 s, so after epochs 3, 6 and 9 at 23.333 s each
    assert lines[1:] == [
        f"epoch {epoch}/240 loss 2.31 top-1 54.2 % ETA {eta}"
        for epoch, eta in ((3, "1:32:10"), (6, "1:31:00"), (9, "1:29:50"))
    ]


def test_a_log_of_a_long_one_is_not_mute(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    result = kd.run("method=[kd]", "teacher.epochs=3", "dataset.val=20")
    lines = re.findall(r"^epoch (\d/\d) loss [\d.]+ val top-1 [\d.]+ % ETA \d:\d\d:\d\d$", result.out, re.M)
    assert lines == ["1/3", "2/3", "3/3", "1/2", "2/2"]  # of the teacher, then of the cell
    first = kd.record("kd").curves
    loss = 0.1 * first["loss/ce"][-1] + 0.9 * first["loss/kd"][-1]  # type: ignore[operator]  # weights in kd.yaml
    assert f"epoch 2/2 loss {loss:.3g} val top-1 {first['val/top1'][-1]:.1f} % " in result.out


# ---- words ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-:--:--"), (0.4, "0:00:00"), (59.6, "0:01:00"), (4200, "1:10:00"), (360000, "100:00:00")],
)
def test_a_clock(seconds: float | None, text: str) -> None:
    assert clock(seconds) == text


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ([member(60, 2.314, test_top1=[None, 54.24, None])], "epoch 60/240 loss 2.31 top-1 54.2 %"),
        ([member(60, 2.314, test_top1=[54.24], val_top1=[50.0])], "epoch 60/240 loss 2.31 val top-1 50.0 %"),
        ([member(1, 0.5)], "epoch 1/240 loss 0.5"),
        ([member(1)], "epoch 1/240"),
        (
            [member(3, 12.0, test_top1=[40.0]), member(3, 0.25, test_top1=[57.0])],
            "epoch 3/240 loss 0.25 to 12 top-1 40.0 to 57.0 %",
        ),
        (
            [member(3, -1.0, Measure("return", unit="", examples="episodes"), test_return=[212.5])],
            "epoch 3/240 loss -1 return 212.50",
        ),
        (
            [member(3, 1.0, Measure("RMSE", higher=False, unit="m"), test_RMSE=[0.1234])],
            "epoch 3/240 loss 1 RMSE 0.1234 m",
        ),
    ],
)
def test_the_news(members: list[Any], text: str) -> None:
    assert news(members) == text
