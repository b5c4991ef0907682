"""The command line: what it prints, how it exits, what it says to bad input."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import PACKAGES, SMALL, Kdbench, Result
from hydra import compose, initialize_config_dir

from kdbench.engine.cell import cells_of
from kdbench.engine.job import Job
from kdbench.paths import conf_dir
from kdbench.results.record import parse
from kdbench.taxonomy import load_taxonomy


def one_sentence(result: Result, *words: str, code: int = 1) -> str:
    """The one message of a command that failed, which holds all `words`."""
    assert result.code == code
    assert "Traceback" not in result.out + result.err
    assert len(result.messages) == 1, result.messages
    (message,) = result.messages
    assert re.match(r"(kdbench|failed|diverged|left out): \S.*", message)
    for word in words:
        assert word in message, message
    return message


# ---- one cell ---------------------------------------------------------------------------------------------------


def test_a_cell_is_trained_once(kd: Kdbench) -> None:
    first = kd.run("method=scratch")
    assert first.code == 0
    assert first.err == ""
    assert "1 trained, 0 already done, 0 failed" in first.out
    (path,) = (kd.results / "records").iterdir()
    text = path.read_text()
    record = parse(text)
    assert (record.status, record.cell.method, record.cell.seed) == ("finished", "scratch", 0)
    assert record.cost.images_seen == record.cost.student_forwards == 2 * 200
    assert record.cost.teacher_forwards == 0
    assert record.dataset.n_test == 500
    assert len(record.curves["loss/ce"]) == len(record.curves["test/top1"]) == 2

    again = kd.run("method=scratch")
    assert again.code == 0
    assert "0 trained, 1 already done" in again.out
    assert "training scratch" not in again.out
    assert path.read_text() == text

    assert "1 trained" in kd.run("method=scratch", "force=true").out
    (forced,) = kd.records()
    assert forced.metrics == record.metrics
    assert forced.curves == record.curves
    assert path.read_text() != text  # another time of day or duration at least
    assert not [path for path in (kd.work / "cells").iterdir() if path.is_dir()]
    assert not kd.leftovers()


def test_lists_of_methods_and_seeds_make_a_grid(kd: Kdbench) -> None:
    result = kd.run("method=[scratch,kd]", "seed=[0,1]")
    assert result.code == 0
    assert [(r.cell.method, r.cell.seed) for r in kd.records()] == [
        ("kd", 0),
        ("kd", 1),
        ("scratch", 0),
        ("scratch", 1),
    ]
    assert len({r.teacher.sha256 for r in kd.records() if r.teacher}) == 1
    assert (kd.results / "tables" / "README.md").exists()
    assert re.search(r"^ *scratch +2 ", result.out, re.M)


def test_hydra_sweep_is_one_grid(kd: Kdbench) -> None:
    result = kd.run("-m", "method=scratch", "seed=0,1")
    assert result.code == 0
    assert [r.cell.seed for r in kd.records()] == [0, 1]
    assert "2 trained, 0 already done, 0 failed" in result.out
    assert result.out.count("tables: ") == 1


def test_flags_may_stand_among_overrides(kd: Kdbench) -> None:
    assert kd("run", "method=scratch", "--cfg", "job", "seed=7").code == 0


def test_hydra_flags(kd: Kdbench) -> None:
    config = kd("run", "--cfg", "job", "method=[dkd]", "pair=resnet56-resnet20")
    assert config.code == 0
    assert "alpha: 1.0" in config.out
    assert "student: resnet20" in config.out
    assert "beta: 2.0" in config.out  # tuned for the pair
    assert "beta: 2.0" in kd("run", "--cfg=job", "method=[dkd]", "pair=resnet56-resnet20").out
    helped = kd("run", "--help")
    assert helped.code == 0
    assert "wrn-40-2-wrn-16-2" in helped.out
    assert "dkd" in helped.out
    info = kd("run", "--info", "searchpath")
    assert info.code == 0
    assert str(conf_dir()) in info.out.replace("\n", "")
    assert not kd.results.exists()  # nothing of this trains or writes


def test_general_flags(kd: Kdbench) -> None:
    assert kd("--version").out.startswith("kdbench ")
    helped = kd("--help")
    assert helped.code == 0
    for command in ("run", "methods", "teacher", "data", "report", "bench"):
        assert command in helped.out
        assert kd(command, "--help").code == 0
    assert kd().code != 0
    assert kd("nope").code != 0


# ---- every config composes --------------------------------------------------------------------------------------

GROUPS = ("pair", "protocol", "dataset", "logger")


@pytest.mark.parametrize(
    ("group", "choice"),
    [(group, path.stem) for group in GROUPS for path in sorted((conf_dir() / group).glob("*.yaml"))],
)
def test_every_config_gives_cells(group: str, choice: str) -> None:
    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        job = Job.of(compose("run", [f"{group}={choice}"]))
    cells = cells_of(job)
    assert len({cell.id for cell in cells}) == len(cells) == len(job.method) * len(set(job.seed)) > 0
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    if group == "dataset":
        assert cells[0].config["dataset"]["name"] == choice
        assert "root" not in cells[0].config["dataset"]


def test_all_methods_give_their_cells_in_one_job() -> None:
    names = sorted(path.stem for path in (conf_dir() / "method").glob("*.yaml"))
    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        cells = cells_of(Job.of(compose("run", [f"method=[{','.join(names)}]"])))
    assert [cell.name for cell in cells] == names
    assert len({cell.id for cell in cells}) == len(names)


@pytest.mark.parametrize("name", ["lite8", "digits60", "smoke8", "policy10"])
def test_a_protocol_that_only_an_experiment_names_is_explained(kd: Kdbench, name: str) -> None:
    message = one_sentence(kd("run", f"protocol={name}"), f"there is no protocol '{name}' by itself: experiment=")
    experiment, settings = message.rstrip(".").split(" makes it of ")
    given = yaml.safe_load(kd("run", *settings.split(), "--cfg", "job").out)["protocol"]
    there = yaml.safe_load(kd("run", experiment.partition(": ")[2].split()[-1], "--cfg", "job").out)["protocol"]
    assert given == there
    assert given["name"] == name


def test_scratch_is_one_cell_for_all_teachers(kd: Kdbench) -> None:
    kd.run("method=scratch", "pair=resnet20-resnet8x0.25")
    result = kd.run("method=scratch", "pair.teacher=resnet56", "pair.student=resnet8x0.25")
    assert "0 trained, 1 already done" in result.out


# ---- bad input --------------------------------------------------------------------------------------------------

BAD = {
    "method=kdd": ["no method 'kdd'", "did you mean kd"],
    "method=[scratch,nope]": ["no method 'nope'", "kdbench methods shows them all"],
    "method=[]": ["no method", "method=[scratch,kd]"],
    "pair=resnet56-resnet21": ["no pair", "resnet56-resnet20"],
    "dataset=cifar": ["no dataset 'cifar'", "cifar10"],
    "protocol=crd": ["no protocol 'crd'", "crd240"],
    "logger=nope": ["no logger 'nope'", "csv"],
    "logger=null": ["~logger"],
    "hydra/launcher=nope": ["hydra/launcher", "basic"],
    "method@teacher.method=at": ["nothing is chosen at 'method@teacher.method'", "write +method@teacher.method=NAME"],
    "sede=1": ["no setting 'sede'", "seed"],
    "precision=16-mixed": ["no setting 'precision'", "protocol.precision"],
    "protocol.epoch=1": ["no setting 'protocol.epoch'", "protocol.epochs"],
    "+protocol.foo=1": ["protocol.foo"],
    "seed=-1": ["seed=-1", "seed=[0,1,2]"],
    "seed=x": ["seed=x", "seed=[0,1,2]"],
    "seed=true": ["seed=True", "seed=[0,1,2]"],
    "seed=[]": ["seed=[]", "seed=[0,1,2]"],
    "seed=0,1": ["seed=[0,1]", "-m"],
    "seed=[": ["write 'seed=[]'"],
    "force=perhaps": ["force='perhaps'"],
    "checkpoint_seconds=soon": ["checkpoint_seconds='soon'"],
    "paths.results=null": ["paths.results=None"],
    "~pair": ["lacks 'pair'"],
    "protocol.epochs=0": ["protocol.epochs"],
    "protocol.schedule.kind=step": ["protocol.schedule.kind", "multistep"],
    "protocol.precision=8": ["protocol.precision", "32-true"],
    "~protocol.optimizer.lr": ["protocol.optimizer", "lr"],
    "+protocol.optimizer.foo=1": ["protocol.optimizer", "foo"],
    "protocol.optimizer.lr=-1": ["protocol.optimizer", "-1"],
    "protocol.optimizer._target_=torch.optim.Nope": ["protocol.optimizer", "torch.optim.Nope"],
    "dataset.per_class=abc": ["dataset.per_class", "abc"],
    "dataset.val=100000": ["100000 images cannot be held out"],
    "pair.student=resnet21": ["unknown network 'resnet21'", "resnet20"],
    "pair.student=3": ["pair.student=3"],
    "teacher.sha256=abc": ["teacher.sha256='abc'"],
    "teacher.epochs=0": ["teacher.epochs=0"],
    "teacher.seed=x": ["teacher.seed='x'"],
    "teacher.method._target_=nope.X": ["nope.X", "PYTHONPATH"],
    "+method.scratch.foo=1": ["'foo'", "method.scratch"],
    "+method.scratch.weights.foo=1": ["unknown weight 'foo'", "ce"],
    "method.scratch.weights.ce=abc": ["method.scratch.weights.ce='abc'"],
    "method.dkd.alpha=1": ["method 'dkd'", "method=[...]"],
    "method.scratch._target_=nope.X": ["cannot import nope.X", "PYTHONPATH"],
    "method.scratch._target_=collections.OrderedDict": ["not a kdbench.method.Method"],
    "trainer.accelerator=abacus": ["trainer", "abacus"],
    "+trainer.foo=1": ["trainer", "foo"],
    "+logger.foo=1": ["logger", "foo"],
    "dataset=cifar100": ["cifar100", "kdbench data prepare cifar100"],
}


@pytest.mark.parametrize("override", BAD)
def test_bad_input_is_told_in_one_sentence(kd: Kdbench, override: str) -> None:
    default = [] if override.startswith("method=") else ["method=scratch"]
    one_sentence(kd.run(*default, override), *BAD[override])
    assert not list(kd.results.rglob("*.json"))
    assert not kd.leftovers()


def test_unknown_experiment(kd: Kdbench) -> None:
    one_sentence(kd.run("method=scratch", "experiment=nope"), "no experiment 'nope'")


def test_settings_are_checked_against_annotations(kd: Kdbench) -> None:
    one_sentence(kd.run("method=[dml]", "method.dml.peers=two"), "method.dml.peers='two'", "integer")
    one_sentence(kd.run("method=[dml]", "method.dml.variant=both"), "method.dml.variant='both'", "alternating")


def test_two_exclusive_flags(kd: Kdbench) -> None:
    one_sentence(kd("run", "-m", "seed=0,1", "--info", "defaults"), "--info")


def test_missing_config_dir(kd: Kdbench) -> None:
    one_sentence(kd("run", "--config-dir", "nowhere"), "nowhere")
    one_sentence(kd("methods", "--config-dir", "nowhere"), "nowhere")


def test_a_sweep_tells_each_mistake_once_and_does_the_rest(kd: Kdbench) -> None:
    result = kd.run("-m", "method=scratch", "seed=0,1", "dataset.per_class=20,x")
    assert result.code == 1
    assert result.messages == [message for message in result.messages if "dataset.per_class" in message]
    assert len(result.messages) == 1
    assert [r.cell.seed for r in kd.records()] == [0, 1]


# ---- data sets --------------------------------------------------------------------------------------------------


def prepared(root: Path, name: str, n: int = 20, size: int = 32, channels: int = 3, classes: int = 4) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        np.save(folder / f"{split}_images.npy", rng.integers(0, 256, (n, size, size, channels), dtype=np.uint8))
        np.save(folder / f"{split}_labels.npy", np.arange(n, dtype=np.int64) % classes)
    (folder / "meta.json").write_text(json.dumps({"classes": [f"c{k}" for k in range(classes)], "source": "made"}))
    return folder


def test_corrupt_data(kd: Kdbench, tmp_path: Path) -> None:
    folder = prepared(tmp_path / "data", "cifar100")
    whole = (folder / "train_images.npy").read_bytes()
    (folder / "train_images.npy").write_bytes(whole[: len(whole) // 2])
    own = ("method=scratch", "dataset=cifar100", f"dataset.root={tmp_path / 'data'}", "dataset.sha256=null")
    one_sentence(kd.run(*own), "train_images.npy", "delete the folder")
    (folder / "train_images.npy").write_bytes(whole)
    one_sentence(kd.run(*own[:-1]), "content hash", "984f666cbed7")
    assert not list(kd.results.rglob("*.json"))


def test_a_record_made_under_other_class_names(kd: Kdbench, tmp_path: Path) -> None:
    folder = prepared(tmp_path, "mine", size=8)
    chosen = ["dataset=folder", "dataset.name=mine", f"dataset.root={tmp_path}", "dataset.classes=[c0,c2]"]
    command = ["run", "method=scratch", "protocol.epochs=1", "protocol.batch_size=5", *chosen]
    assert kd(*command).code == 0
    names = [f"c{k}" for k in range(4)]
    assert kd.records()[0].dataset.classes == hashlib.sha256(json.dumps(names).encode()).hexdigest()
    assert kd(*command).code == 0
    (folder / "meta.json").write_text(json.dumps({"classes": names[::-1]}))  # c0 and c2 are other images now
    one_sentence(kd(*command), "had other names, or stood in another order", "force=true")


def test_resnet20_costs_what_the_field_says(kd: Kdbench, tmp_path: Path) -> None:
    prepared(tmp_path / "data", "cifar100", n=100, classes=100)
    # not from the shared settings: one epoch is enough
    own = ["method=scratch", "pair=resnet56-resnet20", "dataset=cifar100", "dataset.sha256=null", "protocol.epochs=1"]
    assert kd("run", *own, f"dataset.root={tmp_path / 'data'}").code == 0
    (record,) = kd.records()
    # He et al. 2016 and akamaster/pytorch_resnet_cifar10 count 0.27 M parameters and 40.8 M multiply-accumulates
    assert record.cost.student_macs == pytest.approx(40.8e6, rel=0.01)
    assert record.cost.student_params == pytest.approx(0.27e6, rel=0.04)
    assert record.cost.extra_params == 0


def test_data_commands(kd: Kdbench, tmp_path: Path) -> None:
    listed = kd("data", "list", "--root", str(tmp_path))
    assert listed.code == 0
    assert re.search(r"digits .* embedded .* 1297 .* 500 .* 8x8x1 .* 10 ", listed.out)
    assert re.search(r"cifar100 .* missing ", listed.out)
    assert "digits: verified; 1297 training and 500 test images" in kd("data", "verify", "digits").out
    one_sentence(kd("data", "verify", "cifar100", "--root", str(tmp_path)), "kdbench data prepare cifar100")
    one_sentence(kd("data", "prepare", "nope", "--root", str(tmp_path)), "unknown data set 'nope'")
    folder = prepared(tmp_path, "mine")
    assert "mine: intact" in kd("data", "verify", "mine", "--root", str(tmp_path)).out
    (folder / "meta.json").write_text("{")
    assert re.search(r"corrupt: .*meta.json.*delete the folder", kd("data", "list", "--root", str(tmp_path)).out)


def test_a_folder_of_images_becomes_a_data_set(kd: Kdbench, tmp_path: Path) -> None:
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for k in range(10):
            pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{k}.png")
    one_sentence(kd("data", "prepare", "folder", "--root", str(tmp_path)), "--source")
    args = ["--source", str(tmp_path / "images"), "--size", "8", "--name", "pets", "--root", str(tmp_path)]
    made = kd("data", "prepare", "folder", *args)
    assert made.code == 0
    assert "pets: prepared" in made.out
    assert "16 training and 4 test images of 8x8x3, 2 classes" in made.out
    chosen = ["dataset=folder", "dataset.name=pets", f"dataset.root={tmp_path}", "dataset.pad=1"]
    assert kd("run", "method=scratch", "protocol.epochs=1", *chosen).code == 0
    assert kd.records()[0].cell.dataset == "pets"


# ---- methods, teachers, report ----------------------------------------------------------------------------------


def test_methods(kd: Kdbench) -> None:
    shown = kd("methods")
    assert shown.code == 0
    assert "logits/softened-labels" in shown.out
    assert "open: needs video clips" in shown.out
    assert re.search(r"── kd  KD  Knowledge distillation  \[classification, segmentation\]$", shown.out, re.M)
    assert re.search(
        r"── average_kd  AVG-KD  Averaged soft targets of several teachers  \[teachers\]$", shown.out, re.M
    )
    assert re.search(r"── rkd  RKD  Relational knowledge distillation$", shown.out, re.M)
    data = json.loads(kd("methods", "--json").out)
    leaves = [leaf["id"] for chapter in data["chapters"] for leaf in chapter["leaves"]]
    assert leaves == [leaf.id for leaf in load_taxonomy().leaves]
    numbers = [chapter["number"] for chapter in data["chapters"] if chapter["number"]]
    assert numbers == sorted(numbers)
    names = {path.stem for path in (conf_dir() / "method").glob("*.yaml")}
    on_leaves = {m["name"]: leaf["id"] for c in data["chapters"] for leaf in c["leaves"] for m in leaf["methods"]}
    assert set(on_leaves) == set(data["methods"]) == names
    assert on_leaves["kd"] == data["methods"]["kd"]["leaf"] == "logits/softened-labels"
    assert set(data["open"]) == set(leaves) - set(on_leaves.values())
    assert data["methods"]["kd"]["settings"]["temperature"] == 4.0


def test_teachers_are_listed_trained_and_pinned(alone: Kdbench) -> None:
    kd = alone
    assert "no teachers yet" in kd("teacher", "list").out
    trained = kd("teacher", "train", *SMALL)
    assert trained.code == 0
    sha = re.search(r"sha256 ([0-9a-f]{64})", trained.out)
    assert sha
    assert kd("teacher", "train", *SMALL).out == trained.out.partition("\n")[2]  # found, not trained again
    listed = kd("teacher", "list").out
    assert re.search(rf"resnet20 .* digits .* lite .* 2 .* 0 .* {sha[1][:12]} ", listed)
    assert kd.run("method=[kd]", f"teacher.sha256={sha[1]}").code == 0
    assert "training teacher" not in kd.run("method=[kd]", "seed=1").out
    other = "0" * 64
    one_sentence(kd.run("method=[kd]", f"teacher.sha256={other}", "seed=2"), sha[1][:12], "drop teacher.sha256")
    absent = kd.run("method=[kd]", f"teacher.sha256={other}", "teacher.seed=5")
    one_sentence(absent, "no teacher", "drop teacher.sha256")
    assert "training teacher" not in absent.out
    one_sentence(kd("teacher", "train", *SMALL, "pair.teacher=resnet21"), "unknown network 'resnet21'")


def test_report(kd: Kdbench, tmp_path: Path) -> None:
    one_sentence(kd("report"), "no records", "kdbench run")
    kd.run("method=scratch")
    before = {path.name: path.read_bytes() for path in (kd.results / "tables").iterdir()}
    result = kd("report", "--out", str(tmp_path / "elsewhere"))
    assert result.code == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "elsewhere" / "tables").iterdir()} == before
    assert (tmp_path / "elsewhere" / "leaderboard.html").read_bytes() == (kd.results / "leaderboard.html").read_bytes()
    assert len(result.out.splitlines()) == len(before) + 1


# ---- a method of one's own --------------------------------------------------------------------------------------

OWN_METHOD = '''
from torch import Tensor
from torch.nn.functional import cross_entropy

from kdbench.method import Method


class Mine(Method):
    """Squared difference of logits."""

    leaf = "logits/softened-labels"
    paper = ""
    title = "My idea"
    terms = ("ce", "mine")

    def __init__(self, power: float = 2.0, **kwargs):
        super().__init__(**kwargs)
        self.power = power

    def losses(self, s, t, batch):
        return {"ce": cross_entropy(s.logits, batch.y), "mine": ((s.logits - t.logits).abs() ** self.power).mean()}
'''
OWN_YAML = """# @package method.mine
_target_: own_method.Mine
power: 2.0
weights: {ce: 1.0, mine: 0.1}
search:
  power: choice(1,2)
