"""`kdbench bench`: its arithmetic, its reference loop, what it keeps and shows. Nothing here asserts a speed."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Kdbench
from test_cli import one_sentence

from kdbench.bench.contender import Engine, frozen_teacher, loop_cost, route_of
from kdbench.bench.measure import Way, _measured, engine_ways, ratios, step_flops
from kdbench.bench.peak import Kernel, Peaks, kernels
from kdbench.bench.reference import WARM, Images, Reference
from kdbench.bench.setting import Setting, make_setting, prepared
from kdbench.bench.worker import Worker
from kdbench.compute.route import Route
from kdbench.data.manifest import ImageFiles
from kdbench.data.views import apply_views
from kdbench.errors import UserError
from kdbench.report.benchmarks import benchmarks, spread
from kdbench.results import figures
from kdbench.results.figures import Figures, Spread

PAIR = "resnet20-resnet8x0.25"


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """A small pair on random images, as where nothing is prepared."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KDBENCH_DATA", str(tmp_path_factory.mktemp("empty")))
        chosen, _ = make_setting(PAIR, ["scratch", "kd", "at"])
        assert chosen.data_note == "20000 random images in the shape of cifar100"
        assert chosen.dataset.spec.shape == (3, 32, 32)
    return chosen


def made(device: str = "a chip", pair: str = PAIR, step: float = 100.0, **changes: Any) -> Figures:
    """Figures in which one cell takes `step` milliseconds and the reference 250."""
    way = {
        "methods": ["kd"],
        "precision": "32-true",
        "warmup_seconds": 12.3,
        "gflop": 20.0,
        "peak_percent": 40.0,
    }
    flat = {"median": 0.0, "low": 0.0, "high": 0.0}
    return Figures.model_validate(
        {
            "created": datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc),
            "pair": pair,
            "data": "cifar100, 50000 images",
            "batch_size": 64,
            "rounds": 5,
            "steps": 10,
            "quick": False,
            "machine": {
                "device": device,
                "processors": 2,
                "threads": 2,
                "load": 0.25,
                "platform": "linux",
                "python": "3.11.7",
                "torch": "2.6.0",
                "torchvision": "0.21.0",
                "lightning": "2.5.0",
                "kdbench": "0.1.0",
                "commit": None,
                "peak_gflops": {"float32": 200.0},
            },
            "references": [
                {**way, "name": "kd", "path": "reference", "step_ms": flat | {"median": 250.0}, "ratio": None},
            ],
            "engine": [
                {
                    **way,
                    "name": "kd alone",
                    "path": "fast",
                    "step_ms": {"median": step, "low": step - 1, "high": step + 2.5},
                    "ratio": {"median": 250 / step, "low": 2.0, "high": 3.0},
                    "profile": [{"operator": "aten::conv_2d", "percent": 61.5}],
                }
            ],
            "loop": {"student": "resnet8", "loop_ms": flat, "plain_ms": flat, "percent": flat | {"median": 3.25}},
            "memory": {"single": "kd", "single_mb": 1000.0, "cohort_mb": 1500.0, "ratio": 1.5},
            **changes,
        }
    )


# ---- arithmetic -------------------------------------------------------------------------------------------------


def test_a_spread_is_median_and_range() -> None:
    values = [float(v) for v in np.random.default_rng(0).lognormal(size=8)]
    found = Spread.of(values)
    assert found.median == pytest.approx(float(np.quantile(values, 0.5)), rel=1e-3)
    assert (found.low, found.high) == (pytest.approx(np.min(values), rel=1e-3), pytest.approx(np.max(values), rel=1e-3))
    assert Spread.of([123456.0]).median == 123500  # four digits
    assert spread(Spread(median=2.4149, low=0.99951, high=1234.56)) == "2.41 (1 to 1235)"


def test_ratios_are_formed_within_a_round() -> None:
    references, own = np.random.default_rng(1).uniform(1, 2, (3, 5)), np.random.default_rng(2).uniform(1, 2, 5)
    assert ratios(references.tolist(), own.tolist()) == pytest.approx((references.sum(0) / own).tolist())
    # a machine that is twice as slow in one round changes no ratio
    slow = np.array([1, 2, 1, 1, 1])
    assert ratios((references * slow).tolist(), (own * slow).tolist()) == pytest.approx(
        ratios(references.tolist(), own.tolist())
    )


