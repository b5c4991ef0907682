"""Checkpoints: what is damaged or of anything else is told and begun anew, never gone on with."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL, Kdbench
from test_grid import numbers

from kdbench.engine import checkpoint, cohort, run
from kdbench.engine.checkpoint import MAGIC, Unusable, pack, unpack
from kdbench.engine.cohort import CHECKPOINT, Cohort, Member
from kdbench.errors import UserError
from kdbench.results.record import Record
from kdbench.results.store import Store

IDENTITY = {"cell": "0123456789abcdef", "data": "a" * 64, "teacher": None, "torch": "2.6"}
STATE: dict[str, Any] = {"weights": torch.arange(6.0), "curves": {"loss": [1.0, None]}, "seconds": 1.5}


def test_what_is_packed_is_unpacked(tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(pack(IDENTITY, STATE))
    state = unpack(tmp_path / "c", dict(reversed(IDENTITY.items())))
    assert torch.equal(state.pop("weights"), STATE["weights"])
    assert state == {"curves": {"loss": [1.0, None]}, "seconds": 1.5}
    with pytest.raises(FileNotFoundError):
        unpack(tmp_path / "none", IDENTITY)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"cell": "f" * 16}, "another cell (0123456789abcdef, now ffffffffffffffff)"),
        ({"data": "b" * 64}, "another data (aaaaaaaaaaaa, now bbbbbbbbbbbb)"),
        ({"teacher": "c" * 64}, "another teacher (none, now cccccccccccc)"),
        ({"torch": "2.7"}, "another torch (2.6, now 2.7)"),
        ({"code": "new"}, "another code (none, now new)"),
    ],
)
def test_what_is_of_another_training_is_refused(tmp_path: Path, changed: dict[str, Any], reason: str) -> None:
    (tmp_path / "c").write_bytes(pack(IDENTITY, STATE))
    with pytest.raises(Unusable) as error:
        unpack(tmp_path / "c", {**IDENTITY, **changed})
    assert str(error.value) == f"its checkpoint was made with {reason}"


def test_no_flipped_bit_and_no_cut_passes(tmp_path: Path) -> None:
    whole = pack(IDENTITY, STATE)
    rng = np.random.default_rng(0)
    for position in {*range(0, 300), *rng.integers(0, len(whole), 100).tolist(), len(whole) - 1}:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        (tmp_path / "c").write_bytes(damaged)
        with pytest.raises(Unusable, match="damaged"):
            unpack(tmp_path / "c", IDENTITY)
    for size in (0, 1, len(MAGIC), len(MAGIC) + 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "c").write_bytes(whole[:size])
        with pytest.raises(Unusable, match="damaged"):
            unpack(tmp_path / "c", IDENTITY)
    (tmp_path / "c").write_bytes(whole + b"\0")
    with pytest.raises(Unusable, match="damaged"):
        unpack(tmp_path / "c", IDENTITY)


def test_what_cannot_be_read_is_not_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    with pytest.raises(UserError, match=r"cannot be read \(Is a directory\): make it readable, or remove it"):
        unpack(tmp_path / "c", IDENTITY)


# ---- in the grid ------------------------------------------------------------------------------------------------


def begun(kd: Kdbench, monkeypatch: pytest.MonkeyPatch, *args: str, at: int = 2) -> dict[str, Path]:
    """Train until epoch `at` has its checkpoint, then stop as a kill would; the checkpoints by cell id."""
    with monkeypatch.context() as patch:
        save = Cohort.save

        def killed(self: Cohort) -> None:
            save(self)
            if self.epoch == at:
                raise KeyboardInterrupt

        patch.setattr(Cohort, "save", killed)
        result = kd.run(*args)
        assert result.code == 130, result
    return {path.parent.name: path for path in kd.work.glob(f"cells/{'?' * 16}/{CHECKPOINT}")}


LONG = ("protocol.epochs=4", "checkpoint_seconds=0")


def epochs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Fills with the epoch at which each member stands when its cohort begins."""
    stood: list[int] = []
    fit = run.fit

    def spy(members: list[Member], *args: Any, **kwargs: Any) -> Any:
        stood.extend(member.method.epoch for member in members)
        return fit(members, *args, **kwargs)

    monkeypatch.setattr(run, "fit", spy)
    return stood