"""


def test_a_method_of_ones_own_needs_no_registration(kd: Kdbench, tmp_path: Path) -> None:
    (tmp_path / "own_method.py").write_text(OWN_METHOD)  # found in the working directory
    (tmp_path / "own_conf" / "method").mkdir(parents=True)
    (tmp_path / "own_conf" / "method" / "mine.yaml").write_text(OWN_YAML)
    result = kd.run("--config-dir", "own_conf", "method=[scratch,mine]")
    assert result.code == 0
    record = kd.record("mine")
    assert record.method.cls == "own_method.Mine"
    assert record.config["method"] == {
        "name": "mine",
        "_target_": "own_method.Mine",
        "power": 2.0,
        "weights": {"ce": 1.0, "mine": 0.1},
    }
    assert set(record.curves) >= {"loss/ce", "loss/mine", "test/top1"}
    assert re.search(r"^ *mine +1 ", result.out, re.M)
    data = json.loads(kd("methods", "--json", "--config-dir", "own_conf").out)
    assert data["methods"]["mine"]["class"] == "own_method.Mine"
    assert data["methods"]["mine"]["search"] == {"power": "choice(1,2)"}
    assert "mine" not in json.loads(kd("methods", "--json").out)["methods"]
    near = kd.run("--config-dir", "own_conf", "method=[scratch,mien]")
    one_sentence(near, "did you mean mine")
    changed = kd.run("--config-dir", "own_conf", "method=[mine]", "method.mine.power=high")
    one_sentence(changed, "method.mine.power='high'")


# ---- loggers, output, imports -----------------------------------------------------------------------------------


def test_no_logger(kd: Kdbench) -> None:
    assert kd.run("method=scratch", "~logger").code == 0
    assert not (kd.work / "logs").exists()


def test_only_what_is_chosen_is_imported(kd: Kdbench) -> None:
    code = (
        "import sys; from kdbench.cli import main; assert not {'torch', 'hydra', 'pydantic'} & set(sys.modules); "
        "code = main(sys.argv[1:]); print('imported', sorted({'wandb', 'timm', 'tensorboard'} & set(sys.modules))); "
        "sys.exit(code)"
    )
    env = {**os.environ, "PYTHONPATH": str(PACKAGES), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, "run", *SMALL, "method=scratch", "logger=csv"]
    done = subprocess.run(command, cwd=kd.root, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.endswith("imported []\n")


def test_long_messages_are_not_wrapped(kd: Kdbench, tmp_path: Path) -> None:
    deep = tmp_path / ("a" * 60) / ("b" * 60)
    result = kd.run("method=scratch", f"paths.results={deep}")
    assert f"tables: {deep / 'tables'}\n" in result.out
    one_sentence(
        kd.run("method=scratch", f"paths.results={deep}", "dataset.val=1", "pair.student=resnet21"), "resnet21"
    )


def test_an_experiments_settings_for_methods_that_were_not_chosen_are_left_out(kd: Kdbench) -> None:
    command = ("run", "experiment=quickstart", "protocol.epochs=1", "seed=0", "paths.results=results")
    result = kd(*command, "method=[scratch,sp]")
    assert result.code == 0, result
    assert {record.config["method"]["name"] for record in kd.records()} == {"scratch", "sp"}
    (sp,) = (record.config["method"] for record in kd.records() if record.config["method"]["name"] == "sp")
    assert sp["weights"]["sp"] == 30.0  # the experiment's
    result = kd(*command, "method=[scratch,sp]", "method.dkd.beta=3")
    assert (result.code, result.out) == (1, "")
    assert "method.dkd.beta=3: method 'dkd' is not among those of method=[...], add it." in result.err
