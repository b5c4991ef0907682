"""`kdbench tune`: what it tries, by what it judges, how hard it tunes the control, and what it leaves behind."""

from __future__ import annotations

import csv
import importlib.util
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import yaml
from conftest import Kdbench, Result
from factories import make_record
from test_cli import one_sentence

from kdbench.cli.run import objective
from kdbench.cli.studies import Judged, Study, Trial
from kdbench.cli.tune import Arguments, control_for, drawn, is_drawn, ranges_of, size
from kdbench.data.batch import DataSpec
from kdbench.errors import UserError
from kdbench.measures import Measure
from kdbench.results.record import Record
from kdbench.results.store import Store

SHORT = ("protocol.epochs=1", "dataset.per_class=20", "dataset.val=300", "~logger")

optuna = pytest.mark.skipif(
    not importlib.util.find_spec("hydra_plugins.hydra_optuna_sweeper"), reason="pip install 'kdbench[search]'"
)


def tune(kd: Kdbench, *args: str) -> Result:
    return kd("tune", *SHORT, *args)


def trials(kd: Kdbench, method: str) -> list[dict[str, str]]:
    (file,) = (kd.work / "tune").glob(f"{method}-*.csv")
    return list(csv.DictReader(file.read_text().splitlines()))


def records(kd: Kdbench) -> dict[str, Record]:
    return {record.cell.id: record for record in Store(kd.work / "tune").load()}


def row(out: str, method: str) -> list[str]:
    (line,) = re.findall(rf"^│ {method} +│(.*)│$", out, re.M)
    return [cell.strip() for cell in line.split("│")]


# ---- a search ----------------------------------------------------------------------------------------------------


def test_small_ranges_are_searched_whole_and_each_setting_once(kd: Kdbench) -> None:
    given = ("method=[logits_mse,scratch]", "trials=4", "control=null", "seed=[0,1]", "write=myconf")
    result = tune(kd, *given)
    assert (result.code, result.err) == (0, "")
    tried, stored = trials(kd, "logits_mse"), records(kd)
    # the YAML's default, which is 1.0, and the others of choice(0.01,0.1,1.0)
    assert [float(each["weights.mimic"]) for each in tried] == [1.0, 0.01, 0.1]
    assert len(stored) == 2 * (3 + 1)
    for each in tried:
        ids = each["cells"].split()
        last = [stored[cell].curves["val/top1"][-1] for cell in ids]
        assert [stored[cell].cell.seed for cell in ids] == [0, 1]
        assert float(each["val top1"]) == pytest.approx(sum(last) / 2)  # type: ignore[arg-type]
        assert stored[ids[0]].config["method"]["weights"]["mimic"] == float(each["weights.mimic"])
    best = max(tried, key=lambda each: float(each["val top1"]))
    shown = f"weights.mimic={float(best['weights.mimic']):g}"
    if best is tried[0]:
        shown += " (default)"
    numbers = [f"{float(each['val top1']):.2f}" for each in (tried[0], best)]
    assert row(result.out, "logits_mse") == ["3", *numbers, shown]
    assert row(result.out, "scratch")[0::3] == ["1", "nothing to search for"]
    # nothing of it is among the user's results, and no accuracy on test images was printed
    assert not kd.results.exists()
    assert all("on validation images" in line for line in result.out.splitlines() if ", seed " in line and " %" in line)

    (file,) = (kd.root / "myconf").rglob("*.yaml")
    assert file.relative_to(kd.root).as_posix() == "myconf/pair/resnet20-resnet8x0.25-tuned.yaml"
    value = float(best["weights.mimic"])
    assert yaml.safe_load(file.read_text()) == {
        "teacher": "resnet20",
        "student": "resnet8x0.25",
        "tuned": {"logits_mse": {"weights": {"mimic": value}}},
    }
    assert "300 validation images, seeds 0, 1, of digits, protocol lite" in file.read_text()
    composed = kd("run", "--config-dir=myconf", "method=logits_mse", f"pair={file.stem}", "--cfg", "job")
    assert yaml.safe_load(composed.out)["method"]["logits_mse"]["weights"]["mimic"] == value

    # a second time nothing is trained, and no file of the user's replaced
    one_sentence(tune(kd, *given), f"{file.relative_to(kd.root)} is there already:")
    again = tune(kd, *given[:-1])
    assert again.code == 0
    assert "training" not in again.out
    assert row(again.out, "logits_mse") == row(result.out, "logits_mse")
    assert trials(kd, "logits_mse") == tried