def test_a_checkpoint_of_the_same_training_is_gone_on_with(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(kd, monkeypatch, "method=[scratch,ls]", *LONG)
    stood = epochs(monkeypatch)
    result = kd.run("method=[scratch,ls]", *LONG)
    assert (result.code, stood) == (0, [2, 2])
    assert "begun anew" not in result.out


def test_what_methods_remember_is_gone_on_with(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bank and its normaliser, an earlier self, a discriminator, a gate, an attention, and the dice of an attack."""
    cheap = ("pair.student=resnet8x0.25", "method.crd.negatives=100", "method.ard.steps=2")
    grid = ("method=[crd,ban,anc,one,okddip,ddgsd,ard]", *cheap, *LONG)
    assert kd.run(*grid, "paths.results=whole", "paths.work=elsewhere").code == 0
    begun(kd, monkeypatch, *grid, at=3)  # in the second generation of the one that has some
    assert kd.run(*grid).code == 0
    whole = {record.cell.method: record for record in Store(kd.root / "whole").load()}
    assert len(whole) == 7
    for name, record in whole.items():
        assert numbers(kd.record(name)) == numbers(record), name


@pytest.mark.parametrize("damage", ["flip", "swap"])
def test_a_bad_checkpoint_is_told_and_begun_anew(kd: Kdbench, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    kd.run("method=[scratch,ls]", *LONG, "paths.results=whole")
    found = begun(kd, monkeypatch, "method=[scratch,ls]", *LONG)
    first, second = sorted(found.values())
    if damage == "flip":
        content = bytearray(first.read_bytes())
        content[len(content) * 2 // 3] ^= 16
        first.write_bytes(content)
        reason = "its checkpoint is damaged."
    else:
        shutil.copy(second, first)
        reason = f"another cell ({second.parent.name}, now {first.parent.name})."
    stood = epochs(monkeypatch)
    result = kd.run("method=[scratch,ls]", *LONG)
    assert (result.code, sorted(stood)) == (0, [0, 2])
    (line,) = [line for line in result.out.splitlines() if "begun anew" in line]
    assert line.endswith(reason)
    assert "digits seed 0 is begun anew: " in line
    whole = {record.cell.id: numbers(record) for record in Store(kd.root / "whole").load()}
    assert {record.cell.id: numbers(record) for record in kd.records()} == whole
    assert not list(kd.work.glob("cells/*/*"))


def test_a_checkpoint_of_other_data_or_another_torch(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(kd, monkeypatch, "method=[scratch]", *LONG)
    version = torch.__version__
    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "9.9")
        stood = epochs(patch)
        result = kd.run("method=[scratch]", *LONG)
        assert (result.code, stood) == (0, [0])
        assert f"its checkpoint was made with another torch ({version}, now 9.9)." in result.out
    shutil.rmtree(kd.results)

    begun(kd, monkeypatch, "method=[scratch]", *LONG)
    dataset = run.Bench.dataset
    monkeypatch.setattr(
        run.Bench, "dataset", lambda self, config: replace(dataset(self, config), content_hash="e" * 64)
    )
    stood = epochs(monkeypatch)
    result = kd.run("method=[scratch]", *LONG)
    assert (result.code, stood) == (0, [0])
    assert "made with another data (" in result.out
    assert ", now eeeeeeeeeeee)." in result.out
    assert kd.record("scratch").dataset.sha256 == "e" * 64


def test_a_checkpoint_that_the_method_cannot_take(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A method whose networks have changed may be half loaded when that is noticed."""
    begun(kd, monkeypatch, "method=[scratch]", *LONG)
    expected = kd.run("method=[scratch]", *LONG, "paths.results=whole", "paths.work=elsewhere")
    assert expected.code == 0
    pack_before = checkpoint.pack

    def other(identity: Any, state: Any) -> bytes:
        weights = {name: value + 1 for name, value in state["state"].items()}
        return pack_before(identity, {**state, "state": {**weights, "more": torch.zeros(1)}})

    shutil.rmtree(kd.work)
    with monkeypatch.context() as patch:
        patch.setattr(cohort, "pack", other)
        begun(kd, monkeypatch, "method=[scratch]", *LONG)
    result = kd.run("method=[scratch]", *LONG)
    assert result.code == 0
    assert "is begun anew: its checkpoint does not fit the method (" in result.out
    (whole,) = Store(kd.root / "whole").load()
    assert numbers(kd.record("scratch")) == numbers(whole)


def test_a_teacher_is_not_gone_on_with_from_other_data(alone: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    kd = alone
    begun(kd, monkeypatch, "method=[kd]", *LONG)
    (path,) = kd.work.glob(f"cells/*/{CHECKPOINT}")
    content = bytearray(path.read_bytes())
    content[-50] ^= 1
    path.write_bytes(content)
    result = kd.run("method=[kd]", *LONG)
    assert result.code == 0
    assert result.out.count("begun anew") == 1
    assert "teacher resnet20 digits seed 0 is begun anew: its checkpoint is damaged." in result.out
    first = kd.record("kd").teacher
    assert first
    shutil.rmtree(kd.cache)
    shutil.rmtree(kd.results / "teachers")
    assert kd("teacher", "train", *SMALL, *LONG, "paths.work=fresh").code == 0  # without any checkpoint
    (weights,) = (kd.cache / "teachers").glob("*.safetensors")
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == first.sha256


# ---- force ------------------------------------------------------------------------------------------------------


def killed_after(patch: pytest.MonkeyPatch, name: str) -> None:
    """Stop as a kill would, right after a record is written."""
    write = run.Store.write

    def killed(self: Any, record: Record, overwrite: bool = False) -> Path:
        write(self, record, overwrite)
        raise KeyboardInterrupt

    patch.setattr(run.Store, name, killed)


def test_force_never_takes_what_an_earlier_run_left(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        killed_after(patch, "write")
        assert kd.run("method=[scratch]", *LONG).code == 130
    assert list(kd.work.glob(f"cells/*/{CHECKPOINT}"))  # of the last epoch
    stood = epochs(monkeypatch)
    result = kd.run("method=[scratch]", *LONG, "force=true")
    assert (result.code, stood) == (0, [0])
    assert "is begun anew: its checkpoint was made with another force (none, now " in result.out
    assert not list(kd.work.glob("cells/*/*"))


def test_a_forced_run_goes_on_where_it_was_killed_once(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kd.run("method=[scratch]", *LONG).code == 0
    begun(kd, monkeypatch, "method=[scratch]", *LONG, "force=true")
    stood = epochs(monkeypatch)
    with monkeypatch.context() as patch:
        killed_after(patch, "write")
        assert kd.run("method=[scratch]", *LONG, "force=true").code == 130
    assert stood == [2]
    assert kd.run("method=[scratch]", *LONG, "force=true").code == 0  # its record is new: all again
    assert stood == [2, 0]


def test_already_done_removes_what_a_kill_left(kd: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kd("teacher", "train", *SMALL, *LONG).code == 0  # which has a record of its own
    with monkeypatch.context() as patch:
        killed_after(patch, "write")
        assert kd.run("method=[kd]", *LONG).code == 130
    assert list(kd.work.glob(f"cells/*/{CHECKPOINT}"))
    assert not (kd.results / "teachers").exists()
    result = kd.run("method=[kd]", *LONG)
    assert "0 trained, 1 already done" in result.out
    assert not list(kd.work.glob("cells/*/*"))
    assert sorted(path.suffix for path in (kd.results / "teachers").iterdir()) == [".json", ".safetensors"]


def test_members_that_stand_at_different_epochs_are_each_trained_once(
    kd: Kdbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One at its last epoch, where only the record is missing; the other not begun."""
    with monkeypatch.context() as patch:

        def killed(*args: Any, **kwargs: Any) -> Record:
            raise KeyboardInterrupt

        patch.setattr(run, "make_record", killed)
        assert kd.run("method=[ls]", *LONG).code == 130
    stood = epochs(monkeypatch)
    for _ in range(2):  # with force=true both are begun anew, together
        result = kd.run("method=[scratch,ls]", *LONG, *(["force=true"] if len(stood) > 2 else []))
        assert result.code == 0, result
        assert "2 trained" in result.out
        if len(stood) == 2:
            assert stood == [0, 4]
            stood.append(-1)
    assert stood == [0, 4, -1, 0, 0]