def test_flops_of_a_step() -> None:
    setting, _ = make_setting("resnet56-resnet20", ["scratch", "kd"])
    # He et al. 2016 and akamaster/pytorch_resnet_cifar10: 40.8 M multiply-accumulates for resnet20, 125.7 M for
    # resnet56, which has 18 blocks more of two 3x3 convolutions of 32*32*16 outputs or as much (4.72 M)
    student, teacher = 2 * 64 * 40.8e6, 2 * 64 * 125.7e6
    close = lambda value: pytest.approx(value, rel=0.01)  # noqa: E731
    assert step_flops(setting, Way("", ["scratch"])) == {torch.float32: close(3 * student)}
    assert step_flops(setting, Way("", ["kd"])) == {torch.float32: close(3 * student + teacher)}
    route = Route(fast=True, compiled=False, teacher_dtype=torch.bfloat16, cached=False)
    both = step_flops(setting, Way("", ["scratch", "kd"]), route)
    assert both == {torch.float32: close(6 * student), torch.bfloat16: close(teacher)}
    low = step_flops(setting, Way("", ["kd"], "bf16-mixed"), route)
    assert low == {torch.bfloat16: close(3 * student + teacher)}
    assert step_flops(setting, Way("", ["kd"], cached=True), route) == {torch.float32: close(3 * student)}


class Timed(Kernel):
    """One whose speed in each turn is made up."""

    speeds: list[float]

    def speed(self, device: torch.device) -> float:
        return self.speeds.pop(0)


def timed(name: str, speeds: list[float]) -> Timed:
    kernel = Timed(name, 1, lambda: torch.empty(0))
    object.__setattr__(kernel, "speeds", speeds)
    return kernel


def test_no_way_passes_the_fastest_of_all_rounds() -> None:
    # the machine is busy in the first round, and its convolutions are faster than its products: 200, not 100 GFLOP/s
    several = [timed("product", [100e9, 160e9, 150e9]), timed("convolution", [90e9, 180e9, 200e9])]
    peaks = Peaks(torch.device("cpu"), {torch.float32: [*several]})
    way = Way("kd alone", ["kd"], times=[0.16, 0.12, 0.125])
    flops = {torch.float32: int(22e9)}
    seen = []
    for _ in range(3):
        peaks.turn()
        seen.append(_measured(way, "fast", None, flops, peaks, []).peak_percent)
    assert peaks.best[torch.float32] == (200e9, "convolution")
    # 22 GFLOP in 125 ms are 176 GFLOP/s
    assert seen == [176.0, 97.8, 88.0]


def test_a_peak_is_of_products_and_convolutions() -> None:
    peaks = Peaks.of(torch.device("cpu"), [torch.float32])
    named = {kernel.name: kernel for kernel in peaks.kernels[torch.float32]}
    assert named["matrix product of 512"].flops == 2 * 512 * 512 * 512
    # each of 16 x 128 x 16 x 16 outputs adds up 128 x 3 x 3 products
    assert named["3x3 convolution of 128 channels"].flops == 2 * (16 * 128 * 16 * 16) * (128 * 3 * 3)
    assert named["3x3 convolution of 128 channels"].run().shape == (16, 128, 16, 16)
    small = Kernel("small", 2 * 64**3, lambda: torch.mm(torch.ones(64, 64), torch.ones(64, 64)))
    assert 1e6 < small.speed(torch.device("cpu")) < 1e16
    assert len(list(kernels(torch.device("cpu"), torch.bfloat16))) == len(named)