@optuna
def test_optuna_gives_the_control_as_many_trials_and_the_same_ones_again(kd: Kdbench) -> None:
    given = ("method=dkd", "method.dkd.beta=interval(0.5,10.0)")
    result = tune(kd, *given, "trials=3")
    assert result.code == 0
    assert "kdbench" not in result.err
    tried = {method: trials(kd, method) for method in ("kd", "dkd")}
    for method, keys in {"kd": ("temperature", "weights.kd"), "dkd": ("beta",)}.items():
        found = [tuple(float(each[key]) for key in keys) for each in tried[method]]
        assert len({*found}) == len(found) == 3
        assert row(result.out, method)[0] == "3"
    assert tried["kd"][0]["temperature"] == "4.0"
    assert tried["dkd"][0]["beta"] == "8.0"
    # interrupted after some trials, it comes to the same ones; with more it goes on from there
    lost = {cell for method in tried for each in tried[method][2:] for cell in each["cells"].split()}
    for path in (kd.work / "tune" / "records").glob("*.json"):
        if path.stem.rpartition("-")[2] in lost:
            path.unlink()
    again = tune(kd, *given, "trials=3")
    assert len(re.findall("^training ", again.out, re.M)) == len(lost) == 2
    assert {method: trials(kd, method) for method in tried} == tried
    assert tune(kd, *given, "trials=4", "control=null").code == 0
    assert trials(kd, "dkd")[:3] == tried["dkd"]
    assert len(trials(kd, "dkd")) == 4


def test_what_diverges_is_worst_and_what_fails_costs_no_other(kd: Kdbench) -> None:
    ranges = ("method.rkd.weights.ce=choice(1e30,1.0)", "method.kd.temperature=choice(-1,2)")
    result = tune(kd, "method=[rkd,kd]", *ranges, "trials=3")  # kd is the control, too
    assert result.code == 1
    assert [each["val top1"] for each in trials(kd, "rkd")][1:] == ["diverged"]
    assert row(result.out, "rkd")[0::3] == ["2", "weights.ce=1 (default)"]
    assert "method.kd.temperature=-1.0: input should be greater than 0" in result.err
    assert [each["temperature"] for each in trials(kd, "kd")] == ["4.0", "2.0"]


def test_a_method_and_a_teacher_of_ones_own(kd: Kdbench) -> None:
    folder = kd.root / "myconf" / "method"
    folder.mkdir(parents=True)
    text = "# @package method.mine\n_target_: mine.Mine\nweights: {ce: 1.0, kd: 1.0}\n"
    text += "search: {weights.kd: 'choice(0,1)'}\n"
    (folder / "mine.yaml").write_text(text)
    (kd.root / "mine.py").write_text("from methods.logits.kd import KD\n\n\nclass Mine(KD):\n    title = 'Mine'\n")
    given = ("--config-dir=myconf", "method=mine", "trials=2", "control=null")
    # its YAML would not take up what is found
    one_sentence(tune(kd, *given, "write=myconf"), "myconf/method/mine.yaml", "weights.kd", "kd: ${tuned:1.0}")
    (folder / "mine.yaml").write_text(text.replace("kd: 1.0", "kd: '${tuned:1.0}'"))
    assert kd("teacher", "train", *SHORT).code == 0
    (kd.results / "teachers").mkdir(parents=True)
    for path in (kd.cache / "teachers").glob("*-lite-s0-*.*"):  # brought by hand, as another's are
        (kd.results / "teachers" / path.name).write_bytes(path.read_bytes())
    result = tune(kd, *given, "write=myconf")
    assert result.code == 0, result
    assert "training teacher" not in result.out
    assert [each["weights.kd"] for each in trials(kd, "mine")] == ["1.0", "0.0"]
    assert len([*(kd.root / "myconf" / "pair").iterdir()]) == 1


