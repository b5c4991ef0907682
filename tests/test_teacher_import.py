"""Weights from elsewhere that teach: found in their file, fitted to their network, measured as they are fed."""

from __future__ import annotations

import hashlib
import pickle
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from conftest import Kdbench
from factories import make_card
from test_cli import one_sentence, prepared
from torch import Tensor, nn

from kdbench import models
from kdbench.data.arrays import canonical_order, load
from kdbench.errors import UserError
from kdbench.teaching.brought import brought, fitted, state_in
from kdbench.teaching.teachers import Card, Teachers, stem

FLAT = """
from torch import nn


class Flat(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.body, self.fc = nn.Sequential(nn.Flatten(), nn.Linear(64, 64)), nn.Linear(64, num_classes)

    def forward(self, x):
        return self.fc(self.body(x))
"""
MEAN, STD = 0.5, 0.25
"""Of the pixels that the lab's network learned from."""


def solved() -> tuple[dict[str, Tensor], float]:
    """Weights of a `Flat` that solves digits by least squares, and the percentage of test images it gets right."""
    arrays = load("digits", None, None)

    def split(name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        images, labels = arrays.split(name)
        return (images.reshape(len(images), 64) / 255 - MEAN) / STD, labels

    x, y = split("train")
    design = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    solution = np.linalg.lstsq(design, np.eye(10)[y], rcond=None)[0]
    weights = {
        "body.1.weight": torch.eye(64),
        "body.1.bias": torch.zeros(64),
        "fc.weight": torch.tensor(solution[:-1].T, dtype=torch.float32),
        "fc.bias": torch.tensor(solution[-1], dtype=torch.float32),
    }
    x, y = split("test")
    right = (x @ solution[:-1] + solution[-1]).argmax(1) == y
    return weights, 100 * float(right.mean())


@pytest.fixture
def lab(alone: Kdbench) -> Kdbench:
    """A folder with a network of one's own, and its weights as a training script saves them."""
    (alone.root / "flat.py").write_text(FLAT)
    weights, _ = solved()
    state = {f"module.{key}": value for key, value in weights.items()}
    momentum = {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    torch.save({"epoch": 3, "model": state, "optimizer": momentum}, alone.root / "lab.pth")
    return alone


PIXELS = (f"teacher.dataset.mean=[{MEAN}]", f"teacher.dataset.std=[{STD}]")
OWN = ("pair.teacher=flat.Flat", "protocol.epochs=1")


def card(mine: Kdbench) -> Card:
    (found,) = [each.card for each in Teachers(mine.results, mine.cache).all() if each.card and each.card.origin]
    return found


def test_own_weights_teach_as_they_are(lab: Kdbench) -> None:
    alone, (_, want) = lab, solved()
    result = alone("teacher", "import", "lab.pth", *OWN, *PIXELS)
    assert result.code == 0, result
    known = card(alone)
    assert known.accuracy == pytest.approx(want)
    assert want > 85
    sha = hashlib.sha256((alone.root / "lab.pth").read_bytes()).hexdigest()
    assert known.origin
    assert (known.origin.source, known.origin.sha256) == ("lab.pth", sha)
    assert f"{want:.2f} %" in result.out
    assert "brought from lab.pth" in result.out
    assert known.sha256 in result.out
    assert "lab.pth" in alone("teacher", "list").out

    taught = alone.run("method=[scratch,kd]", f"teacher.weights={known.sha256[:10]}", "pair.student=resnet8x0.25")
    assert taught.code == 0
    assert "training teacher" not in taught.out
    record = alone.record("kd")
    assert record.teacher
    assert (record.teacher.sha256, record.teacher.origin) == (known.sha256, "lab.pth")
    assert record.teacher.accuracy == pytest.approx(want)
    assert record.teacher.as_fed == pytest.approx(want, abs=1.0)  # with the pixels it learned from, not the student's
    assert record.config["teacher"] == known.recipe
    assert record.config["teacher"]["weights"] == known.sha256
    assert record.cell.pair == "flat.Flat-resnet8x0.25"
    assert f"(sha256 {known.sha256[:12]}, brought from lab.pth)" in " ".join(taught.out.split())
    assert (alone.results / "teachers").is_dir()  # small: it goes with the records
    again = alone.run("method=kd", f"teacher.weights={known.sha256}", "pair.student=resnet8x0.25")
    assert "1 already done" in again.out

    command = next(line for line in alone("show", record.cell.id).out.splitlines() if line.startswith("command"))
    assert f"teacher.weights={known.sha256[:12]}" in command.replace("'", "").replace('"', "")
    assert "1 already done" in alone(*shlex.split(command)[2:]).out
    again = alone("reproduce", record.cell.id)
    assert (again.code, f"teacher: flat.Flat {known.sha256[:12]}, as recorded, from" in again.out) == (0, True)

    for path in [*(alone.cache / "teachers").glob("*-brought-*"), *(alone.results / "teachers").iterdir()]:
        path.unlink()
    gone = alone.run("method=kd", f"teacher.weights={known.sha256}", "pair.student=resnet8")
    one_sentence(gone, "there is no teacher with the weights", "kdbench teacher import")


def test_a_new_head_is_fine_tuned_from_the_weights(lab: Kdbench) -> None:
    weights, _ = solved()
    weights["fc.weight"], weights["fc.bias"] = torch.zeros(100, 64), torch.zeros(100)
    safetensors.torch.save_file(weights, lab.root / "wide.safetensors")
    command = ("teacher", "import", "wide.safetensors", *OWN, *PIXELS, "dataset.per_class=20")
    one_sentence(lab(*command), "has 100 outputs, and the data have 10 classes", "head=replace")
    still = (*command, "head=replace", "protocol.optimizer.lr=1e-12", "protocol.optimizer.weight_decay=0")
    result = lab(*still)
    assert "training teacher flat.Flat" in result.out, result
    (weights_file,) = (lab.cache / "teachers").glob("*.safetensors")
    state = safetensors.torch.load_file(weights_file)
    torch.testing.assert_close(state["net.body.1.weight"], torch.eye(64))
    assert state["net.fc.weight"].shape == (10, 64)
    assert state["net.fc.weight"].abs().max() > 0.01
    assert "training" not in lab(*still).out  # it is there
    assert lab.run("method=kd", f"teacher.weights={card(lab).sha256[:12]}").code == 0


def test_a_trial_and_a_pool_take_brought_teachers(lab: Kdbench) -> None:
    assert lab("teacher", "import", "lab.pth", *OWN, *PIXELS, "dataset.per_class=20").code == 0
    sha = f"teacher.weights={card(lab).sha256[:12]}"
    assert lab.run("method=kd", sha, "debug=fast").code == 0
    pool = lab.run("method=[average_kd]", sha, "teachers=[{name: resnet8}]")
    assert pool.code == 0, pool
    record = lab.record("average_kd")
    assert record.teacher
    assert record.teacher.origin == "lab.pth"
    assert [(other.name, other.origin) for other in record.others] == [("resnet8", None)]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("lab.pth",), "does not fit resnet20 (stem.0.weight, stem.1.weight, stem.1.bias and "),
        (("none.pth", *OWN), "there is no file none.pth"),
        ((".", *OWN), "is a folder"),
        (("lab.pth", *OWN, "head=new"), "write head=replace"),
        (("lab.pth", *OWN, "teacher.epochs=3"), "teacher.epochs says nothing of a teacher that is brought"),
        (("lab.pth", *OWN, "+teacher.checkpoint=x"), "there is no setting 'teacher.checkpoint'"),
        ((), "nothing to import"),
    ],
)
def test_a_bad_import_is_one_sentence(lab: Kdbench, args: tuple[str, ...], words: str) -> None:
    one_sentence(lab("teacher", "import", *args), words)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (("teacher.weights=abcdef12",), "there is no teacher with the weights abcdef12"),
        (("teacher.weights=12e45678",), "there is no teacher with the weights 12e45678"),  # no number
        (("teacher.weights=abc",), "teacher.weights='abc'"),
        (("+teacher.checkpoint=no_such_file.pth",), "there is no setting 'teacher.checkpoint'"),
        (("+epochs=50",), "there is no setting 'epochs'"),
    ],
)
def test_no_setting_of_a_teacher_goes_unread(kd: Kdbench, settings: tuple[str, ...], words: str) -> None:
    one_sentence(kd.run(*settings), words)


