"""The store: written once and whole, read with suspicion."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from factories import make_record

import kdbench.results
from kdbench.errors import UserError
from kdbench.files import STALE_AFTER
from kdbench.results.record import dump
from kdbench.results.store import RecordExistsError, Store, file_name


def visible(store: Store) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir() if not path.name.startswith("."))


def hidden(store: Store) -> list[str]:
    return sorted(path.name for path in store.folder.iterdir() if path.name.startswith("."))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    store, record = Store(tmp_path / "new" / "store"), make_record()
    path = store.write(record)
    assert path.name == f"kd-resnet56-resnet20-cifar100-crd240-s0-{record.cell.id}.json"
    assert path.parent == tmp_path / "new" / "store" / "records"
    assert store.get(record.cell.id) == record
    assert store.load() == [record]
    assert hidden(store) == []


def test_an_empty_store_holds_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path / "nowhere")
    assert store.load() == []
    assert store.get("0" * 16) is None
    assert not store.root.exists()


def test_a_cell_id_is_not_a_pattern(tmp_path: Path) -> None:
    Store(tmp_path).write(make_record())
    with pytest.raises(ValueError, match="not a cell id"):
        Store(tmp_path).get("*")


def test_odd_names_give_safe_and_distinct_file_names(tmp_path: Path) -> None:
    names = ["timm/resnet18.a1", "..", "x" * 400, "späte ☃", "timm resnet18.a1"]
    records = [make_record(method=name) for name in names]
    store = Store(tmp_path)
    for record in records:
        path = store.write(record)
        assert path.parent == store.folder
        assert path.name.isascii()
        assert not path.name.startswith(".")
        assert len(path.name) < 200
    assert {record.cell.method for record in store.load()} == set(names)


def test_records_are_loaded_in_one_order(tmp_path: Path) -> None:
    records = [make_record(method, seed) for method in ("kd", "at") for seed in (10, 2, 0)]
    loads = []
    for i, order in enumerate((records, records[::-1])):
        store = Store(tmp_path / str(i))
        for record in order:
            store.write(record)
        loads.append(store.load())
    assert loads[0] == loads[1]
    expected = [("at", 0), ("at", 2), ("at", 10), ("kd", 0), ("kd", 2), ("kd", 10)]
    assert [(record.cell.method, record.cell.seed) for record in loads[0]] == expected


def test_a_record_is_not_silently_overwritten(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first, second = make_record(top1=70.0), make_record(top1=75.0)
    store.write(first)
    with pytest.raises(RecordExistsError, match=f"{first.cell.id}.*already has the record.*force=true"):
        store.write(second)
    assert store.load() == [first]
    store.write(second, overwrite=True)
    assert store.load() == [second]
    assert hidden(store) == []


def test_a_cell_that_was_renamed_still_has_one_record(tmp_path: Path) -> None:
    store = Store(tmp_path)
    old, new = make_record(cell={"pair": "a-b"}), make_record(cell={"pair": "c-d"})
    assert old.cell.id == new.cell.id
    store.write(old)
    with pytest.raises(RecordExistsError, match="a-b"):
        store.write(new)
    store.write(new, overwrite=True)
    assert store.load() == [new]


def test_without_hard_links_records_are_still_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    store = Store(tmp_path)
    store.write(make_record())
    with pytest.raises(RecordExistsError):
        store.write(make_record(top1=75.0))
    assert store.load() == [make_record()]
    assert hidden(store) == []


# ---- bad files ------------------------------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path)
    store.write(make_record(seed=0))
    store.write(make_record(seed=1))
    return store


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("half.json", dump(make_record(seed=2))[:500], "half.json is not valid JSON"),
        ("empty.json", "", "empty.json is not valid JSON"),
        ("other.json", '{"accuracy": 99}', "other.json is not a kdbench record"),
        ("notes.txt", "to do", "notes.txt is not a kdbench record"),
        ("new.json", '{"schema_version": 9, "sha256": ""}', "new.json has schema version 9"),
        ("copy.json", dump(make_record(seed=2)), "copy.json should be called kd-resnet56-resnet20-cifar100-crd240-s2-"),
    ],
)
def test_foreign_files_are_named(store: Store, name: str, text: str, problem: str) -> None:
    (store.folder / name).write_text(text)
    with pytest.raises(UserError) as error:
        store.load()
    assert f"{store.folder / problem.split()[0]} {problem.split(maxsplit=1)[1]}" in str(error.value)
    assert "1 bad file(s)" in str(error.value)
    assert "run its cell again" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_edited_record_is_refused_by_load_and_get(store: Store) -> None:
    record = make_record(seed=1)
    path = store.folder / file_name(record)
    path.write_text(path.read_text().replace('"oracle": 70.3', '"oracle": 71.3'))
    for read in (store.load, lambda: store.get(record.cell.id)):
        with pytest.raises(UserError, match=f"{path.name} was edited"):
            read()
    assert store.get(make_record(seed=0).cell.id) == make_record(seed=0)


def test_an_edited_config_is_refused(store: Store) -> None:
    path = store.folder / file_name(make_record(seed=1))
    data = json.loads(path.read_text())
    data["config"]["method"]["temperature"] = 8.0
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match="was edited"):
        store.load()


def test_two_records_of_one_cell_are_refused(store: Store) -> None:
    twin = make_record(seed=1, cell={"pair": "other"}, top1=80.0)
    (store.folder / file_name(twin)).write_text(dump(twin))
    for read in (store.load, lambda: store.get(twin.cell.id)):
        with pytest.raises(UserError, match=rf"cell {twin.cell.id} has 2 records \(.*kd-other.*, .*kd-resnet56"):
            read()


def test_all_bad_files_are_named_at_once(store: Store) -> None:
    (store.folder / "a.json").write_text("{")
    (store.folder / "b.json").mkdir()
    with pytest.raises(UserError, match=r"2 bad file\(s\).*a\.json is not valid JSON; .*b\.json cannot be read"):
        store.load()


def test_hidden_files_are_passed_over(store: Store) -> None:
    (store.folder / ".gitkeep").touch()
    (store.folder / f".{file_name(make_record(seed=2))}.1234.tmp").write_text("{")
    assert len(store.load()) == 2


# ---- failing disks --------------------------------------------------------------------------------------------------


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for root in (tmp_path / "file", tmp_path / "file" / "deeper"):
        for act in (lambda s: s.write(make_record()), lambda s: s.check_writable()):
            with pytest.raises(UserError, match=r"Cannot write to .*file.*a part of that path is a file"):
                act(Store(root))
    (tmp_path / "records").write_text("mine")
    with pytest.raises(UserError, match="Cannot read the store"):
        Store(tmp_path).load()
    with pytest.raises(UserError, match="a part of that path is a file"):
        Store(tmp_path).check_writable()
    assert (tmp_path / "file").read_text() == (tmp_path / "records").read_text() == "mine"


@pytest.mark.parametrize(
    ("code", "mend"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EROFS, "choose a folder that you may write to"),
        (errno.EACCES, "choose a folder that you may write to"),
    ],
)
def test_a_failed_write_names_the_mend_and_leaves_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch, code: int, mend: str
) -> None:
    before = visible(store)

    def fail(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    for act in (
        lambda: store.write(make_record(seed=2)),
        lambda: store.write(make_record(seed=0, top1=80.0), overwrite=True),
        store.check_writable,
    ):
        with pytest.raises(UserError, match=f"Cannot write to {store.folder} .*{mend}"):
            act()
    assert visible(store) == before
    assert hidden(store) == []
    assert store.get(make_record(seed=0).cell.id) == make_record(seed=0)


def run_python(code: str, *args: str) -> subprocess.CompletedProcess[str]:
    here = Path(__file__).parent
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    return subprocess.run([sys.executable, "-c", code, *args], env=env, capture_output=True, text=True, timeout=60)


def test_a_write_that_fails_half_way_leaves_nothing(store: Store) -> None:
    """The kernel refuses the bytes after the first 100, as a full disk would."""
    pytest.importorskip("resource")
    done = run_python(
        "import resource, sys\n"
        "from factories import make_record\n"
        "from kdbench.errors import UserError\n"
        "from kdbench.results import Store\n"
        "record = make_record(seed=2)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
        "try:\n"
        "    Store(sys.argv[1]).write(record)\n"
        "except UserError as error:\n"
        "    print(error)\n",
        str(store.root),
    )
    assert "free some space" in done.stdout, done.stderr
    assert len(visible(store)) == 2
    assert hidden(store) == []


@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(store: Store) -> None:
    store.folder.chmod(0o555)
    try:
        with pytest.raises(UserError, match="choose a folder that you may write to"):
            store.check_writable()
    finally:
        store.folder.chmod(0o755)


@pytest.mark.parametrize(("call", "overwrite"), [("link", False), ("replace", True)])
def test_a_process_killed_before_the_rename_leaves_no_half_record(store: Store, call: str, overwrite: bool) -> None:
    done = run_python(
        "import os, sys\n"
        "from factories import make_record\n"
        "from kdbench.results import Store\n"
        f"os.{call} = lambda *_: os._exit(9)\n"
        f"Store(sys.argv[1]).write(make_record(seed=1, top1=80.0), overwrite={overwrite})\n",
        str(store.root) if overwrite else str(store.root / "fresh"),
    )
    assert done.returncode == 9, done.stderr
    survivor = store if overwrite else Store(store.root / "fresh")
    (leftover,) = hidden(survivor)
    assert len(survivor.load()) == (2 if overwrite else 0)

    survivor.check_writable()  # may belong to a live writer: too young to remove
    assert hidden(survivor) == [leftover]
    old = (survivor.folder / leftover).stat().st_mtime - STALE_AFTER - 60
    os.utime(survivor.folder / leftover, (old, old))
    survivor.check_writable()
    assert hidden(survivor) == []

    survivor.write(make_record(seed=1, top1=80.0), overwrite=True)
    assert make_record(seed=1, top1=80.0) in survivor.load()


def test_check_writable_makes_the_folder_and_leaves_it_empty(tmp_path: Path) -> None:
    Store(tmp_path / "deep" / "store").check_writable()
    assert list((tmp_path / "deep" / "store" / "records").iterdir()) == []


# ---- company --------------------------------------------------------------------------------------------------------


def write_all(root: str, top1: float, barrier: object, wins: object) -> None:
    store = Store(root)
    records = [make_record(seed=seed, top1=top1) for seed in range(40)]
    barrier.wait()  # type: ignore[attr-defined]
    won = []
    for record in records:
        try:
            store.write(record)
            won.append(record.cell.seed)
        except RecordExistsError:
            store.load()
    wins.put((top1, won))  # type: ignore[attr-defined]


def test_two_processes_on_one_store_do_not_harm_each_other(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, wins = context.Barrier(2), context.Queue()
    workers = [context.Process(target=write_all, args=(str(tmp_path), top1, barrier, wins)) for top1 in (60.0, 80.0)]
    for worker in workers:
        worker.start()
    won = dict(wins.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0
    assert sorted(won[60.0] + won[80.0]) == list(range(40))  # each cell has one winner
    store = Store(tmp_path)
    records = {record.cell.seed: record for record in store.load()}
    assert records == {seed: make_record(seed=seed, top1=top1) for top1, seeds in won.items() for seed in seeds}
    assert hidden(store) == []


# ---- the table of records -------------------------------------------------------------------------------------------


def test_load_gives_one_flat_row_for_each_record(store: Store) -> None:
    store.write(make_record("scratch", teacher=None, cell={"teacher": None}, config={"method": {"temperature": None}}))
    store.write(make_record("dkd", status="diverged", config={"method": {"beta": 8.0}}))
    frame = kdbench.results.load(store.root)
    assert list(frame["cell.method"]) == ["dkd", "kd", "kd", "scratch"]
    assert list(frame["cell.seed"]) == [0, 0, 1, 0]
    assert frame["metrics.last"].tolist()[1:] == [70.0] * 3
    assert np.isnan(frame["metrics.last"][0])
    assert frame["status"].tolist() == ["diverged", "finished", "finished", "finished"]
    assert frame["config.method.beta"].dropna().tolist() == [8.0]
    assert frame["teacher.accuracy"].isna().tolist() == [False, False, False, True]
    assert frame["method.needs"][0] == "labels teacher"
    assert frame["correct.n"].dropna().tolist() == [10_000] * 3
    assert not {"teacher", "metrics", "correct", "correct.bits", "curves"} & set(frame.columns)
    assert not any(column.startswith("curves.") for column in frame.columns)


def test_load_has_the_same_columns_where_all_values_are_missing(tmp_path: Path) -> None:
    one, other = Store(tmp_path / "one"), Store(tmp_path / "other")
    agreement = {"max_abs_logit": 0.1, "top1_percent": 99.8, "images": 1000}
    one.write(make_record(teacher={"agreement": agreement}))
    other.write(make_record(status="diverged", teacher=None))
    assert list(kdbench.results.load(one.root)) == list(kdbench.results.load(other.root))
    shutil.rmtree(one.folder)
    assert kdbench.results.load(one.root).empty
