"""Kept students: the network that was judged, beside its record, and as files for other programs."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from conftest import Kdbench
from test_checkpoint import LONG, begun
from test_cli import one_sentence
from test_grid import numbers

import kdbench
from kdbench.data.arrays import canonical_order
from kdbench.data.embedded import digits
from kdbench.engine.students import Deployed, Students
from kdbench.errors import UserError
from kdbench.models import create
from kdbench.results.record import Record, parse

KEEP = "keep=student"


def pixels() -> torch.Tensor:
    """The test images of digits as any program would feed them; in the order of a record's examples."""
    data = digits()
    images = data.test_images[canonical_order(data.digests["test"])]
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def weights(kd: Kdbench, record: Record) -> Path:
    (path,) = (kd.results / "students").glob(f"*-{record.cell.id}.safetensors")
    return path


def kept(kd: Kdbench, *overrides: str) -> Record:
    assert kd.run("method=scratch", KEEP, *overrides).code == 0
    return kd.record("scratch")


@pytest.fixture(scope="module")
def trained() -> list[Path]:
    """A store with one kept student, once a test has trained it."""
    return []


@pytest.fixture
def student(kd: Kdbench, trained: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    if not trained:
        kept(kd)
        trained.append(shutil.copytree(kd.results, tmp_path_factory.mktemp("kept") / "results"))
    else:
        shutil.copytree(trained[0], kd.results)
    return kdbench.load_student(kd.record("scratch").cell.id)


# ---- kept -----------------------------------------------------------------------------------------------------------


def test_a_kept_student_is_the_network_of_its_record(kd: Kdbench) -> None:
    """In lockstep, of a method with peers too; and its record is the one of a run that keeps nothing."""
    chosen = "method=[scratch,kd,dml]"
    assert kd.run(chosen, KEEP).code == 0
    assert kd.run(chosen, "paths.results=plain").code == 0
    y = digits().test_labels[canonical_order(digits().digests["test"])]
    for record in kd.records():
        (bare,) = Path("plain/records").glob(f"*-{record.cell.id}.json")
        assert numbers(parse(bare.read_bytes())) == numbers(record)
        assert record.metrics
        model = kdbench.load_student(record.cell.id)
        assert not model.training
        with torch.no_grad():
            right = (model(pixels()).argmax(1).numpy() == y).mean()
        assert 100 * right == pytest.approx(record.metrics.last)
        raw = weights(kd, record).read_bytes()
        card = json.loads(weights(kd, record).with_suffix(".json").read_text())
        assert card["sha256"] == hashlib.sha256(raw).hexdigest()
        assert (card["cell"], card["accuracy"]) == (record.cell.id, record.metrics.last)
        assert card["classes"] == list("0123456789")
        assert safetensors.numpy.load(raw).keys() == create("resnet8x0.25", (1, 8, 8), 10).state_dict().keys()
    assert not Path("plain/students").exists()


def test_pixels_are_normalised_inside(student: Deployed) -> None:
    grey = digits().train_images / 255
    normalised = (pixels() - grey.mean()) / grey.std()
    with torch.no_grad():
        assert torch.allclose(student(pixels()), student.net(normalised.float()), atol=1e-4)
    assert student.net.tap(pixels()[:2], ("embed",))["embed"].shape == (2, 16)


def test_what_is_kept_after_a_kill_is_what_would_have_been(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = weights(kd, kept(kd, *LONG)).read_bytes()
    shutil.rmtree(kd.results)
    begun(kd, monkeypatch, "method=[scratch]", *LONG, KEEP)
    assert not Students(kd.results).all()
    assert weights(kd, kept(kd, *LONG)).read_bytes() == whole


def test_a_finished_cell_without_its_student_says_how_to_get_it(kd: Kdbench) -> None:
    assert kd.run("method=scratch").code == 0
    record = kd.record("scratch")
    again = kd.run("method=scratch", KEEP)
    assert again.code == 0
    assert "1 already done" in again.out
    assert (
        f"no student kept: scratch resnet8x0.25 digits seed 0 was trained without: kdbench reproduce {record.cell.id}"
        in again.out
    )
    with pytest.raises(UserError, match=f"was not kept when it was trained: kdbench reproduce {record.cell.id} trains"):
        kdbench.load_student(record.cell.id)
    assert kd.run("method=scratch", KEEP, "force=true").code == 0
    assert "no student kept" not in kd.run("method=scratch", KEEP).out
    kdbench.load_student(record.cell.id)
    assert kd.run("method=scratch", "force=true").code == 0  # another record, which has no student
    assert not Students(kd.results).all()


def test_git_does_not_see_them(kd: Kdbench, student: Deployed) -> None:
    subprocess.run(["git", "init", "-q", "."], check=True)
    seen = subprocess.run(["git", "status", "--porcelain", "-uall"], check=True, capture_output=True, text=True).stdout
    assert "results/records/" in seen
    assert "results/students/" not in seen


def test_what_cannot_be_made_again_is_told_before_it_is_trained(kd: Kdbench) -> None:
    Path("odd.py").write_text(
        "import torch\nfrom methods.controls.scratch import Scratch\n\n\n"
        "class Scaled(torch.nn.Module):\n    def __init__(self, net):\n        super().__init__()\n"
        "        self.net, self.scale = net, torch.rand(()).item()\n\n"
        "    def forward(self, x):\n        return self.scale * self.net(x)\n\n\n"
        "class Odd(Scratch):\n    control = None\n\n    def build(self, *specs):\n"
        "        torch.seed()\n        self.scaled = Scaled(self.student)\n\n"
        "    def deployed(self):\n        return self.scaled\n"
    )
    odd = ("method=[]", "+method.odd={_target_: odd.Odd}")
    message = one_sentence(kd.run(*odd, KEEP), "what Odd deploys cannot be made again", "leave it out")
    assert message.startswith("failed: odd")
    assert not kd.records()
    assert kd.run(*odd).code == 0


# ---- bad input ------------------------------------------------------------------------------------------------------


def test_what_is_no_student_is_one_sentence(kd: Kdbench, student: Deployed) -> None:
    record = kd.record("scratch")
    path, card = weights(kd, record), weights(kd, record).with_suffix(".json")
    one_sentence(kd("student", "export", "zzz"), "'zzz' is no cell's id")
    one_sentence(kd("student", "export", "0" * 16), "no cell in results/records has an id that begins with 0000")
    one_sentence(kd("student", "export", "none.safetensors"), "there is no file none.safetensors")
    text, raw = card.read_text(), path.read_bytes()
    card.write_text(text.replace('"bare": true', '"bare": false').replace('"bare":true', '"bare":false'))
    one_sentence(kd("student", "export", record.cell.id), "is no student's card any more: it was edited")
    assert "wrong: the card of" in kd("student", "list").out
    card.write_text(text)
    path.write_bytes(raw[:-1] + b"\1")
    one_sentence(kd("student", "export", record.cell.id), "does not match the sha256", "force=true keep=student")
    path.write_bytes(raw)
    card.unlink()
    one_sentence(kd("student", "export", record.cell.id), "the card of", "restore it")
    one_sentence(kd.run("method=scratch", "keep=teacher"), "keep='teacher'", "'student'")


def test_a_diverged_cell_has_no_student(kd: Kdbench) -> None:
    result = kd.run("method=scratch", KEEP, "protocol.optimizer.lr=1e8")
    assert result.code == 1
    record = kd.record("scratch")
    assert record.status == "diverged"
    assert not Students(kd.results).all()
    one_sentence(kd("student", "export", record.cell.id), "diverged", "so it has no student")
    assert "no student kept" not in kd.run("method=scratch", KEEP, "protocol.optimizer.lr=1e8").out


# ---- exported -------------------------------------------------------------------------------------------------------


def exported(kd: Kdbench, kind: str, *options: str) -> Path:
    cell = kd.record("scratch").cell
    result = kd("student", "export", cell.id, "--format", kind, *options)
    assert result.code == 0, result
    assert "on 16 random inputs" in result.out
    ending = {"safetensors": "safetensors", "onnx": "onnx", "torch.export": "pt2"}[kind]
    (path,) = kd.root.glob(f"*.{ending}")
    return path


def test_an_onnx_file_takes_pixels_in_batches_of_any_size(kd: Kdbench, student: Deployed) -> None:
    onnxruntime, onnx = pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    path = exported(kd, "onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for n in (1, 5, 100):
        (logits,) = session.run(None, {"pixels": pixels()[:n].numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(logits, student(pixels()[:n]), atol=1e-5)
    facts = {each.key: each.value for each in onnx.load(path).metadata_props}
    assert json.loads(facts["kdbench"])["classes"] == list("0123456789")


def test_a_torch_export_takes_pixels_in_batches_of_any_size(kd: Kdbench, student: Deployed) -> None:
    program = torch.export.load(exported(kd, "torch.export")).module()
    with torch.no_grad():
        for n in (1, 5):
            np.testing.assert_allclose(program(pixels()[:n]), student(pixels()[:n]), atol=1e-5)


def test_an_exported_file_of_weights_stands_alone(kd: Kdbench, student: Deployed, tmp_path: Path) -> None:
    path = exported(kd, "safetensors")
    elsewhere = shutil.move(path, tmp_path / "elsewhere.safetensors")
    shutil.rmtree(kd.results)
    again = kdbench.load_student(elsewhere)
    assert torch.equal(again(pixels()), student(pixels()))
    raw = bytearray(elsewhere.read_bytes())
    raw[-1] ^= 1
    elsewhere.write_bytes(raw)
    with pytest.raises(UserError, match="does not match the sha256"):
        kdbench.load_student(elsewhere)


def test_a_file_that_is_there_is_not_overwritten(kd: Kdbench, student: Deployed) -> None:
    Path("mine.onnx").write_text("mine")
    one_sentence(
        kd("student", "export", student.card.cell, "--out", "mine.onnx"), "mine.onnx is there already", "--out"
    )
    assert Path("mine.onnx").read_text() == "mine"


# ---- force ----------------------------------------------------------------------------------------------------------


def test_force_replaces_no_record_that_git_tracks_unasked(kd: Kdbench) -> None:
    assert kd.run("method=[scratch,ls]").code == 0
    git = ["git", "-c", "user.name=me", "-c", "user.email=me@example.org"]
    subprocess.run([*git, "init", "-q", "."], check=True)
    assert kd.run("method=scratch", "force=true").code == 0  # no record of git's yet
    before = {path: path.read_bytes() for path in (kd.results / "records").iterdir()}
    subprocess.run([*git, "add", "results/records"], check=True)
    subprocess.run([*git, "commit", "-qm", "records"], check=True)
    refused = kd.run("method=[scratch,ls]", "force=true")
    one_sentence(
        refused, "would replace 2 records that git tracks in results/records", "paths.results=DIR", "force=replace"
    )
    assert before == {path: path.read_bytes() for path in (kd.results / "records").iterdir()}
    assert kd.run("method=kd", "force=true").code == 0  # has no record
    assert kd.run("method=scratch", "force=true", "paths.results=other").code == 0
    assert "1 trained" in kd.run("method=scratch", "force=replace").out
    assert {path: path.read_bytes() for path in before} != before