# ---- by what it judges -------------------------------------------------------------------------------------------


def blind(record: Record) -> Record:
    """A record without a word about test images."""
    curves = {name: curve for name, curve in record.curves.items() if not name.startswith("test/")}
    return record.model_copy(update={"curves": curves, "metrics": None, "correct": None})


def test_no_number_of_the_test_set_can_decide() -> None:
    known = make_record("kd", 0, 80.0)
    seen = known.model_copy(update={"curves": {**known.curves, "val/top1": [10.0, None, 61.5, None]}})
    assert objective([seen]) == objective([blind(seen)]) == 61.5
    # two seeds whose test accuracies say the opposite
    low = [make_record("kd", seed, 99.0) for seed in range(2)]
    low = [r.model_copy(update={"curves": {**r.curves, "val/top1": [50.0 + r.cell.seed]}}) for r in low]
    assert objective(low) == 50.5


@pytest.mark.parametrize(("measure", "worst"), [(Measure("top1"), 0.0), (Measure("RMSE", False, "m"), -math.inf)])
def test_one_seed_that_diverges_makes_a_trial_the_worst(measure: Measure, worst: float) -> None:
    class Cell:
        def __init__(self, status: str, last: float) -> None:
            self.status, self.measure, self.curves = status, measure, {f"val/{measure.name}": [last]}

    cells: Any = [Cell("finished", 3.0), Cell("diverged", math.nan)]
    assert objective(cells) == worst
    assert objective(cells[:1]) == (3.0 if measure.higher else -3.0)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("dataset.val=0",), ("must not look at the test images", "dataset.val=")),
        (("dataset=CartPole-v1", "pair=mlp-64-mlp-8", "protocol=policy"), ("CartPole-v1 cannot be searched on",)),
    ],
)
def test_without_validation_images_there_is_no_search(
    kd: Kdbench, args: tuple[str, ...], words: tuple[str, ...]
) -> None:
    if args[0].endswith("v1"):
        pytest.importorskip("gymnasium")
    one_sentence(kd("tune", "method=kd", *args), *words)
    assert not kd.work.exists()


@pytest.mark.parametrize(
    ("task", "control"),
    [
        ("classification", "kd"),
        ("segmentation", "kd"),
        ("class-incremental", "replay"),
        ("depth", "scratch"),
        ("policy", "policy_distillation"),
        ("gaussian-policy", "gaussian_policy_distillation"),
    ],
)
def test_the_control_is_that_of_the_task(task: str, control: str) -> None:
    assert control_for(DataSpec("any", (3, 8, 8), 10, 100, 100, task=task)) == control


def test_where_less_is_better_the_least_is_best() -> None:
    class Data(Judged):
        measure = Measure("AbsRel", False, "")  # type: ignore[assignment]

    reached = {0.5: 0.31, 1.0: 0.22, 2.0: 0.22, 4.0: None}
    merits = {value: None if error is None else -error for value, error in reached.items()}
    study = Study(
        "x", {"w": "choice(0.5,1,2,4)"}, [Trial(k, {"w": v}, (), m) for k, (v, m) in enumerate(merits.items())]
    )
    assert study.best.settings == {"w": 1.0}  # the earlier of two
    judged: Any = Data(None, None)  # type: ignore[arg-type]
    assert [judged.reached(trial, 2) for trial in study.trials] == ["0.31", "0.22", "0.22", "failed"]


# ---- what is asked for -------------------------------------------------------------------------------------------


class Job:
    def __init__(self, **settings: Any) -> None:
        self.method: Mapping[str, Any] = {"kd": settings}