def test_what_a_peak_is_stands_beside_it() -> None:
    old, new = made(), made()
    new = new.model_copy(update={"machine": new.machine.model_copy(update={"peak_kernels": {"float32": "a product"}})})
    assert "- The machine's peak, by its best matrix product: 200 GFLOP/s in float32\n" in benchmarks([old])
    assert "- The machine's peak, in the fastest operation of all rounds: 200 GFLOP/s in float32 (a product)\n" in (
        benchmarks([new])
    )
    assert "peak_kernels" not in figures.dump([old])
    assert "Above 100 %" not in benchmarks([old])
    (way,) = old.engine
    fast = old.model_copy(update={"engine": [way.model_copy(update={"peak_percent": 113.0})]})
    assert "- Above 100 % of peak (kd alone): the peak was measured while the machine did less" in benchmarks([fast])


def test_figures_of_old_runs_keep_their_bytes() -> None:
    path = Path(figures.__file__).parents[2] / "results" / figures.FILE
    assert figures.dump(figures.load(path)) == path.read_text(encoding="utf-8")


def test_a_cohort_of_logits_is_measured_with_the_cache_too() -> None:
    names = [[way.name for way in engine_ways(make_setting(PAIR, m)[0])] for m in (["kd", "dkd"], ["kd", "at"])]
    assert "cohort of 2, view cache warm" in names[0]
    assert "cohort of 2, view cache warm" not in names[1]


# ---- the reference loop -----------------------------------------------------------------------------------------


def test_the_reference_computes_the_papers_loss(setting: Setting) -> None:
    reference = Reference(setting, "kd")
    x, y = torch.randn(16, 3, 32, 32), torch.arange(16)
    loss, logits = reference.loss(x, y)
    assert reference.teacher is not None
    teacher = reference.teacher.eval()(x)
    soft = F.kl_div(F.log_softmax(logits / 4, 1), F.softmax(teacher / 4, 1), reduction="batchmean") * 16
    assert loss.item() == pytest.approx((0.1 * F.cross_entropy(logits, y) + 0.9 * soft).item(), rel=1e-5)
    assert not any(p.grad is not None or p.requires_grad for p in reference.teacher.parameters())


@pytest.mark.parametrize("name", ["scratch", "at"])
def test_the_reference_learns(setting: Setting, name: str) -> None:
    reference = Reference(setting, name)
    assert (reference.teacher is None) == (name == "scratch")
    torch.manual_seed(0)
    x, y = torch.randn(32, 3, 32, 32), torch.arange(32) % 4
    accuracies = [reference.step(x, y) for _ in range(25)]
    assert reference.losses[-1] < 0.7 * reference.losses[0]
    assert accuracies[-1] > 0.4


def test_the_reference_sees_views_of_its_images(setting: Setting) -> None:
    images = Images(setting.dataset)
    torch.manual_seed(0)
    x, y = images[7]
    assert y == int(setting.dataset.train.labels[7])
    dy, dx, flip = (grid.flatten() for grid in torch.meshgrid(*map(torch.arange, (9, 9, 2)), indexing="ij"))
    every = setting.dataset.train.images[7].expand(162, 32, 32, 3)
    views = apply_views(every, dy, dx, flip, 4, *map(torch.tensor, (setting.dataset.mean, setting.dataset.std)))
    assert (views - x).abs().amax((1, 2, 3)).min() < 1e-5
    assert not torch.equal(images[7][0], x)


# ---- the engine -------------------------------------------------------------------------------------------------


def test_a_cache_is_warm_after_one_turn(setting: Setting, tmp_path: Path) -> None:
    route = route_of(setting, cached=True, compiled=False)
    teacher = frozen_teacher(setting, route, tmp_path)
    engine = Engine(setting, ["kd"], "32-true", route, teacher, tmp_path)
    assert engine.turn(2) > 0
    assert (teacher.hits, teacher.misses) == (0, 64 * (WARM + 2))
    engine.turn(2)
    assert (teacher.hits, teacher.misses) == (64 * (WARM + 2), 64 * (WARM + 2))
    shares = engine.profile(1)
    assert any("conv" in share.operator for share in shares)
    assert 0 < sum(share.percent for share in shares) <= 100.5


def test_the_loops_cost_is_measured_on_whole_turns(setting: Setting, tmp_path: Path) -> None:
    route = route_of(setting, cached=False, compiled=False)
    cost = loop_cost(setting, route, 3, 2, tmp_path)
    assert len(cost.loop) == len(cost.plain) == 3
    assert min(cost.loop + cost.plain) > 0
    seen = 64 * (WARM + 3 * 2 + 3 * 2)  # the plain loop's steps are steps of the same method
    assert cost.method.forwards == {"student": seen, "teacher": 0}


