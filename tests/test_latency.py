"""`kdbench latency`: what is kept of it, shown of it, and that it is measured. Nothing here asserts a speed."""

from __future__ import annotations

import csv
import io
import json
import sys
from datetime import datetime, timezone
from pathlib import Path
from time import sleep
from typing import Any

import pytest
import torch
from conftest import Kdbench
from factories import make_record
from test_cli import one_sentence
from torch import nn

from kdbench.bench import latency as bench
from kdbench.bench.latency import Subject, measure, prepared, settled, timed, ways
from kdbench.cli.run import print_tables
from kdbench.data.batch import DataSpec
from kdbench.engine.making import parameters
from kdbench.errors import UserError
from kdbench.registry import methods
from kdbench.report import check, generate, render
from kdbench.report.latency import latency_sheet, rows, subjects_of
from kdbench.report.markdown import markdown
from kdbench.results.latency import FILE, KEPT, Latency, Quartiles, Timing
from kdbench.results.store import Store

CPU = torch.device("cpu")


def made(
    network: str = "resnet20", way: str = "eager", ms: float = 2.0, device: str = "a chip", **changes: Any
) -> Latency:
    """Figures of the student of `make_record`: `ms` for one input, 40 times that for 64, half with two threads."""
    timings = [
        {
            "batch": batch,
            "threads": threads,
            "ms": {"median": times * ms / threads, "low": 0.5 * times * ms / threads, "high": 2 * times * ms / threads},
        }
        for threads in (1, 2)
        for batch, times in ((1, 1), (64, 40))
    ]
    return Latency.model_validate(
        {
            "created": datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc),
            "network": network,
            "shape": (3, 32, 32),
            "outputs": 100,
            "parameters": 278_324,
            "macs": 41_000_000,
            "way": way,
            "host": {
                "device": device,
                "processors": 2,
                "load": 0.25,
                "platform": "linux",
                "versions": {"kdbench": "0.1.0", "torch": "2.6.0"},
                "commit": None,
            },
            "timings": timings,
            **changes,
        }
    )


# ---- what is kept ---------------------------------------------------------------------------------------------------


def test_quartiles_and_throughput() -> None:
    found = Quartiles.of([1.0, 2.0, 3.0, 4.0, 100.0])
    assert (found.low, found.median, found.high) == (2.0, 3.0, 4.0)
    assert Quartiles.of([0.123456]).median == 0.1235  # four digits
    speed = Timing(batch=64, threads=1, ms=Quartiles(median=32.0, low=16.0, high=64.0)).throughput
    assert (speed.low, speed.median, speed.high) == (1000.0, 2000.0, 4000.0)


def test_the_latest_of_each_device_network_shape_and_way_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "deep" / FILE
    assert KEPT.load(path) == []
    KEPT.save(path, [made(device="b"), made(), made(way="onnx")])
    KEPT.save(path, [made("resnet8"), made(shape=(3, 64, 64))])
    kept = KEPT.save(path, [made(ms=7.0)])
    keys = [(each.host.device, each.network, each.shape[1], each.way) for each in kept]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys) == 5
    assert [each.timings[0].ms.median for each in kept] == [
        2.0 if key[1:] != ("resnet20", 32, "eager") or key[0] == "b" else 7.0 for key in keys
    ]
    assert KEPT.load(path) == kept
    assert path.read_text() == KEPT.dump(kept)
    for bad in ("{", "[1]", KEPT.dump([made()]).replace('"eager"', '"telepathy"')):
        path.write_text(bad)
        with pytest.raises(UserError, match=r"holds no figures of kdbench latency \(.*: restore or remove it\.$"):
            KEPT.save(path, [made()])
        assert path.read_text() == bad


# ---- what is shown --------------------------------------------------------------------------------------------------

TWO = make_record("dml", 0, cost={"student_params": 556_648, "student_macs": 82_000_000}, info={"control": None})
"""Deploys two networks of the student's architecture."""


