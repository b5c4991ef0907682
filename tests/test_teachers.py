"""Teachers: what is used is what was meant, or it is said in one sentence before anything is trained."""

from __future__ import annotations

import errno
import hashlib
import importlib
import json
import re
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import SMALL, Kdbench
from factories import make_record
from scipy.stats import binom
from test_cli import one_sentence
from test_grid import all_numbers
from torch import Tensor, nn

from kdbench import models
from kdbench.compute.route import Route
from kdbench.data.batch import DataSpec
from kdbench.data.datasets import Dataset, DatasetConfig, Split
from kdbench.data.embedded import digits
from kdbench.data.module import ArrayData
from kdbench.errors import UserError
from kdbench.paths import cache_dir, data_root
from kdbench.report import build_tables
from kdbench.results.stats import above_chance
from kdbench.teaching import view_cache
from kdbench.teaching.adapter import Adapted, Adapter
from kdbench.teaching.agreement import measure, tolerance
from kdbench.teaching.frozen import FrozenTeacher
from kdbench.teaching.teachers import Card, Teacher, Teachers, serialized, stem
from kdbench.teaching.view_cache import ViewCache

COMMITTED = sorted((Path(__file__).parents[1] / "results" / "teachers").glob("*.json"))
PLAIN = Route(fast=False, compiled=False, teacher_dtype=torch.float32, cached=False)
BF16 = Route(fast=True, compiled=False, teacher_dtype=torch.bfloat16, cached=False)
TRAINED = ("dataset.per_class=40", "protocol.epochs=2", "teacher.epochs=8")
"""The teacher knows its digits, the students do not yet."""


def recipe(name: str = "resnet8", seed: int = 0) -> dict[str, Any]:
    parts = {"method": {"_target_": "a.B"}, "dataset": {"name": "set"}, "protocol": {"name": "lite", "epochs": 1}}
    return {"name": name, "seed": seed, **parts}