SEARCH = {"temperature": "choice(1,2.5,4)", "weights.kd": "interval(0.1,1.0)"}


@pytest.mark.parametrize(
    ("args", "expected", "count"),
    [
        ((), {"temperature": "choice(1.0,2.5,4.0)", "weights.kd": "interval(0.1,1.0)"}, math.inf),
        (("method.kd.weights.kd=0.5",), {"temperature": "choice(1.0,2.5,4.0)"}, 3),
        (("method.kd.weights={ce: 1.0, kd: 0.5}",), {"temperature": "choice(1.0,2.5,4.0)"}, 3),
        (("method.kd.temperature=1,2",), {"temperature": "choice(1.0,2.0)"}, 2),
        (("method.kd.temperature=range(1,4)", "method.kd.mix=a,b"), {"temperature": "range(1,4)", "mix": "a,b"}, 6),
        (("method.other.temperature=1,2", "method.kd.temperature=4", "~method.kd.search"), None, None),
    ],
)
def test_where_it_looks(args: Sequence[str], expected: Mapping[str, str] | None, count: float | None) -> None:
    job: Any = Job(temperature=4.0, mix="a", weights={"ce": 0.1, "kd": 0.9}, search=SEARCH)
    found = ranges_of("kd", job, Arguments.of(args))
    if expected is None:
        assert found == {"weights.kd": "interval(0.1,1.0)"}
        return
    assert found == expected
    assert size(Study("kd", found)) == count


def test_of_choices_for_one_setting_some_are_drawn() -> None:
    study = Study("x", {"beta": "choice(0.5,1.0,2.0,4.0,8.0)"}, [Trial(0, {"beta": 8.0}, (), 1.0)])
    found = {}
    for n in (3, 4, 5):
        assert is_drawn(study, n)
        (span,) = drawn(study, n).values()
        found[n] = [float(value) for value in span.removeprefix("choice(").rstrip(")").split(",")]
    assert found[5] == [0.5, 1.0, 2.0, 4.0, 8.0]
    assert len(found[4]) == len({*found[4]} - {8.0}) == 3  # beside the default
    assert found[4][:2] == found[3]
    two = Study("x", {"a": "choice(1,2)", "b": "choice(1,2,3)"})
    assert [is_drawn(two, n) for n in (5, 6)] == [False, True]
    assert not is_drawn(Study("x", {"a": "interval(1,2)"}), 100)


@pytest.mark.parametrize(
    ("arg", "words"),
    [
        ("trials=1", "trials=1: give a whole number from 2"),
        ("trials=many", "trials=many: give a whole number"),
        ("control=[kd]", "name one method"),
        ("write=1", "write=1: name a folder"),
        ("-m", "is a sweep of its own: leave out -m"),
        ("tour=survey", "leave out tour=survey"),
        ("hydra.sweeper.n_trials=3", "trials=N"),
        ("seed=0,1", re.escape("write 'seed=[0,1]'")),
        ("protocol.optimizer.lr=0.1,0.2", "only settings of methods are searched"),
    ],
)
def test_what_cannot_be_asked_for(arg: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        _ = Arguments.of(["method=kd", arg]).options


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("control=kdd",), ("there is no method 'kdd': did you mean",)),
        (("method=scratch", "control=null"), ("nothing to search for", "choice(1,2,4)")),
        (("method.kd.temprature=1,2",), ("there is no setting 'method.kd.temprature' to search", "temperature?")),
        (("method.kd.search.temperature=7",), ("'7' is no range",)),
        (("debug=fast",), ("debug=fast is for kdbench run alone",)),
    ],
)
def test_what_cannot_be_done(kd: Kdbench, args: tuple[str, ...], words: tuple[str, ...]) -> None:
    one_sentence(kd("tune", "dataset.val=300", *args), *words)
    assert not list(kd.root.rglob("*.json"))


def test_hydras_flags(kd: Kdbench) -> None:
    assert "dkd:" in tune(kd, "method=dkd", "trials=2", "--cfg", "job").out
    assert not kd.work.exists()