def test_a_student_is_known_by_its_name_and_its_size() -> None:
    figures = [made(), made(way="onnx"), made("resnet56", parameters=861_620, macs=126_000_000)]
    subjects = subjects_of(figures, [make_record("kd"), make_record("kd", 1), TWO])
    found = [
        (each.network, each.macs, each.input, each.data, sorted(way for _, way in each.times)) for each in subjects
    ]
    assert found == [
        ("resnet20", 41_000_000, "3×32×32", {"cifar100"}, ["eager", "onnx"]),
        ("resnet20", 82_000_000, "-", {"cifar100"}, []),
        ("resnet56", 126_000_000, "3×32×32", set(), ["eager"]),
    ]


def test_the_table_shows_counts_beside_times() -> None:
    slow = made(way="onnx", ms=1500.0, timings=made(ms=1500.0).model_dump()["timings"][:2])
    sheet = latency_sheet([made(device="b"), slow, made()], [make_record("kd"), TWO])
    assert sheet is not None
    text = markdown(sheet)
    lines = text.splitlines()
    place = lines.index("## a chip: latency of one input, ms")
    assert lines[place + 2 : place + 6] == [
        "| Network | Input | Data of its students | Parameters | MACs | eager, 1 thread | eager, 2 threads "
        "| onnx, 1 thread |",
        "|---|---|---|---:|---:|---:|---:|---:|",
        "| resnet20 | 3×32×32 | cifar100 | 278,324 | 41,000,000 | 2 (1 to 4) | 1 (0.5 to 2) | 1,500 (750 to 3,000) |",
        "| resnet20 | - | cifar100 | 556,648 | 82,000,000 | - | - | - |",
    ]
    # 64 inputs in 80 ms, in 40 with two threads
    assert "| 800 (400 to 1,600) | 1,600 (800 to 3,200) | 1.07 (0.533 to 2.13) |" in text
    assert "- Measured 2026-01-02 with kdbench 0.1.0, torch 2.6.0, linux (eager, onnx); load average up to 0.25" in text
    assert text.index("a chip: throughput in batches of 64, inputs/s") < text.index("b: latency of one input, ms")
    assert latency_sheet([], [make_record("kd")]) is None
    assert rows([made()], "a chip")[1] == [
        *("resnet20", "3×32×32", "278,324", "41,000,000", "eager, 2 threads"),
        *("1 (0.5 to 2)", "1,600 (800 to 3,200)"),
    ]


def test_a_gpu_has_no_threads() -> None:
    timings = [{"batch": batch, "threads": None, "ms": {"median": 1, "low": 1, "high": 1}} for batch in (1, 64)]
    sheet = latency_sheet([made(timings=timings)], [])
    assert sheet is not None
    assert "| MACs | eager |\n" in markdown(sheet)
    assert "| 41,000,000 | 64,000 (64,000 to 64,000) |" in markdown(sheet)


def test_a_report_has_the_table_of_a_store_in_every_format(tmp_path: Path) -> None:
    for record in (make_record("scratch"), make_record("kd"), TWO):
        Store(tmp_path).write(record)
    assert not any("latency" in name for name in generate(tmp_path))
    KEPT.save(tmp_path / FILE, [made(), made(way="onnx")])
    texts = generate(tmp_path)
    assert {"tables/latency.md", "tables/latency.csv", "tables/latency.tex"} <= texts.keys()
    assert (
        "- [Latency and throughput of the students, with parameters and MACs (md)](latency.md)"
        in (texts["tables/README.md"])
    )
    table = list(csv.DictReader(io.StringIO(texts["tables/latency.csv"])))
    assert len(table) == 2 * 4 + 1  # two ways by two batches and two numbers of threads, and what was not measured
    assert [(row["batch"], row["threads"], row["ms"], row["inputs_per_second"]) for row in table[:4]] == [
        ("1", "1", "2", "500"),
        ("64", "1", "80", "800"),
        ("1", "2", "1", "1000"),
        ("64", "2", "40", "1600"),
    ]
    assert (table[-1]["macs"], table[-1]["ms"], table[-1]["device"]) == ("82000000", "", "")
    assert r"\label{tab:latency-a-chip-ms}" in texts["tables/latency.tex"]
    # the tables that a run leaves behind are the store's own
    ids = {record.cell.id for record in Store(tmp_path).load()}
    print_tables(tmp_path, ids, verbose=False)
    assert check(tmp_path, generate(tmp_path, methods=methods())) == []
    # a part of the store is asked about its records
    assert not any("latency" in name for name in generate(tmp_path, {"method": "kd"}))
    records = [make_record("kd"), make_record("scratch")]
    assert render(records, ["md"], latencies=[made()]) == render(records[::-1], ["md"], latencies=[made()])