# ---- files -------------------------------------------------------------------------------------------------------


class Whole(nn.Linear):
    """A network that somebody saved whole."""


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("ran", "w"))


def test_no_file_runs_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.zeros(1)}, "x": Evil()}, "evil.pth")
    Path("raw.pth").write_bytes(pickle.dumps(Evil()))
    torch.save(Whole(2, 2), "whole.pth")
    for name, what in {"evil.pth": "open", "whole.pth": "Whole"}.items():
        with pytest.raises(UserError, match=rf"would run code when it is read \(.*{what}\).*net.state_dict"):
            brought(name)
    with pytest.raises(UserError):
        brought("raw.pth")
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("page.pth", b"\n<!DOCTYPE html><html>not found</html>", "is a web page"),
        ("page.safetensors", b"<html>", "is a web page"),
        ("lfs.pth", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        ("junk.pth", b"junk", "cannot be read as weights"),
        ("empty.pth", b"", "cannot be read as weights"),
        ("junk.safetensors", b"junk", "is no safetensors file"),
    ],
)
def test_files_that_are_no_weights(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        brought(str(tmp_path / name))
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_the_state_is_found_wherever_scripts_put_it() -> None:
    state = {"a.weight": torch.ones(1)}
    optimizer = {"state": {0: {"step": torch.zeros(1)}}}
    for content in (
        state,
        {"state_dict": state, "state_dict_ema": {"a.weight": torch.zeros(1)}, "best": torch.tensor(0.7)},
        {"model": {"net": state}, "optimizer": optimizer},
        {"teacher": state, "optimizer": optimizer, "epoch": 3},
    ):
        assert state_in(content, "x.pth") == state
    for content in ([state], {"epoch": 3}, {}):
        with pytest.raises(UserError, match=r"x.pth holds no weights by name"):
            state_in(content, "x.pth")


def test_weights_are_fitted_by_name() -> None:
    net = models.create("resnet8", (3, 8, 8), 10)
    state = net.state_dict()
    half = {f"module.backbone.{key}": value.half() for key, value in state.items() if "num_batches" not in key}
    got = fitted(half, net, "resnet8", "x.pth")
    assert got.keys() == {key for key in state if "num_batches" not in key}
    assert {value.dtype for value in got.values()} == {torch.float32}
    torch.testing.assert_close(got["head.weight"], state["head.weight"], rtol=1e-3, atol=1e-4)

    lacking = {f"module.{key}": value for key, value in state.items() if key != "head.bias"} | {
        "module.extra.weight": torch.zeros(1),
        "module.stem.0.weight": torch.zeros(5, 3, 3, 3),
    }
    with pytest.raises(UserError) as error:
        fitted(lacking, net, "resnet8", "x.pth")
    for words in ("head.bias missing", "extra.weight not known", "stem.0.weight of 5x3x3x3 where it has 16x3x3x3"):
        assert words in str(error.value)

    wide = state | {"head.weight": torch.zeros(1000, 64), "head.bias": torch.zeros(1000)}
    with pytest.raises(UserError, match=r"1000 outputs, and the data have 10 classes: head=replace"):
        fitted(wide, net, "resnet8", "x.pth")
    kept = fitted(wide, net, "resnet8", "x.pth", new_head=True)
    assert state.keys() - kept.keys() == {"head.weight", "head.bias"}


def test_a_hash_that_begins_several_is_refused(tmp_path: Path) -> None:
    teachers = Teachers(tmp_path / "results", tmp_path / "cache")
    teachers.kept.mkdir(parents=True)
    for k, name in enumerate(("resnet8", "resnet20")):
        recipe = {"name": name, "weights": f"{k}", "dataset": {"name": "digits"}}
        made = make_card(recipe, sha256="abcdef" + f"{k}" * 58)
        (teachers.kept / f"{name}.json").write_bytes(made.dump())
    assert teachers.of_hash("abcdef1", None).name == "resnet20"
    with pytest.raises(UserError, match=r"2 teachers have weights that begin with abcdef .*give more digits"):
        teachers.of_hash("abcdef", None)
    again = made.model_copy(update={"recipe": made.recipe | {"weights": "2"}, "seal": None})
    (teachers.kept / "again.json").write_bytes(again.dump())
    with pytest.raises(UserError) as error:  # of other settings, with the same outcome
        teachers.of_hash("abcdef1", "digits")
    assert "keep the card of one of them" in str(error.value)
    assert "more digits" not in str(error.value)
    assert all(stem(card.recipe) in str(error.value) for card in (made, again))


# ---- libraries ---------------------------------------------------------------------------------------------------


@pytest.fixture
def shuffle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """torchvision's weights, of which a server has a file; its own download code gets them from there."""
    from torchvision import models as zoo

    torch.manual_seed(0)
    net = zoo.shufflenet_v2_x0_5()
    torch.save(net.state_dict(), tmp_path / "net.pth")
    sha = hashlib.sha256((tmp_path / "net.pth").read_bytes()).hexdigest()
    (tmp_path / "net.pth").rename(tmp_path / f"net-{sha[:8]}.pth")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    weights = zoo.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1
    monkeypatch.setattr(weights.value, "url", (tmp_path / f"net-{sha[:8]}.pth").as_uri())
    return net.eval()


def test_torchvisions_weights_bring_their_pixels_and_size(
    alone: Kdbench, shuffle: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KDBENCH_DATA", str(alone.root / "data"))
    prepared(alone.root / "data", "tiny", n=20, size=32, classes=1000 // 250)
    arrays = load("tiny", None, None)
    found = brought("torchvision/shufflenet_v2_x0_5")
    assert (found.name, found.size) == ("torchvision/shufflenet_v2_x0_5", (224, 224))
    assert found.mean == (0.485, 0.456, 0.406)
    assert found.std == (0.229, 0.224, 0.225)
    assert found.origin.source == "torchvision/shufflenet_v2_x0_5.IMAGENET1K_V1"
    assert brought("torchvision/shufflenet_v2_x0_5.IMAGENET1K_V1@64").size == (64, 64)

    data = ("dataset=folder", "dataset.name=tiny", "protocol.epochs=1", "protocol.batch_size=10")
    name = "torchvision/shufflenet_v2_x0_5@64"
    one_sentence(alone("teacher", "import", name, *data), "1000 outputs, and the data have 4 classes")
    still = ("head=replace", "protocol.optimizer.lr=1e-12")
    result = alone("teacher", "import", name, *data, *still)
    assert result.code == 0, result
    known = card(alone)
    assert known.name == name
    assert known.recipe["dataset"]["mean"] == [0.485, 0.456, 0.406]
    (weights,) = (alone.cache / "teachers").glob("*.safetensors")
    state = {key.removeprefix("net.net."): value for key, value in safetensors.torch.load_file(weights).items()}
    for key, value in shuffle.state_dict().items():
        if "running" not in key and "num_batches" not in key and not key.startswith("fc"):
            torch.testing.assert_close(state[key], value)

    # as fed: resized, and normalised as ImageNet is
    index = canonical_order(arrays.digests["test"])
    images = torch.from_numpy(arrays.split("test")[0][index]).permute(0, 3, 1, 2) / 255
    x = (images - torch.tensor(found.mean).view(3, 1, 1)) / torch.tensor(found.std).view(3, 1, 1)
    shuffle.fc = nn.Linear(1024, 4)
    shuffle.load_state_dict(state)
    with torch.no_grad():
        logits = shuffle(F.interpolate(x, (64, 64), mode="bilinear", align_corners=False))
    right = (logits.argmax(1).numpy() == arrays.split("test")[1][index]).mean()
    assert known.accuracy == pytest.approx(100 * right)


def test_a_download_that_fails_is_one_sentence(shuffle: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.models import ShuffleNet_V2_X0_5_Weights as Weights

    url = Weights.DEFAULT.url
    monkeypatch.setattr(Weights.DEFAULT.value, "url", url.replace("net-", "net-0"))
    with pytest.raises(UserError, match=r"cannot be had \(URLError: .*\): see to the network, or put"):
        brought("torchvision/shufflenet_v2_x0_5").weights(3)
    path = Path(url.removeprefix("file://"))
    path.write_bytes(path.read_bytes() + b"0")
    monkeypatch.setattr(Weights.DEFAULT.value, "url", url)
    with pytest.raises(UserError, match="invalid hash value"):
        brought("torchvision/shufflenet_v2_x0_5").weights(3)


def test_timms_weights_come_by_its_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"the weights timm/test_resnet.r160_in1k cannot be had"):
        brought("timm/test_resnet").weights(3)
    net = timm.create_model("test_resnet")
    folder, revision = tmp_path / "models--timm--test_resnet.r160_in1k", "a" * 40
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(revision)
    (folder / "snapshots" / revision).mkdir(parents=True)
    safetensors.torch.save_file(net.state_dict(), folder / "snapshots" / revision / "model.safetensors")
    found = brought("timm/test_resnet.r160_in1k@32")
    assert (found.name, found.size, found.mean) == ("timm/test_resnet", (32, 32), (0.5, 0.5, 0.5))
    state, want = found.weights(3), net.state_dict()
    assert state.keys() == want.keys()
    assert all(torch.equal(state[key], value) for key, value in want.items())
    # of one channel: a grey image has the response of a grey one in colours
    grey = found.weights(1)["conv1.0.weight"]
    torch.testing.assert_close(grey, want["conv1.0.weight"].sum(1, keepdim=True))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("torchvision/resnet19", "torchvision has no network 'resnet19': did you mean resnet"),
        ("torchvision/resnet18.V9", "no weights 'V9' of resnet18: choose from IMAGENET1K_V1"),
        ("timm/resnet19", "timm has no network 'resnet19'"),
        ("timm/resnet18.mine", "timm has no weights resnet18.mine: choose from resnet18.a1_in1k"),
    ],
)
def test_what_a_library_does_not_have(source: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        brought(source)
    assert words in str(error.value)