def data(content: str = "a", classes: Sequence[str] = ("x", "y"), **changes: Any) -> Dataset:
    """A data set of three random grey images, known by `content`."""
    images = torch.randint(256, (3, 8, 8, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    split = Split(images, torch.arange(3) % len(classes))
    spec = DataSpec("set", (1, 8, 8), len(classes), 3, 3)
    known: dict[str, Any] = {"mean": (0.5,), "std": (0.25,), "pad": 0, "flip": False, "spec": spec, **changes}
    return Dataset(split, None, split, tuple(classes), content_hash=content * 64, **known)


def saved(teachers: Teachers, content: Dataset, value: float = 0.0, **changes: Any) -> Teacher:
    card: dict[str, Any] = {"accuracy": 50.0, "curve": [50.0], "device": "cpu", "torch": torch.__version__}
    return teachers.save(recipe(), content, {"w": torch.full((4,), value)}, **{**card, **changes})


@pytest.fixture
def teachers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Teachers:
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    return Teachers(tmp_path / "results")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*") if path.is_file()}


def prepared(root: Path, name: str, images: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> None:
    """A prepared data set of images (N, H, W, C): each second one is for the test."""
    folder = root / name
    folder.mkdir(parents=True)
    for split, part in (("train", slice(0, None, 2)), ("test", slice(1, None, 2))):
        np.save(folder / f"{split}_images.npy", images[part])
        np.save(folder / f"{split}_labels.npy", labels[part].astype(np.int64))
    (folder / "meta.json").write_text(json.dumps({"classes": list(classes), "source": "test"}))


def ramps(turned: bool = False, size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """160 noisy images of two classes: brighter to the right, or to the left; `turned`, to the bottom or the top."""
    rng = np.random.default_rng(int(turned))
    labels = np.arange(160) // 2 % 2
    x = np.tile(np.linspace(40, 210, size), (160, size, 1))
    x[labels == 1] = x[labels == 1][:, :, ::-1]
    images = (x.swapaxes(1, 2) if turned else x) + rng.normal(0, 12, (160, size, size))
    return images.clip(0, 255).astype(np.uint8)[..., None], labels


# ---- cards and files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_teachers_are_found_and_copied_byte_for_byte(path: Path, teachers: Teachers) -> None:
    raw = path.read_bytes()
    card = Card.parse(raw)
    assert stem(card.recipe) == path.stem
    assert (card.model_dump_json(indent=1) + "\n").encode() == raw
    stated = {name: tuple(value) for name in ("mean", "std") if (value := getattr(card, name)) is not None}
    classes = ("a", "b") if card.classes is None else tuple(card.classes)
    own = replace(data(), classes=classes, content_hash=card.dataset_sha256, **stated)
    teachers.cache.mkdir(parents=True)
    for kind in (".json", ".safetensors"):
        shutil.copy(path.with_suffix(kind), teachers.cache)
    found = teachers.find(card.recipe, own)
    assert found
    teachers.keep(found)
    assert files(teachers.kept) == files(teachers.cache)
    assert files(teachers.kept)[path.name] == raw


def test_a_card_is_sealed(teachers: Teachers) -> None:
    teacher = saved(teachers, data())
    path = teacher.weights.with_suffix(".json")
    fields = json.loads(path.read_bytes())
    assert fields["classes"] == ["x", "y"]
    assert (fields["mean"], fields["std"], fields["dataset_sha256"]) == ([0.5], [0.25], "a" * 64)
    seal = fields.pop("seal")
    text = json.dumps({**fields, "accuracy": 50}, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    text = text.replace("50.0", "50").replace(":0.0,", ":0,")
    assert seal == hashlib.sha256(text.encode()).hexdigest()
    for key, value in (("accuracy", 60.0), ("mean", [0.4]), ("dataset_sha256", "b" * 64), ("device", "other")):
        path.write_text(json.dumps({**fields, key: value, "seal": seal}))
        with pytest.raises(UserError, match="edited after it was written"):
            teachers.find(recipe(), data())
    path.write_text(json.dumps(fields))  # as an older one
    assert teachers.find(recipe(), data())


def test_other_data_under_one_recipe_have_a_teacher_of_their_own(teachers: Teachers) -> None:
    sets = [data("a"), data("b"), data("b", ("y", "x"))]
    found = [saved(teachers, each, value) for value, each in enumerate(sets)]
    assert found[0].weights.stem == stem(recipe())
    assert len({teacher.weights for teacher in found}) == 3
    for teacher, each in zip(found, sets, strict=True):
        again = teachers.find(recipe(), each)
        assert again == teacher
        teachers.keep(teacher)
        kept = teachers.find(recipe(), each)
        assert kept
        assert (kept.weights.parent, kept.card) == (teachers.kept, teacher.card)
    assert teachers.find(recipe(), data("c")) is None
    assert teachers.find(recipe(seed=1), sets[0]) is None
    assert teachers.known(recipe(), found[1].card.sha256)


def test_a_card_of_another_recipe_under_the_right_name_is_none(teachers: Teachers) -> None:
    teacher = saved(teachers, data())
    path = teacher.weights.with_suffix(".json")
    fields = json.loads(path.read_bytes())
    fields["recipe"]["protocol"]["epochs"] = 2
    del fields["seal"]
    path.write_text(json.dumps(fields))
    assert teachers.find(recipe(), data()) is None
    before = files(teachers.cache)
    other = saved(teachers, data(), 1.0)
    assert teachers.find(recipe(), data()) == other
    assert files(teachers.cache).items() >= before.items()


@pytest.mark.parametrize("left", ["", ".json", ".safetensors", "truncated"])
def test_a_store_gets_what_it_lacks_of_a_teacher(teachers: Teachers, left: str) -> None:
    teacher = saved(teachers, data())
    teachers.keep(teacher)
    whole = files(teachers.kept)
    for path in teachers.kept.iterdir():
        if left == "truncated" and path.suffix == ".safetensors":
            path.write_bytes(path.read_bytes()[:-1])
        elif left != "truncated" and path.suffix != left:
            path.unlink()
    found = teachers.find(recipe(), data())
    assert found
    teachers.keep(found)
    assert files(teachers.kept) == whole == files(teachers.cache)


def test_weights_without_a_card_are_never_overwritten(teachers: Teachers) -> None:
    teachers.kept.mkdir(parents=True)
    orphan = teachers.kept / f"{stem(recipe())}.safetensors"
    orphan.write_bytes(b"somebody's")
    teachers.keep(saved(teachers, data()))
    assert orphan.read_bytes() == b"somebody's"
    kept = teachers.find(recipe(), data())
    assert kept
    assert kept.weights.parent == teachers.kept


def test_any_number_of_processes_may_save_one_teacher(teachers: Teachers) -> None:
    """Equal or not: all are whole, and nothing half is left."""

    def save(value: int) -> Teacher:
        found = saved(teachers, data(), value % 4)
        teachers.keep(found)
        return found

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(save, range(64)))
    for teacher in found:
        teacher.check()
    assert teachers.find(recipe(), data()) in found
    for folder in (teachers.cache, teachers.kept):
        for card in folder.glob("*.json"):
            Teacher(Card.parse(card.read_bytes()), card.with_suffix(".safetensors")).check()
        assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}


def test_what_may_not_be_read_is_not_called_damaged(teachers: Teachers, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = saved(teachers, data())
    read = Path.read_bytes
    for path in (teacher.weights, teacher.weights.with_suffix(".json")):

        def refuse(self: Path, path: Path = path) -> bytes:
            if self == path:
                raise PermissionError(errno.EACCES, "Permission denied", str(self))
            return read(self)

        monkeypatch.setattr(Path, "read_bytes", refuse)
        with pytest.raises(UserError, match=r"you may not read .*chmod") as caught:
            teachers.find(recipe(), data())
        assert "delete" not in str(caught.value)
        assert "you may not read" in str(teachers.all()[0].wrong)


def test_a_folder_where_weights_should_be(teachers: Teachers) -> None:
    teacher = saved(teachers, data())
    teacher.weights.unlink()
    teacher.weights.mkdir()
    with pytest.raises(UserError, match=r"is a folder, .*move it away"):
        teachers.find(recipe(), data())


def test_weights_of_another_architecture(teachers: Teachers) -> None:
    with pytest.raises(UserError, match="does not hold a resnet8 of 2 classes"):
        saved(teachers, data()).load(data())


def test_teachers_are_listed_with_what_is_wrong(teachers: Teachers) -> None:
    saved(teachers, data())
    saved(teachers, data("b"), 1.0)
    teachers.keep(saved(teachers, data()))
    lone = teachers.kept / "lone.safetensors"
    lone.write_bytes(b"")
    (teachers.kept / "bad.json").write_text("{")
    shutil.copy(teachers.cache / f"{stem(recipe())}.json", teachers.cache / "renamed.json")
    shutil.copy(teachers.cache / f"{stem(recipe())}.safetensors", teachers.cache / "renamed.safetensors")
    path = next(path for path in teachers.cache.glob(f"{stem(recipe())}-*.safetensors"))
    path.write_bytes(path.read_bytes()[:-4])
    listed = {each.path.name: each.wrong for each in teachers.all()}
    assert listed.pop(f"{stem(recipe())}.safetensors") is None
    assert {name: str(wrong).split(": ")[0].rpartition(" ")[2] for name, wrong in listed.items()} == {
        "lone.safetensors": ".safetensors",
        "bad.safetensors": "card",
        "renamed.safetensors": "name",
        path.name: ".json",
    }


def test_other_code_of_the_teachers_method_is_told(alone: Kdbench) -> None:
    """Its code is what the parser sees: comments, docstrings and formatting are none."""
    kd = alone
    (kd.root / "ours.py").write_text(OURS)
    train = ("teacher", "train", *SMALL, "teacher.method._target_=ours.Ours")

    def told() -> bool:
        sys.modules.pop("ours", None)
        importlib.invalidate_caches()
        result = kd(*train)
        assert result.code == 0
        return "trained by other code of ours.Ours" in result.out

    assert not told()
    same = OURS.replace("* 2 * 0.5", "* 2\n        * (0.5)").replace('"""One."""', '"""Another."""  # and a comment')
    (kd.root / "ours.py").write_text(same)
    assert not told()
    (kd.root / "ours.py").write_text(same.replace("0.5", "0.75"))
    assert told()


OURS = '''
from methods.controls.scratch import Scratch


class Ours(Scratch):
    """One."""

    def losses(self, s, t, batch):
        return {"ce": super().losses(s, t, batch)["ce"] * 2 * 0.5}
'''


# ---- pixels and classes ---------------------------------------------------------------------------------------------


class Looking(nn.Module):
    """What a teacher sees, as taps: ``embed`` are the pixels, ``logits`` ten times the first pixels."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.head = nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return 10 * x.flatten(1)[:, : self.classes]

    def tap(self, x: Tensor, names: object = None) -> dict[str, Tensor]:
        return {"embed": x.flatten(1), "logits": self(x)}


def test_a_teacher_sees_pixels_as_it_learned_them() -> None:
    """(p - mean) / std of its own, whatever normalisation the student's batch has."""
    raw = torch.rand(5, 3, 8, 8, dtype=torch.float64)
    spec = DataSpec("set", (3, 8, 8), 2, 3, 3)
    student = data(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3), spec=spec)
    teacher = data(mean=(0.0, 0.1, 0.45), std=(1 / 255, 0.5, 0.3), spec=spec)
    fed, own = [
        (raw - torch.tensor(each.mean)[:, None, None]) / torch.tensor(each.std)[:, None, None]
        for each in (student, teacher)
    ]
    adapter = Adapter.between("t", teacher, student)
    net = adapter.wrap(Looking(2))
    x = fed.float().requires_grad_()
    seen = net.tap(x, ("embed",))["embed"]
    assert torch.allclose(seen.double(), own.flatten(1), rtol=1e-5, atol=1e-4)
    assert torch.equal(net(x), net.tap(x)["logits"])
    (slope,) = torch.autograd.grad(seen.sum(), x)
    ratio = torch.tensor([s / t for s, t in zip(student.std, teacher.std, strict=True)])
    assert torch.allclose(slope, ratio[:, None, None].expand_as(slope))


def test_logits_are_those_of_the_students_classes() -> None:
    teacher, student = data(classes=("a", "b", "c", "d")), data(classes=("d", "b"))
    net = Adapter.between("t", teacher, student).wrap(Looking(4))
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(net(x), 10 * x.flatten(1)[:, [3, 1]])
    assert torch.equal(net.tap(x, ("embed",))["embed"], x.flatten(1))


def test_where_teacher_and_student_agree_nothing_stands_between() -> None:
    net = Looking(2)
    same = data(mean=(0.5 + 1e-12,))
    assert Adapter.between("t", data(), same).wrap(net) is net


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        (data(spec=DataSpec("big", (1, 16, 16), 2, 3, 3)), ["16x16 in 1 channel (big)", "8x8 in 1 channel (set)"]),
        (data(spec=DataSpec("rgb", (3, 8, 8), 2, 3, 3)), ["8x8 in 3 channels (rgb)"]),
        (data(classes=("y", "z")), ["does not learn the class 'x'", "only 'y', 'z'", "null"]),
        (data(classes=("v", "w")), ["the classes 'x', 'y'"]),
    ],
)
def test_a_teacher_that_cannot_know_is_refused(teacher: Dataset, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        Adapter.between("t", teacher, data())
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_fast_teacher_sees_its_own_pixels_too() -> None:
    """Grey levels 0..255 from a student's normalised ones: the factors stay float32 where weights are bfloat16."""
    own = DatasetConfig(name="digits", mean=(0.0,), std=(1 / 255,)).build()
    fed = DatasetConfig(name="digits").build()
    torch.manual_seed(0)
    net = models.create("resnet8", own.spec.shape, 10).train()
    for batch in ArrayData(own, 64, 0).test_dataloader():
        net(batch.x)
    net.eval()
    wrapped = Adapter.between("t", own, fed).wrap(net)
    assert isinstance(wrapped, Adapted)
    frozen = FrozenTeacher(wrapped, own.spec.shape, BF16, 64)
    assert frozen.failed is None
    with torch.no_grad():
        want = torch.cat([net(batch.x) for batch in ArrayData(own, 64, 0).test_dataloader()])
        x = torch.cat([batch.x for batch in ArrayData(fed, 64, 0).test_dataloader()])
        plain, fast = frozen(x), frozen.tap(x, ())["logits"]
    assert float((plain - want).abs().max()) <= 1e-4 * float(want.abs().max())
    assert float((fast - want).abs().max()) <= 0.1 * float(want.abs().max())


# ---- the measure ----------------------------------------------------------------------------------------------------


def test_rounding_takes_no_side() -> None:
    assert [tolerance(n) for n in (0, 1, 9, 16, 100, 10_000)] == [0, 1, 9, 16, 40, 400]


class Twofold(FrozenTeacher):
    """Its fast self adds `offset` to the logits."""

    offset: Tensor

    def tap(self, x: Tensor, names: object = None) -> dict[str, Tensor]:
        return {"logits": self.plain(x) + self.offset}


def test_a_teacher_is_measured_as_it_is_fed() -> None:
    own = DatasetConfig(name="digits").build()
    torch.manual_seed(0)
    net = models.create("resnet8", own.spec.shape, 10)
    frozen = Twofold(net, own.spec.shape, PLAIN, 64)
    frozen.offset = torch.tensor([0.0] * 3 + [1000.0] + [0.0] * 6)  # now it always says 3
    found = measure(frozen, own, "32-true")
    x = torch.cat([batch.x for batch in ArrayData(own, 64, 0).test_dataloader()])
    with torch.no_grad():
        logits = net(x).double()
    says, truth = logits.argmax(1), own.test.labels
    assert found.n == 500
    assert int(found.right.sum()) == int((says == truth).sum())
    assert int(found.fed_right.sum()) == int((truth == 3).sum()) == 51
    assert int(found.turned.sum()) == int((says != 3).sum())
    agreement = found.agreement()
    assert agreement.images == 500
    assert agreement.top1_percent == pytest.approx(100 * int((says == 3).sum()) / 500)
    assert agreement.max_abs_logit == pytest.approx(1000, abs=0.1)
    top = logits.sort(1, descending=True).values
    margin = (top[:, 0] - top[:, 1]) / logits.abs().max(1).values
    assert found.near(0.05) == int((margin <= 0.1).sum()) > 0


# ---- as its users meet it -------------------------------------------------------------------------------------------


def test_a_teacher_of_other_data_does_not_teach(alone: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sets under one name, in two roots or one after the other: each has the numbers of an empty cache."""
    kd = alone
    for root, turned in (("one", False), ("two", True)):
        prepared(kd.root / root, "mine", *ramps(turned), ("rise", "fall"))
    command = ["run", "method=[scratch,kd]", "dataset=folder", "dataset.name=mine", "dataset.pad=0"]
    command += ["dataset.flip=false", "protocol.epochs=3", "protocol.batch_size=32"]
    for cache, roots in (("shared", ("one", "two")), ("empty", ("two",))):
        monkeypatch.setenv("KDBENCH_CACHE", str(kd.root / cache))
        for root in roots:
            assert kd(*command, f"dataset.root={root}", f"paths.results={cache}-{root}").code == 0
    two, right = (Kdbench(kd.root / name, kd.cache, kd._capfd) for name in ("shared-two", "empty-two"))
    (two.root / "results").symlink_to(two.root), (right.root / "results").symlink_to(right.root)
    assert all_numbers(two) == all_numbers(right)
    for record in two.records():
        if record.teacher:
            kept = [Card.parse(path.read_bytes()) for path in (two.root / "teachers").glob("*.json")]
            assert [(card.sha256, card.dataset_sha256) for card in kept] == [
                (record.teacher.sha256, record.dataset.sha256)
            ]
    # the first set is mended in place, under its own store
    monkeypatch.setenv("KDBENCH_CACHE", str(kd.root / "shared"))
    shutil.rmtree(kd.root / "one")
    prepared(kd.root / "one", "mine", *ramps(True), ("rise", "fall"))
    again = [*command, "dataset.root=one", "paths.results=shared-one"]
    assert "other data" in "".join(kd(*again).messages)
    assert kd(*again, "force=true").code == 0
    one = Kdbench(kd.root / "shared-one", kd.cache, kd._capfd)
    (one.root / "results").symlink_to(one.root)
    assert all_numbers(one) == all_numbers(right)
    assert len(list((one.root / "teachers").glob("*.json"))) == 2  # the old one is left where it lies


def test_a_teacher_of_other_pixels_or_class_order(kd: Kdbench) -> None:
    pixels = ("+teacher.dataset.mean=[0.0]", f"+teacher.dataset.std=[{1 / 255}]")
    order = ("dataset.classes=[0,1,2,3,4]", "+teacher.dataset.classes=[4,3,2,1,0]")
    assert kd.run("method=kd", *TRAINED, "engine.route=plain", *pixels, *order).code == 0
    teacher = kd.record("kd").teacher
    assert teacher
    (card,) = (kd.results / "teachers").glob("*.json")
    assert teacher.as_fed == teacher.accuracy == json.loads(card.read_text())["accuracy"] > 80


def test_a_teacher_may_know_more_classes(alone: Kdbench) -> None:
    """The accuracy in the record is that of five of its ten logits on the student's images."""
    kd = alone
    assert kd.run("method=[kd,dafl]", *TRAINED, "engine.route=plain", "dataset.classes=5", CLASSES).code == 0
    (path,) = (kd.cache / "teachers").glob("*.safetensors")
    arrays = digits()
    assert Card.parse(path.with_suffix(".json").read_bytes()).classes == arrays.classes
    net = models.create("resnet20", (1, 8, 8), 10).eval()
    net.load_state_dict(safetensors.torch.load_file(path))
    chosen = arrays.test_labels < 5
    pixels = arrays.train_images / 255
    x = (arrays.test_images[chosen] / 255 - pixels.mean()) / pixels.std()
    with torch.no_grad():
        says = net(torch.tensor(x, dtype=torch.float32).permute(0, 3, 1, 2))[:, :5].argmax(1)
    want = 100 * float((says.numpy() == arrays.test_labels[chosen]).mean())
    for name in ("kd", "dafl"):
        teacher = kd.record(name).teacher
        assert teacher
        assert teacher.accuracy == teacher.as_fed == pytest.approx(want)
    assert want > 80


CLASSES = "teacher.dataset={classes: null}"


def test_what_a_teacher_cannot_know_is_told_before_it_is_trained(alone: Kdbench) -> None:
    kd = alone
    few = kd.run("method=[kd,scratch]", "dataset.classes=[0,1]", "teacher.dataset={classes: [1,2,3]}")
    one_sentence(few, "failed: kd", "does not learn the class '0'", "teacher.dataset.classes")
    assert "training teacher" not in few.out
    assert [record.cell.method for record in kd.records()] == ["scratch"]
    prepared(kd.cache / "data", "big", *ramps(size=16), [str(k) for k in range(10)])
    big = kd.run("method=[kd]", "teacher.dataset={name: big, sha256: null}")
    one_sentence(big, "16x16", "8x8", "one size")
    assert "training" not in big.out
    assert not list(kd.cache.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("teacher.dataset={clases: null}", ["teacher.dataset.clases", "classes"]),
        ("+teacher.dataset.perclass=3", ["teacher.dataset.perclass"]),
        ("+teacher.dataset.root=x", ["teacher.dataset.root"]),
        ("teacher.dataset=3", ["teacher.dataset=3"]),
    ],
)
def test_a_wrong_key_in_the_teachers_data(kd: Kdbench, override: str, words: list[str]) -> None:
    one_sentence(kd.run("method=[kd]", override), *words)


def test_a_card_is_not_believed(alone: Kdbench) -> None:
    kd = alone
    kd("teacher", "train", *SMALL)
    (card,) = (kd.cache / "teachers").glob("*.json")
    good = json.loads(card.read_text())
    card.write_text(json.dumps({**good, "accuracy": 99.9}))
    one_sentence(kd.run("method=[kd]"), "was edited", "delete it")
    unsealed = {key: value for key, value in good.items() if key not in ("seal", "classes", "mean", "std")}
    for wrong in (99.9, good["accuracy"] + 1.0):
        card.write_text(json.dumps({**unsealed, "accuracy": wrong}))
        result = kd.run("method=[kd,scratch]", "engine.route=plain")
        one_sentence(result, "failed: kd", f"gets {good['accuracy']:.2f} %", f"says {wrong:.2f} %", "delete")
    assert [record.cell.method for record in kd.records()] == ["scratch"]
    card.write_text(json.dumps(unsealed))
    assert kd.run("method=[kd]").code == 0


def test_a_finished_store_gets_its_teacher(kd: Kdbench) -> None:
    assert kd.run("method=[kd]").code == 0
    folder = kd.results / "teachers"
    whole = files(folder)
    assert len(whole) == 2
    for name in whole:
        (folder / name).unlink()
        assert "1 already done" in kd.run("method=[kd]").out
        assert files(folder) == whole


@pytest.mark.parametrize("same", [True, False])
def test_a_teacher_that_finished_cells_learned_from_is_gone(
    alone: Kdbench, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    """Training it again may give other weights, and two teachers' students do not stand in one table."""
    kd = alone
    assert "any more" not in kd.run("method=[kd]").out
    was = kd.record("kd").teacher.sha256
    for folder in (kd.results, kd.cache):
        shutil.rmtree(folder / "teachers")
    if not same:
        monkeypatch.setattr(
            "kdbench.teaching.teachers.serialized",
            lambda state: serialized({name: value * (1 + 1e-6) for name, value in state.items()}),
        )
    told = kd.run("method=[kd,rkd]").out
    assert "1 already done" in told
    assert f"learned from ({was[:12]}) is not there any more and is trained again" in told
    now = kd.record("rkd").teacher.sha256
    assert (now == was) is same
    assert (f"came out with other weights ({now[:12]}, not {was[:12]})" in told) is not same


def test_a_teacher_with_nothing_to_teach_is_told(alone: Kdbench) -> None:
    kd = alone
    blind = "protocol.optimizer.lr=1e-9"
    trained = kd("teacher", "train", *SMALL, blind)
    assert "not above chance (10.00 %), sha256" in trained.out
    result = kd.run("method=[scratch,kd]", blind)
    assert result.code == 0
    summary = result.out[result.out.index("2 trained") :]
    (told,) = [line for line in summary.splitlines() if line.endswith("the teacher is not above chance (10.00 %).")]
    assert re.search(r", resnet20-resnet8x0\.25, lite, .*optimizer\.lr=1e-09", told)
    (table,) = (kd.results / "tables").glob("digits-resnet20-resnet8x0.25-lite-*.md")
    assert "), not above chance (10.00 %)." in table.read_text()


def test_a_teacher_below_its_student_is_told() -> None:
    alone: dict[str, Any] = {"teacher": None, "cell": {"teacher": None, "pair": "resnet20"}, "config": {"pair": None}}
    scratch = [make_record("scratch", seed, top1, **alone) for seed, top1 in enumerate((69.0, 70.0))]
    for accuracy, said in ((69.5, "not above the student from scratch (69.50 %)"), (69.51, None), (1.0, "chance")):
        (table,) = build_tables([*scratch, make_record("kd", 0, 70.0, teacher={"accuracy": accuracy})])
        assert (said or "None") in str(table.weak)
        assert ("not above" in table.header[0]) == ("not above" in table.trust) == bool(said)


def test_chance_is_binomial() -> None:
    for n, classes in ((500, 10), (40, 2), (10_000, 100)):
        least = next(k for k in range(n) if binom.cdf(k - 1, n, 1 / classes) > 0.95)
        assert above_chance(100 * least / n, n, classes)
        assert not above_chance(100 * (least - 1) / n, n, classes)


def test_names_in_a_list_of_teachers_are_inert(alone: Kdbench) -> None:
    teacher = saved(Teachers(alone.results), data())
    path = teacher.weights.with_suffix(".json")
    fields = json.loads(path.read_text())
    del fields["seal"]
    fields["recipe"]["name"] = "[red]a\x1b]0;b\x07[/x]"
    path.write_text(json.dumps(fields))
    (path.parent / "broken.json").write_text("no")
    listed = alone("teacher", "list")
    assert listed.code == 0
    assert "[red]a\\x1b]0;b\\x07[/x]" in listed.out
    assert "\x1b" not in listed.out + listed.err
    assert "no teacher's card" in listed.out


# ---- caches ---------------------------------------------------------------------------------------------------------


def test_a_cache_that_may_only_be_read_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(key: int = 0) -> ViewCache:
        return ViewCache.open(
            tmp_path / "views", {"k": key}, samples=3, pad=0, flip=False, widths={"logits": 2}, dtype=torch.float32
        )

    index, view = torch.tensor([0, 2]), torch.zeros(2, 3, dtype=torch.int64)
    values = {"logits": torch.tensor([[1.0, 2.0], [3.0, 4.0]])}
    opened().store(index[:1], view[:1], {"logits": values["logits"][:1]})

    def refuse(*args: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(view_cache, "FileLock", refuse)
    before = files(next((tmp_path / "views").glob("*/")))
    cache = opened()
    cache.store(index, view, values)
    known, found = cache.lookup(index, view)
    assert known.tolist() == [True, False]
    assert torch.equal(found["logits"][0], values["logits"][0])
    assert files(cache.folder) == before
    with pytest.raises(UserError, match=r"Read-only file system.*KDBENCH_CACHE"):
        opened(1)


def test_without_a_view_cache_the_numbers_are_the_same(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kd.run("method=[kd]").code == 0
    with_cache = all_numbers(kd)
    shutil.rmtree(kd.results)

    def refuse(*args: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(view_cache, "FileLock", refuse)
    monkeypatch.setattr(view_cache, "_wrong", refuse)
    result = kd.run("method=[kd]")
    assert result.code == 0
    assert "resnet20 goes without a view cache: " in result.out
    assert "not cached" in kd.record("kd").environment.path
    assert all_numbers(kd) == with_cache


def test_an_unwritable_cache_is_told_before_a_teacher_is_trained(alone: Kdbench) -> None:
    (alone.root / "cache").write_text("a file")
    result = alone.run("method=[kd]")
    one_sentence(result, "Cannot write to", "KDBENCH_CACHE")
    assert "training" not in result.out


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("KDBENCH_CACHE", "KDBENCH_DATA", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_dir() == tmp_path / ".cache" / "kdbench"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the specification says to ignore
    assert cache_dir() == tmp_path / ".cache" / "kdbench"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "kdbench"
    assert data_root() == tmp_path / "xdg" / "kdbench" / "data"
    monkeypatch.setenv("KDBENCH_CACHE", "~/own")
    assert cache_dir() == tmp_path / "own"
    for name, call in (("KDBENCH_CACHE", cache_dir), ("KDBENCH_DATA", data_root)):
        monkeypatch.setenv(name, "~nosuchuser/x")
        with pytest.raises(UserError, match=f"no home folder.*{name}"):
            call()