# ---- what is measured -----------------------------------------------------------------------------------------------

SPEC = DataSpec("random", (3, 32, 32), 10, 0, 0)
SMALL = Subject("resnet8x0.5", SPEC, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))


def test_a_network_is_measured_in_every_way_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    monkeypatch.setitem(sys.modules, "onnx", None)  # as without the extra
    before = torch.get_num_threads()
    found = measure(SMALL, CPU, 0.005, lambda text: None, notes.append)
    assert torch.get_num_threads() == before
    assert notes == ["onnx of resnet8x0.5 on random, as onnx needs onnx: pip install 'kdbench[export]' brings it."]
    assert [each.way for each in found] == ["eager", "channels-last"]
    for each in found:
        # 32x32 places of 3x3 convolutions from 3 to 8 and twice 8 to 8, and half as many of twice the channels, twice;
        # two 1x1 convolutions beside them, and 32 features to 10 classes
        blocks = 9 * 32**2 * (3 * 8 + 2 * 8 * 8) + 9 * 16**2 * (8 * 16 + 16**2) + 9 * 8**2 * (16 * 32 + 32**2)
        assert each.macs == blocks + 16**2 * 8 * 16 + 8**2 * 16 * 32 + 32 * 10
        assert (each.network, each.shape, each.outputs) == ("resnet8x0.5", (3, 32, 32), 10)
        assert each.host.versions["torch"] == torch.__version__
        ms = {(timing.threads, timing.batch): timing.ms for timing in each.timings}
        assert set(ms) == {(threads, batch) for threads in (1, before) for batch in (1, 64)}
        assert all(0 < each.low <= each.median <= each.high for each in ms.values())
        assert ms[1, 1].median < ms[1, 64].median  # several threads may have to wait for a busy processor


def test_every_way_answers_the_same(tmp_path: Path) -> None:
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name)
    small = Subject("resnet8x0.25", DataSpec("random", (1, 8, 8), 10, 0, 0), (0.5,), (0.2,))
    model, x = small.model(), torch.rand(5, 1, 8, 8)
    with torch.inference_mode():
        want = model.net((x - 0.5) / 0.2)
        for way in ways((1, 8, 8), CPU):
            with torch.inference_mode(False):
                make = prepared(way, small.name, model, x[:2], tmp_path)
            for threads in (1, 2):
                torch.testing.assert_close(make(threads)(x), want, rtol=1e-4, atol=1e-4)


def test_only_images_have_channels_and_exported_programs_run_on_the_cpu() -> None:
    assert ways((3, 8, 8), CPU) == ["eager", "channels-last", "onnx"]
    assert ways((4,), CPU) == ["eager", "onnx"]
    assert ways((3, 8, 8), torch.device("cuda")) == ["eager", "channels-last"]


def test_milliseconds_of_a_sleep() -> None:
    found = timed(lambda x: sleep(0.02), torch.zeros(1), 1, 0.02)
    assert 20 <= found.low <= found.median < 200


def test_activations_are_as_large_as_those_of_trained_networks() -> None:
    layers = [layer for _ in range(60) for layer in (nn.Linear(16, 16), nn.BatchNorm1d(16))]
    with torch.no_grad():
        for layer in layers[::2]:
            layer.weight *= 0.05  # type: ignore[operator]
    net = settled(nn.Sequential(*layers), (16,))
    assert 0.5 < net.eval()(torch.randn(256, 16)).std().item() < 2
    assert {layer.momentum for layer in layers[1::2]} == {0.1}