# ---- what is kept and shown -------------------------------------------------------------------------------------


def test_the_latest_figures_of_a_device_and_pair_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "benchmarks.json"
    assert figures.load(path) == []
    figures.save(path, made("b", step=50.0))
    figures.save(path, made("a"))
    figures.save(path, made("b", pair="vgg13-vgg8"))
    kept = figures.save(path, made("b", step=40.0))
    assert [(run.machine.device, run.pair) for run in kept] == [("a", PAIR), ("b", PAIR), ("b", "vgg13-vgg8")]
    assert kept[1].engine[0].step_ms.median == 40.0
    assert figures.load(path) == kept
    for bad in ("{", "[1]", '[{"pair": 3}]'):
        path.write_text(bad)
        with pytest.raises(UserError, match=r"holds no figures of kdbench bench \(.*: restore or remove it\.$"):
            figures.load(path)


def test_the_page_shows_every_figure() -> None:
    text = benchmarks([made("chip <b>", step=80.0), made("abacus")])
    assert text == benchmarks([made("abacus"), made("chip <b>", step=80.0)])
    assert text.index("on abacus, 2 threads") < text.index(r"on chip \<b\>, 2 threads")
    assert "| kd alone | fast; 32-true | 80 (79 to 82.5) | 3.12 (2 to 3) | 40 | 12 |" in text
    assert "| kd | reference; 32-true | 250 (0 to 0) | - | 40 | 12 |" in text
    for words in (
        "5 rounds of 10 steps",
        "200 GFLOP/s in float32",
        "The training loop takes 3.25",
        "cohort of 1 1,500 MB, 1.50 times as much",
        "2026-01-02 03:04 UTC",
        "torch 2.6.0",
        r"aten::conv_2d 61.5 %",
        "Load average when it began: 0.25 on 2 processors",
    ):
        assert words in text, words


def test_a_report_keeps_the_page_up_to_date(kd: Kdbench) -> None:
    assert kd.run("method=scratch").code == 0
    figures.save(kd.results / "benchmarks.json", made())
    assert "missing" in kd("report", "--check").out
    assert kd("report").code == 0
    assert (kd.results / "benchmarks.md").read_text() == benchmarks([made()])
    assert kd("report", "--check").code == 0
    figures.save(kd.results / "benchmarks.json", made(step=70.0))
    assert re.search(r"stale: .*benchmarks\.md", kd("report", "--check").out)
    one_sentence(kd("report", "--check"), "1 file(s)")


# ---- large images -------------------------------------------------------------------------------------------------


