"""Values tuned for a pair reach the methods: above a method's YAML, below an experiment and the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from conftest import Kdbench
from test_cli import one_sentence

from kdbench.registry import methods

PAIR = """
teacher: resnet20
student: resnet8
tuned:
  kd: {temperature: 20.0, weights: {kd: 0.5}}
  mine: {share: 0.75}
"""
EXPERIMENT = """
# @package _global_
defaults: [{override /method: [kd, at]}, {override /pair: own}]
method: {kd: {temperature: 8.0}}
"""
MINE = """
# @package method.mine
_target_: methods.logits.kd.KD
temperature: 4.0
share: ${tuned:0.25}
"""


@pytest.fixture
def conf(kd: Kdbench) -> Path:
    folder = kd.root / "myconf"
    for name, text in {"pair/own": PAIR, "experiment/own": EXPERIMENT, "method/mine": MINE}.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(text.lstrip())
    return folder


@pytest.mark.parametrize(
    ("given", "temperature", "weight"),
    [
        (("method=kd", "pair=resnet20-resnet8"), 4.0, 0.9),  # RepDistiller's, as the YAML says
        (("method=kd", "pair=own"), 20.0, 0.5),
        (("experiment=own",), 8.0, 0.5),
        (("experiment=own", "method.kd.temperature=2", "method.kd.weights.kd=0.25"), 2, 0.25),
        (("method=kd", "pair=own", "pair.tuned.kd.temperature=1.5"), 1.5, 0.5),
    ],
)
def test_who_overrides_whom(kd: Kdbench, conf: Path, given: tuple[str, ...], temperature: float, weight: float) -> None:
    composed = kd("run", f"--config-dir={conf}", *given, "--cfg", "job")
    settings = yaml.safe_load(composed.out)["method"]["kd"]
    assert (settings["temperature"], settings["weights"]["kd"]) == (temperature, weight)
    assert settings["weights"]["ce"] == 0.1


def test_a_method_of_ones_own_and_one_of_the_teachers(kd: Kdbench, conf: Path) -> None:
    given = (f"--config-dir={conf}", "method=mine", "pair=own", "teacher=assistant", "teacher.teacher.name=resnet56")
    config = yaml.safe_load(kd("run", *given, "--cfg", "job").out)
    assert config["method"]["mine"]["share"] == 0.75
    # what the teacher learned by is of another pair: resnet56 and resnet20
    assert config["teacher"]["method"]["temperature"] == 4.0
    (mine,) = [entry for entry in methods([conf]) if entry.name == "mine"]
    assert mine.settings["share"] == 0.25


@pytest.mark.parametrize("key", ["kd.weights.ce", "kd.temprature", "mine.temperature"])
def test_a_tuned_value_that_nothing_would_read_is_refused(kd: Kdbench, conf: Path, key: str) -> None:
    given = (f"--config-dir={conf}", "method=[kd,mine]", "pair=own", f"+pair.tuned.{key}=2")
    one_sentence(kd.run(*given), f"nothing would read pair.tuned.{key}:", "takes tuned values for")
    assert not kd.results.exists()