@pytest.mark.gpu
def test_a_gpu_is_measured_too() -> None:
    (device,) = bench.devices("cuda")
    found = measure(SMALL, device, 0.01, lambda text: None, pytest.fail)
    assert [each.way for each in found] == ["eager", "channels-last"]
    assert {each.host.device for each in found} == {torch.cuda.get_device_name(device)}
    assert {timing.threads for each in found for timing in each.timings} == {None}


# ---- the command ----------------------------------------------------------------------------------------------------

BAD = {
    "--networks resnet8,resnet9 --dataset digits": ["unknown network 'resnet9'"],
    "--networks resnet8 --dataset digit": ["no data set 'digit'", "did you mean", "digits"],
    "--networks resnet8 --dataset mnist": ["mnist", "kdbench data prepare mnist"],
    "--networks fpn-resnet8 --dataset digits": ["fpn-resnet8 is no network for classification"],
    "--networks resnet8,,vgg8 --pair resnet56-resnet20": ["--networks", "--pair", "drop one"],
    "--networks ,": ["no network was chosen"],
    "--pair resnet56-resnet21": ["no pair 'resnet56-resnet21'", "did you mean"],
    "--results empty": ["has no records"],
    "--results bad": ["latency.json", "no figures of kdbench latency"],
    "--seconds 0": ["--seconds 0", "--seconds 0.5"],
    "--seconds soon": ["--seconds soon"],
    "--seconds nan": ["--seconds nan"],
}


@pytest.mark.parametrize("args", BAD)
def test_bad_input_is_told_in_one_sentence(kd: Kdbench, monkeypatch: pytest.MonkeyPatch, args: str) -> None:
    monkeypatch.setenv("KDBENCH_DATA", str(kd.root / "nothing"))
    (kd.root / "bad").mkdir()
    (kd.root / "bad" / FILE).write_text("{}")
    one_sentence(kd("latency", *args.split(), "--device", "cpu"), *BAD[args])
    assert (kd.root / "bad" / FILE).read_text() == "{}"


def test_where_there_is_no_gpu_it_is_said(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    one_sentence(kd("latency", "--device", "cuda"), "no GPU", "--device cpu")


SIZE = {"student_params": 5142, "student_macs": 49_568}
DIGITS = {"config": {"dataset": {"name": "digits"}}, "cell": {"dataset": "digits", "student": "resnet8x0.25"}}


def test_the_students_of_a_store_are_measured_and_shown(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "WAYS", ("eager",))
    record = make_record("kd", cost=SIZE, **DIGITS)
    Store(kd.results).write(record)
    result = kd("latency", "--results", str(kd.results), "--seconds", "0.002", "--device", "cpu", "--json")
    assert result.code == 0, result
    (found,) = KEPT.load(kd.results / FILE)
    assert json.loads(result.out) == json.loads(KEPT.dump([found]))
    assert (found.network, found.shape, found.parameters, found.macs) == ("resnet8x0.25", (1, 8, 8), 5142, 49_568)
    assert kd("report").code == 0
    shown = (kd.results / "tables" / "latency.md").read_text(encoding="utf-8")
    assert "| resnet8x0.25 | 1×8×8 | digits | 5,142 | 49,568 | " in shown
    assert kd("report", "--check").code == 0


def test_what_a_method_deploys_beside_the_student_is_left_out(tmp_path: Path) -> None:
    notes: list[str] = []
    Store(tmp_path).write(make_record("kd", cost=SIZE, **DIGITS))
    Store(tmp_path).write(make_record("dml", cost={name: 2 * n for name, n in SIZE.items()}, **DIGITS))
    Store(tmp_path).write(make_record("kd", 1, config={"dataset": {"name": "gone"}}, cell={"dataset": "gone"}))
    (subject,) = bench.students(tmp_path, None, notes.append)
    assert (subject.name, parameters(subject.model().net)) == ("resnet8x0.25", 5142)
    assert [note.split(", as")[0] for note in notes] == ["resnet20 on gone", "what dml deploys on digits"]