def test_large_images_are_read_and_cropped_on_both_sides(tmp_path: Path) -> None:
    from test_streamed import photograph
    from torchvision.datasets import ImageFolder

    for split, n in (("train", 64 * (WARM + 1) // 2), ("test", 2)):
        for name in ("cat", "dog"):
            for i in range(n):
                photograph(tmp_path / "photos" / split / name / f"{i}.jpg", i % 7)
    with prepared(tmp_path / "photos") as root:
        usual, _ = make_setting(None, None, root)
        assert (usual.pair, len(usual.cohort)) == ("resnet34-resnet18", 4)
        assert usual.dataset.spec.shape == (3, 224, 224)
        assert usual.data_note == f"{64 * (WARM + 1)} large images, read by 2 processes and cropped to 224"
        assert {way.name for way in engine_ways(usual) if way.precision == "32-true"} == {
            "kd alone, live teacher",
            "cohort of 4, live teacher",
        }
        small, _ = make_setting(PAIR, ["kd", "at"], root, 32)
        assert small.dataset.workers == 2
        reference = Images(small.dataset)
        folder = ImageFolder(str(tmp_path / "photos" / "train"), reference.transform)
        files = small.dataset.train.images
        assert isinstance(files, ImageFiles)
        for i in (0, 5):
            k = [path for path, _ in folder.samples].index(str(files.path(i)))
            torch.manual_seed(i)
            want = folder[k]
            torch.manual_seed(i)
            got = reference[i]
            assert torch.equal(got[0], want[0])
            assert got[1] == want[1]
            assert got[0].shape == (3, 32, 32)
        assert Reference(small, "kd").turn(1) > 0
        route = route_of(small, cached=False, compiled=False)
        teacher = frozen_teacher(small, route, tmp_path / "views")
        assert Engine(small, ["kd", "at"], "32-true", route, teacher, tmp_path / "engine").turn(1) > 0
    assert not Path(root).exists()


def test_figures_need_not_have_the_cost_of_the_loop() -> None:
    assert "training loop takes" not in benchmarks([made(loop=None)])


# ---- the command ------------------------------------------------------------------------------------------------

BAD = {
    "--pair resnet56-resnet21": ["no pair 'resnet56-resnet21'", "did you mean", "resnet56-resnet20"],
    "--methods kd,kdd": ["no method 'kdd'", "did you mean"],
    "--methods ,": ["no method", "--methods scratch,kd"],
    "--methods scratch,dml": ["method 'dml'", "turns", "leave it out"],
    "--rounds 0": ["--rounds 0", "whole number"],
    "--rounds 1.5": ["--rounds 1.5", "whole number"],
    "--steps x": ["--steps x", "whole number"],
    "--steps -3": ["--steps -3", "whole number"],
    "--steps 1000": ["an epoch has 312 steps", "--steps up to 309"],
    "--out figures.txt": ["--out figures.txt", ".json"],
    "--quick --out b.json": ["--quick"],
    "--out taken.json": ["taken.md", "move it away"],
    "--out bad.json": ["bad.json", "no figures"],
    "--out bad.json/b.json": ["bad.json"],
    "--images nowhere": ["nowhere is no folder"],
    "--size 64": ["--size", "--images photos", "leave it out"],
    "--images nowhere --size x": ["--size x", "whole number"],
}


@pytest.mark.parametrize("args", BAD)
def test_bad_input_is_told_in_one_sentence(kd: Kdbench, monkeypatch: pytest.MonkeyPatch, args: str) -> None:
    monkeypatch.setenv("KDBENCH_DATA", str(kd.root / "nothing"))
    (kd.root / "taken.md").write_text("mine")
    (kd.root / "bad.json").write_text("{}")
    one_sentence(kd("bench", *args.split()), *BAD[args])
    assert (kd.root / "taken.md").read_text() == "mine"
    assert not list(kd.root.glob("b.json"))


def test_a_quick_bench(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KDBENCH_DATA", str(kd.root / "nothing"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    args = ["--quick", "--pair", PAIR, "--methods", "scratch,kd", "--rounds", "1", "--steps", "1", "--json"]
    result = kd("bench", *args)
    assert result.code == 0, result.err
    (found,) = json.loads(result.out)
    run = Figures.model_validate(found)
    assert (run.pair, run.rounds, run.steps, run.quick, run.memory) == (PAIR, 1, 1, True, None)
    assert [way.name for way in run.references] == ["kd", "scratch"]
    expected = [way.name for way in engine_ways(make_setting(PAIR, ["scratch", "kd"])[0])]
    assert [way.name for way in run.engine] == expected
    reference = {way.name: way.step_ms.median for way in run.references}
    for way in run.engine:
        assert way.ratio is not None
        want = sum(reference[name] for name in way.methods) / way.step_ms.median
        assert way.ratio.median == pytest.approx(want, rel=2e-3)
        assert "compiled" not in way.path
        assert way.peak_percent > 0
    assert not list(kd.root.iterdir())


@pytest.mark.slow
def test_a_process_of_its_own_measures_memory(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    own = torch.ones(2**31, dtype=torch.uint8)  # 2 GiB here must not count there
    with Worker(setting) as worker:
        assert 200 < worker.ask(what="peak", methods=["scratch", "kd"], steps=1) < 2000
    del own
    with pytest.raises(UserError, match="ended early"), Worker(setting) as worker:
        worker.ask(what="reference", method="nope", steps=1)
