"""A grid killed before any one of its file operations, and repeated: the records of one that was left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import PACKAGES

TRIALS = """
import json, os, re, shutil, signal, sys
from pathlib import Path

import torch

import kdbench.engine.grid, kdbench.report, pytorch_lightning  # loaded once, and forked
from kdbench.cli import main
from kdbench.results.record import parse

torch.set_num_threads(1)
CHANGES = {"os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "shutil.rmtree", "os.truncate"}
top, step, command = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]


def run(root, at=0):
    '''The command in `root`, killed before its `at`-th change of a file there; exit status, and how many there were.'''
    read, write = os.pipe()
    if not (pid := os.fork()):
        root.mkdir(exist_ok=True)
        os.chdir(root)
        os.environ["KDBENCH_CACHE"] = str(root / "cache")
        out = os.open(root.with_suffix(".out"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        count = 0

        def hook(event, args):
            nonlocal count
            if event == "open":
                changes = isinstance(args[2], int) and args[2] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)
            else:
                changes = event in CHANGES
            if not changes or not isinstance(args[0], (str, os.PathLike)):
                return
            if os.path.abspath(os.fspath(args[0])).startswith(str(root) + os.sep):
                count += 1
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        try:
            code = main(command)
        except BaseException as error:
            print(repr(error))
            code = 99
        os.write(write, str(count).encode())
        sys.stdout.flush()
        os._exit(code)
    os.close(write)
    _, status = os.waitpid(pid, 0)
    with os.fdopen(read) as file:
        count = int(file.read() or 0)
    return os.waitstatus_to_exitcode(status), count


def kept(root):
    '''All of the records that must be the same, and what else is there.'''
    records = {}
    for path in (root / "results" / "records").glob("*.json"):
        record = parse(path.read_text())
        parts = record.model_dump(mode="json")
        cost = {key: parts["cost"][key] for key in ("images_seen", "student_forwards", "teacher_forwards")}
        records[path.name] = [parts[key] for key in ("metrics", "curves", "correct", "teacher", "status")] + [cost]
    rest = sorted(
        str(path.relative_to(root))
        for folder in ("results/teachers", "cache/teachers", "runs/cells")
        for path in (root / folder).glob("*")
        if path.name != ".locks" and path.suffix not in (".lock", ".tmp", ".holder")
    )
    return records, rest


def young(root):
    return [str(path.relative_to(root)) for path in root.rglob("*") if path.suffix in (".tmp", ".partial")]


whole = top / "whole"
code, points = run(whole)
assert code == 0, whole.with_suffix(".out").read_text()
expected = kept(whole)
assert not young(whole)
bad, leftovers = [], 0
for at in range(1, points + 1, step):
    root = top / f"at{at}"
    first, _ = run(root, at)
    second, _ = run(root)
    said = root.with_suffix(".out").read_text()
    found = kept(root) if second == 0 else None
    if first != -signal.SIGKILL or found != expected or "failed" in said.replace("0 failed or diverged", ""):
        bad.append([at, first, second, said[-400:], found and found[1]])
    leftovers += len(young(root))
    # an hour later they are gone
    for path in root.rglob("*"):
        if path.suffix == ".tmp":
            os.utime(path, (0, path.stat().st_mtime - 4000))
    third, _ = run(root)
    if third or young(root) or list(root.rglob("*.holder")) or kept(root) != expected:
        bad.append([at, "sweep", third, young(root), root.with_suffix(".out").read_text()[-400:]])
    else:
        shutil.rmtree(root)
print(json.dumps({"points": points, "bad": bad, "leftovers": leftovers}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "extra",
    [(), ("force=true",), ("cohort.max_students=1", "engine.route=plain")],
    ids=["lockstep", "force", "one by one"],
)
def test_a_kill_before_any_change_of_a_file(tmp_path: Path, extra: tuple[str, ...]) -> None:
    step = int(os.environ.get("KDBENCH_TEST_STEP", "3"))
    command = ["run", "method=[scratch,kd]", "protocol.epochs=3", "teacher.epochs=1", "dataset.per_class=20"]
    command += ["checkpoint_seconds=0", *extra]
    env = {**os.environ, "PYTHONPATH": str(PACKAGES), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", TRIALS, str(tmp_path), str(step), *command], env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    print(result["points"], "points,", result["leftovers"], "leftovers")
    assert result["points"] > 50
    assert not result["bad"], result["bad"]
